"""Images to shards of codes, however often it is stopped; shards read back: damaged, of other
tools, by priors.
"""

import json
import multiprocessing
import os
import random
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.data import batches
from hrvqvae.data.images import read_image
from hrvqvae.data.loading import load_images
from hrvqvae.tokens.maps import load_shard_maps
from hrvqvae.tokens.tokenize import Tokenizer, load_keyed_images
from hrvqvae.training.prior import resolve_priors
from hrvqvae.utils.outputs import TEMPORARY
from tests.checkpoints.test_damage import equal
from tests.conftest import (
    do,
    drawn_digits,
    input_error,
    names_in,
    parametrize,
    read_json,
    refused,
    run_python,
    same,
    shared_fixture,
    write_picture,
)
from tests.data.stored import write_tar
from tests.kills import Killed, Kills, in_another_process
from tests.trained_run import GIVEN, load_stored, train_levels, trained_copy, undrawn


def digit_files(folder, count, size=28, seed=1):
    for index, (pixels, label) in enumerate(zip(*drawn_digits(count, seed, size), strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def tokenize(line, workers=0):
    do(f"tokenize {line} --workers {workers}")


def parts_of(folder):
    return sorted(folder.glob("*.parquet"))


def read_files(folder):
    return {path.name: path.read_bytes() for path in parts_of(folder)}


def read_table(folder):
    return pa.concat_tables([*map(pq.read_table, parts_of(folder))])


def column(rows, name):
    return rows.column(name).to_pylist()


def read_codes(rows, level):
    columns = (column(rows, f"{name}_{level}") for name in ("codes", "height", "width"))
    return [
        np.array(codes).reshape(height, width)
        for codes, height, width in zip(*columns, strict=True)
    ]


def stack_codes(rows, levels):
    """Return the codes of the first levels of images of one size."""
    grids = (np.stack(read_codes(rows, level)) for level in range(1, levels + 1))
    return tuple(torch.from_numpy(level).long() for level in grids)


@shared_fixture
def digits(tmp_path_factory):
    return digit_files(tmp_path_factory.mktemp("digits"), 90)


@shared_fixture
def shards(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    tokenize(f"mnist {digits} {out} --shard-size 20")
    return out


def test_shards_hold_the_codes_of_the_model(shards, digits):
    model = hrvqvae.load("mnist")
    names = sorted(path.relative_to(digits).as_posix() for path in digits.rglob("*.png"))
    rows = read_table(shards)
    assert column(rows, "key") == names
    assert column(rows, "label") == [name.split("/")[0] for name in names]
    assert set(column(rows, "height")) == set(column(rows, "width")) == {28}
    pixels = torch.from_numpy(np.stack([read_image(digits / name, 1) for name in names]))
    assert same(stack_codes(rows, 3), model.encode(pixels))
    assert str(rows.schema.field("codes_3").type.value_type) == "uint8"
    counts = [pq.read_metadata(path).num_rows for path in sorted(shards.glob("*.parquet"))]
    assert counts == [20] * 4 + [10]
    metadata = pq.read_metadata(shards / "part-000004.parquet").metadata
    assert metadata[b"hrvqvae.format"] == b"1"
    assert metadata[b"hrvqvae.model"].decode() == model.entropy_model.model
    assert metadata[b"hrvqvae.version"].decode() == hrvqvae.__version__
    assert json.loads(metadata[b"hrvqvae.config"])["model"]["quantizer"]["levels"] == 3
    assert json.loads(metadata[b"hrvqvae.classes"]) == names_in(digits)


def test_random_kills(shards, digits, tmp_path, monkeypatch):
    killer = Kills(5)
    with monkeypatch.context() as patched:
        killer.watch(
            patched,
            (
                (os, "fsync"),
                (Path, "replace"),
                (pq.ParquetWriter, "write_table"),
                (pq.ParquetWriter, "add_key_value_metadata"),
                (Tokenizer, "_encode"),
            ),
        )
        kills = 0
        while kills < 12:
            killer.arm(16)
            try:
                tokenize(f"mnist {digits} {tmp_path}/out --shard-size 20")
            except Killed:
                kills += 1
                (tmp_path / "out" / f"{TEMPORARY}left-part-000001.parquet").write_bytes(
                    b"what a real kill leaves"
                )
                for path in (tmp_path / "out").glob("part-*.parquet"):
                    # a shard is whole or not there
                    assert path.read_bytes() == (shards / path.name).read_bytes()
                if not killer.draw.randrange(4):  # or nothing would be left to kill
                    shutil.rmtree(tmp_path / "out")
    tokenize(f"mnist {digits} {tmp_path}/out --shard-size 20")
    assert read_files(tmp_path / "out") == read_files(shards)
    assert not list((tmp_path / "out").glob(f"{TEMPORARY}*"))


def test_workers_write_the_missing_shards(digits, shards, tmp_path):
    """Finished shards are not touched. A manifest without an effort is of effort 0."""
    out = shutil.copytree(shards, tmp_path / "out")
    manifest = read_json(out / "_manifest.json")
    assert manifest.pop("effort") == 0
    (out / "_manifest.json").write_text(json.dumps(manifest))
    (out / "part-000001.parquet").unlink()
    (out / "part-000003.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    tokenize(f"mnist {digits} {out} --shard-size 20", workers=2)
    assert read_files(out) == read_files(shards)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_broken_images_are_listed(digits, shards, tmp_path, capsys):
    folder = shutil.copytree(digits, tmp_path / "digits")
    out = tmp_path / "out"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    broken = [names[3], names[30], *names[40:60]]  # one whole shard among them
    for name in broken:
        (folder / name).write_bytes((digits / name).read_bytes()[:40])
    tokenize(f"mnist {folder} {out} --shard-size 20")
    assert "broken images left out: 22 of 90, listed in" in capsys.readouterr().err
    listed = [json.loads(line) for line in (out / "_broken.jsonl").read_text().splitlines()]
    assert [image["key"] for image in listed] == broken
    assert {image["error"] for image in listed} == {"is not a readable PNG, JPEG or WebP image"}
    parts = read_files(out)
    assert read_table(out).column("key").to_pylist() == [
        name for name in names if name not in broken
    ]
    for name in broken[:2]:
        shutil.copyfile(digits / name, folder / name)
    for _ in range(2):
        tokenize(f"mnist {folder} {out} --retry-broken")
        assert [name for name in read_files(out) if name not in parts] == ["retry-000000.parquet"]
        assert len((out / "_broken.jsonl").read_text().splitlines()) == 20
    for name in broken:
        shutil.copyfile(digits / name, folder / name)
    first = (out / "retry-000000.parquet").rename(out / "retry-000001.parquet").read_bytes()
    tokenize(f"mnist {folder} {out} --retry-broken")
    assert (out / "retry-000001.parquet").read_bytes() == first  # the first free number is taken
    assert not (out / "_broken.jsonl").exists()
    assert {name: read_files(out)[name] for name in parts} == parts
    assert read_table(out).sort_by("key").equals(read_table(shards).sort_by("key"))


def _change_plan(out, **changes):
    plan = read_json(out / "_manifest.json")
    (out / "_manifest.json").write_text(json.dumps(plan | changes))


BEGUN_OTHERWISE = {
    "was begun with another model: 000000000000": lambda out: _change_plan(out, model="0" * 32),
    "_manifest.json is damaged, shard size": lambda out: _change_plan(out, shard_size=0),
    "_manifest.json is damaged, keys": lambda out: _change_plan(out, keys=90.5),
    "_manifest.json is damaged, more": lambda out: _change_plan(out, more=0),
    "part-000001.parquet is damaged": lambda out: os.truncate(out / "part-000001.parquet", 300),
    "holds .parquet files, but no _manifest.json": lambda out: (out / "_manifest.json").unlink(),
    "was begun with another shard_size: 20": "--shard-size 30",
    "was begun with another image_size: 28": "--full-size",
    "it must be at least 1": "--shard-size 0",
}


@parametrize("message", BEGUN_OTHERWISE)
def test_a_folder_that_was_begun_otherwise(message, shards, digits, tmp_path):
    out = shutil.copytree(shards, tmp_path / "out")
    change = BEGUN_OTHERWISE[message]
    options = change if isinstance(change, str) else ""
    if not options:
        change(out)
    before = read_files(out)
    assert message.partition(", ")[0] in refused(f"tokenize mnist {digits} {out} {options}")
    assert read_files(out) == before


def test_more_effort_gives_other_shards_of_less_error(shards, digits, tmp_path):
    out = tmp_path / "out"
    options = f"mnist {digits} {out} --shard-size 20"
    tokenize(f"{options} --effort 1")
    errors = []
    model = hrvqvae.load("mnist")
    images = [read_image(path, 1) for path in sorted(digits.rglob("*.png"))]
    for folder in (shards, out):
        decoded = model.decode(stack_codes(read_table(folder), 3), size=(28, 28))
        errors.append(float((decoded - torch.from_numpy(np.stack(images)) / 255).square().sum()))
    assert errors[1] < 0.98 * errors[0]
    assert "was begun with another effort: 1, not 0" in refused(f"tokenize {options}")


def test_other_images_and_none(shards, digits, tmp_path):
    more = shutil.copytree(digits, tmp_path / "more")
    write_picture(more / "0" / "more.png", 1)
    with in_another_process(tmp_path / "held") as pid:
        assert f"is in use by another process (pid {pid})" in refused(
            f"tokenize mnist {more} {tmp_path}/held"
        )
    said = refused(f"tokenize mnist {more} {shards}")
    assert "was begun with another number of images: 90, not 91; choose another folder" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n\n")
    (tmp_path / "twice.txt").write_text("a.png\n./a.png\n")
    for model, source, message in (
        ("mnist", tmp_path / "empty", "has no image"),
        ("mnist", tmp_path / "none.txt", "names no image"),
        ("mnist", tmp_path / "twice.txt", "two images named a.png"),
        ("mnist", tmp_path / "nowhere", "no such file"),
        ("no-such-model", digits, "no-such-model"),
    ):
        assert message in refused(f"tokenize {model} {source} {tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_images_that_were_replaced_are_noticed(tmp_path):
    """Under their old names, after their shard was written; images of a shard that is not there may
    change.
    """
    folder = digit_files(tmp_path / "digits", 4)
    out = tmp_path / "out"
    tokenize(f"mnist {folder} {out} --shard-size 2")
    (out / "part-000001.parquet").unlink()
    paths = sorted(folder.rglob("*.png"))
    Image.new("L", (28, 28), 9).save(paths[3])
    tokenize(f"mnist {folder} {out}")
    Image.new("L", (28, 28), 9).save(paths[0])
    before = read_files(out)
    said = refused(f"tokenize mnist {folder} {out}")
    assert (
        "part-000000.parquet was made of other images of the same names; choose another folder"
        in said
    )
    assert read_files(out) == before


def test_each_kind_of_conversion_is_counted(tmp_path, caplog):
    for index, mode in enumerate(("RGB", "L", "RGB", "CMYK")):
        write_picture(tmp_path / "images" / f"{index}.jpg", index, (28, 28), mode)
    tokenize(f"mnist {tmp_path}/images {tmp_path}/out")
    told = "images converted: 3 (1 CMYK to RGB, colour to greyscale; 2 colour to greyscale)"
    assert told in caplog.text


def test_spawned_workers_read_for_all_shards(digits, shards, tmp_path):
    """Workers for each shard would import everything anew. An actor of Ray writes shards one by
    one, as here.
    """
    workers = set()
    with patch.object(batches, "DataLoader", partial(DataLoader, multiprocessing_context="spawn")):
        tokenizer = Tokenizer(
            "mnist",
            load_keyed_images(digits),
            workers=1,
            device="cpu",
            full_size=False,
            beam=None,
            effort=0,
        )
        for index in range(3):
            path = f"part-{index:06d}.parquet"
            tokenizer.write(tmp_path / path, range(20 * index, 20 * index + 20))
            workers |= {process.pid for process in multiprocessing.active_children()}
            assert (tmp_path / path).read_bytes() == (shards / path).read_bytes()
    assert len(workers) == 1


def test_images_at_their_own_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("hrvqvae.tokens.tokenize._GROUP_CODES", 3000)
    sizes = [(40, 30), (40, 30), (28, 50), (61, 61), (40, 30)]  # width, height
    for index, size in enumerate(sizes):
        write_picture(tmp_path / "pictures" / f"{index}.png", index, size)
    tokenize(f"cifar10 {tmp_path}/pictures {tmp_path}/out --full-size")
    rows = read_table(tmp_path / "out")
    model = hrvqvae.load("cifar10")
    assert [*zip(column(rows, "width"), column(rows, "height"), strict=True)] == sizes
    assert column(rows, "label") == [None] * 5
    with monkeypatch.context() as context:
        context.setattr("hrvqvae.tokens.tokenize.MOST_VALUES", 1000)
        command = f"tokenize cifar10 {tmp_path}/pictures {tmp_path}/none --full-size --workers 0"
        assert "codes, too many for a shard" in refused(command)
    do(f"detokenize {tmp_path}/out {tmp_path}/back")
    codes = [read_codes(rows, level) for level in (1, 2, 3)]
    for index, (width, height) in enumerate(sizes):
        pixels = read_image(tmp_path / "pictures" / f"{index}.png", 3)
        expected = model.encode(pixels[None])
        assert same([torch.from_numpy(level[index][None]) for level in codes], expected)
        assert read_image(tmp_path / "back" / f"{index}.png", 3).shape == (3, height, width)
    # the first ends soon
    assert pq.read_metadata(tmp_path / "out" / "part-000000.parquet").num_row_groups == 2


def test_names_of_a_tar_become_names_of_files(tmp_path, monkeypatch):
    """They need not be UTF-8, and may differ by their suffix alone."""
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()  # no run, but perhaps the data
    (image,) = digit_files(tmp_path / "in", 1).rglob("*.png")
    names = [os.fsdecode(b"caf\xe9.png"), "a.png", "a.jpg"]
    tar = write_tar(tmp_path / "a.tar", dict.fromkeys(names, image.read_bytes()))
    tokenize(f"mnist {tar} out")
    keys = ["a.jpg", "a.png", "caf\\udce9.png"]
    assert read_table(tmp_path / "out").column("key").to_pylist() == keys
    do("detokenize out back")
    assert names_in(Path("back")) == [
        "a-2.png",
        "a.png",
        "caf_udce9.png",
    ]


def test_a_line_of_a_list_ends_nowhere_else(tmp_path):
    names = ["a\u2028b.png", "c\x85d.png", "e\x0bf.png", "g.png"]
    (tmp_path / "list.txt").write_bytes("\r\n".join([*names[:3], "../g.png", ""]).encode())
    source = load_keyed_images(tmp_path / "list.txt").source
    assert [source.name(row) for row in range(len(source))] == names


def test_lists_and_what_training_takes(digits, shards, tmp_path):
    rows = read_table(shards)
    names = column(rows, "key")
    labels = column(rows, "label")
    lines = [f"{digits / name}\t{label}\n" for name, label in zip(names, labels, strict=True)]
    (tmp_path / "list.txt").write_text("".join(random.Random(1).sample(lines, len(lines))))
    tokenize(f"mnist {tmp_path}/list.txt {tmp_path}/listed")
    listed = read_table(tmp_path / "listed")
    assert column(listed, "key") == [f"{digits / name}".lstrip("/") for name in names]
    pixels = np.concatenate([read_image(digits / name, 1) for name in names])
    np.savez(tmp_path / "digits.npz", images=pixels, labels=np.array(labels, np.int64))
    tokenize(f"mnist {tmp_path}/digits.npz {tmp_path}/arrays")
    arrays = read_table(tmp_path / "arrays")
    order = [int("".join(filter(str.isdigit, key))) for key in column(arrays, "key")]
    for table in (listed, arrays.take(np.argsort(order))):
        assert list(map(str, column(table, "label"))) == labels
        assert all(
            table.column(f"codes_{level}").equals(rows.column(f"codes_{level}"))
            for level in (1, 2, 3)
        )


ON_RAY = """
import sys
from types import SimpleNamespace as Fake
import ray
from hrvqvae.cli import main
from hrvqvae.tokens import tokenize

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
code = main(sys.argv[1:])
options = {"model": "no/run", "full_size": False, "beam": None, "effort": 0}
absent = Fake(options=options, images=None, workers=0, device=Fake(type="cpu"))
try:
    list(tokenize._write_on_ray(absent, {tokenize.Path("x"): range(1)}, print))
except tokenize.InputError as error:
    print(error)
sys.exit(code)
"""


def test_ray_writes_the_same_bytes(digits, shards, tmp_path):
    command = f"tokenize mnist {digits} {tmp_path}/out --shard-size 20 --engine ray".split()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    printed = run_python("-c", ON_RAY, *command, env=environment).stdout
    assert "90 images in 5 shards" in printed
    assert "no/run: there is no such run folder" in printed  # why Ray stopped
    assert read_files(tmp_path / "out") == read_files(shards)


@parametrize("levels", [3, 1])
def test_back_to_images(levels, shards, tmp_path):
    do(f"detokenize {shards} {tmp_path}/back --levels {levels}")
    model = hrvqvae.load("mnist")
    rows = read_table(shards)
    images = (model.decode(stack_codes(rows, levels), levels, (28, 28)) * 255).round()
    for key, image in zip(column(rows, "key"), images, strict=True):
        with Image.open(tmp_path / "back" / key) as written:
            assert (written.format, written.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(written), image[0])


def test_what_exists_is_written_over_by_force_alone(shards, tmp_path):
    mine = tmp_path / read_table(shards).column("key")[25].as_py()
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"an original")
    assert f"{mine} exists already" in refused(f"detokenize {shards} {tmp_path}")
    assert mine.read_bytes() == b"an original"
    assert list(tmp_path.rglob("*.png")) == [mine]  # nothing is written before all names are free
    do(f"detokenize {shards} {tmp_path} --force")
    assert mine.read_bytes().startswith(b"\x89PNG")


def _rewrite(path, change=lambda rows: rows, **metadata):
    with pq.ParquetFile(path) as file:
        values = {
            name: value for name, value in file.metadata.metadata.items() if name != b"ARROW:schema"
        }
        rows = file.read()
    values |= {f"hrvqvae.{name}".encode(): value.encode() for name, value in metadata.items()}
    pq.write_table(change(rows).replace_schema_metadata(values), path)


def _replace_column(path, name, values):
    def change(rows):
        column = values(rows.column(name)) if callable(values) else [values] * len(rows)
        return rows.set_column(rows.column_names.index(name), name, pa.array(column))

    _rewrite(path, change)


def _flip_byte(path):
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(6).data_page_offset + 60] ^= 0xFF
    path.write_bytes(content)


def _add_many_codes(rows):
    """One image of 70 million codes, which take a few bytes."""
    codes = pa.ListArray.from_arrays([0, 70_000_000], np.zeros(70_000_000, np.uint8))
    return rows.slice(0, 1).set_column(rows.column_names.index("codes_1"), "codes_1", codes)


def _drop_a_type(path):
    """Flip a bit that ends a process in which pyarrow describes a column."""
    content = path.read_bytes()
    place = content.rindex(b"%\x02\x18\x03key")
    path.write_bytes(content[:place] + b"$" + content[place + 1 :])


DAMAGE = {
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        "is damaged, or no Parquet file",
    ),
    "flipped": (_flip_byte, "is damaged, or no Parquet file"),
    "name": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"height_2", b"height_\xff")),
        "is damaged, or",
    ),
    "version": (lambda path: _rewrite(path, format="2"), "is of version 2 of the format"),
    "models": (lambda path: _rewrite(path, model="0" * 32), "are of two models"),
    "metadata": (lambda path: _rewrite(path, broken="["), "has damaged metadata"),
    "no shard": (
        lambda path: pq.write_table(pa.table({"a": [1]}), path),
        "is no shard of codes: its metadata has no",
    ),
    "column": (
        lambda path: _rewrite(path, lambda rows: rows.drop_columns(["codes_2"])),
        "has other columns",
    ),
    "grid": (
        lambda path: _replace_column(path, "height_2", 9),
        "has 256 codes of level 2 for 9x16",
    ),
    "nulls": (
        lambda path: _replace_column(path, "codes_1", lambda old: [None, *old.to_pylist()[1:]]),
        "has nulls",
    ),
    "no numbers": (
        lambda path: _replace_column(path, "codes_1", [0.5] * 256),
        "has other columns than docs/tokens.md",
    ),
    "out of range": (lambda path: _replace_column(path, "codes_3", [4] * 256), "codes of"),
    "bomb": (lambda path: _rewrite(path, _add_many_codes), "values, too many for its size"),
    "texts": (
        lambda path: _replace_column(path, "label", "x" * 4_000_000),
        "texts are too long for its size",
    ),
    "labels": (lambda path: _replace_column(path, "label", [1]), "has other columns"),
    "schema": (_drop_a_type, "is damaged, or no Parquet file"),
    "gone": (lambda path: path.unlink(), "lacks part-000001.parquet; run the same"),
    "plan": (
        lambda path: _change_plan(path.parent, keys=10**12, shard_size=1),
        "lacks part-000005.parquet; run",
    ),
}


@parametrize("kind", DAMAGE)
def test_what_is_damaged_or_of_another_kind(kind, shards, tmp_path):
    out, (damage, message) = shutil.copytree(shards, tmp_path / "out"), DAMAGE[kind]
    damage(out / "part-000001.parquet")
    assert message in refused(f"detokenize {out} {tmp_path}/back")


def test_another_model_and_none(shards, tmp_path):
    back = tmp_path / "back"
    assert "was made by another model" in refused(f"detokenize {shards} {back} --model cifar10")
    unknown = tmp_path / "unknown.parquet"
    shutil.copyfile(shards / "part-000000.parquet", unknown)
    _rewrite(unknown, model="0" * 32)
    said = refused(f"detokenize {unknown} {back}")
    assert "by no model inside the package (000000000000): name it with --model RUN" in said
    unknown.unlink()
    assert "has no shards (.parquet)" in refused(f"detokenize {tmp_path} {back}")
    assert "there is no such file" in refused(f"detokenize {tmp_path}/nothing {back}")
    assert not back.exists()


@pytest.fixture
def run(tiny, tmp_path_factory, tmp_path):
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


def test_shards_are_decoded_after_further_training(run, run_shards, tmp_path, monkeypatch):
    do(f"detokenize {run_shards} {tmp_path}/before --model {run}")
    tensors, meta = storage.read(RunFolder(run).model)
    storage.write(
        RunFolder(run).model, {name: tensor * 1.01 for name, tensor in tensors.items()}, meta
    )
    # a module in the current folder is not imported
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    do(f"detokenize {run_shards} {tmp_path}/after --model {run}")
    assert read_files(tmp_path / "before") == read_files(tmp_path / "after")


@pytest.fixture
def run_shards(run, tmp_path):
    images = load_images(RunFolder(run).read_config().data, "train")
    names = [tmp_path / f"{index:03d}.png" for index in range(len(images))]
    for index, name in enumerate(names):
        Image.fromarray(images.decode(index, None).pixels[0]).save(name)
    lines = [
        f"{name}\t{images.classes[label]}\n"
        for name, label in zip(names, images.labels, strict=True)
    ]
    (tmp_path / "list.txt").write_text("".join(lines))
    tokenize(f"{run} {tmp_path}/list.txt {tmp_path}/tokens --shard-size 40")
    return tmp_path / "tokens"


def _weights(run):
    folders = [prior_folder(run, level) for level in range(2)]
    return [
        storage.read(path)[0] for folder in folders for path in (folder.model, folder.saved()[0])
    ]


def test_priors_from_shards_are_those_from_the_runs_own_codes(run, run_shards, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    # does not depend on where training ends
    train_levels(tmp_path / "copy", training__schedule="constant")
    fields = GIVEN | {"prior.training.schedule": "constant", "prior.training.max_steps": "5"}
    with undrawn():
        options = " ".join(f"--{name}={value}" for name, value in fields.items())
        do(f"train-prior {run} --codes {run_shards} {options}")
        do(f"train-prior {run} --max-steps 12 --resume")  # it knows its codes
    assert all(
        same(*states) for states in zip(_weights(run), _weights(tmp_path / "copy"), strict=True)
    )
    model, config = Run(run).load()
    maps = load_shard_maps(RunFolder(run).codes, run_shards, model, config)
    digest = storage.digest(run / "model.safetensors")
    expected = load_stored(RunFolder(tmp_path / "copy").codes, digest, config, "train")
    assert all(isinstance(level, np.memmap) and level.dtype == np.uint8 for level in maps.levels)
    assert expected is not None
    assert equal(maps, expected)


def test_shards_of_another_tool(run, run_shards, tmp_path):
    """Other row groups, types and order of columns, no more metadata than has to be, labels as
    numbers.
    """
    rows = read_table(run_shards)
    wide = rows.select(["key", "height", "width"])
    for level in (2, 1):
        wide = wide.append_column(
            f"codes_{level}", rows.column(f"codes_{level}").cast(pa.large_list(pa.int64()))
        )
        for name in (f"height_{level}", f"width_{level}"):
            wide = wide.append_column(name, rows.column(name).cast(pa.int64()))
    wide = wide.append_column("label", pc.cast(rows.column("label"), pa.int64()))
    metadata = pq.read_metadata(run_shards / "part-000000.parquet").metadata
    metadata = {name: metadata[name] for name in (b"hrvqvae.format", b"hrvqvae.model")}
    file = tmp_path / "all.parquet"
    pq.write_table(wide.replace_schema_metadata(metadata), file, row_group_size=7)
    model, config = Run(run).load()
    maps = load_shard_maps(tmp_path / "a", file, model, config)
    assert equal(maps, load_shard_maps(tmp_path / "b", run_shards, model, config))
    assert maps.classes == tuple("0123456789")
    names = json.dumps([f"digit {label}" for label in reversed(range(10))])
    _rewrite(file, classes=names)
    relabelled = load_shard_maps(tmp_path / "a", file, model, config)
    assert relabelled.classes == tuple(json.loads(names))  # numbers index the names
    assert relabelled.labels.tolist() == rows.column("label").cast(pa.int64()).to_pylist()


def test_shards_that_change_are_laid_out_anew(run, run_shards, tmp_path):
    model, config = Run(run).load()
    first = load_shard_maps(tmp_path / "codes", run_shards, model, config)
    laid_out = (tmp_path / "codes" / "shards.json").stat().st_mtime_ns
    load_shard_maps(tmp_path / "codes", run_shards, model, config)
    assert (tmp_path / "codes" / "shards.json").stat().st_mtime_ns == laid_out
    assert len(first) == 96
    assert (
        len(load_shard_maps(tmp_path / "codes", run_shards / "part-000002.parquet", model, config))
        == 16
    )


@parametrize(
    "change, message",
    [
        (lambda path: _replace_column(path, "codes_1", [3] * 49), "has codes 0 to 2 there"),
        (
            lambda path: _replace_column(path, "label", lambda old: [None, *old.to_pylist()[1:]]),
            "1 of 96 images have no",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged, or no Parquet file"),
    ],
)
def test_codes_that_train_no_prior(change, message, run, run_shards):
    change(run_shards / "part-000001.parquet")
    assert message in refused(f"train-prior {run} --codes {run_shards} --max-steps 1")
    assert not [
        path.name for suffix in ("npy", "json") for path in RunFolder(run).codes.glob(f"*.{suffix}")
    ]
    assert not prior_folder(run, 0).begun()


def test_codes_of_another_model_or_size(run, shards, tmp_path):
    wide = digit_files(tmp_path / "wide", 3, size=20)
    tokenize(f"{run} {wide} {tmp_path}/tokens --full-size")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"no image")
    tokenize(f"{run} {tmp_path}/broken {tmp_path}/none")
    size = "priors are trained on 7x7, of images of 12x12 pixels: make the shards without "
    none = "none holds codes of no image; make shards of images that can be read"
    for options, message in (
        (f"{shards}", "holds codes of another model"),
        (f"{shards} --prior.flip true", "need the run's own images"),
        (f"{shards} --prior.shifts 1", "need the run's own images"),
        (f"{tmp_path}/tokens", size),
        (f"{tmp_path}/none", none),
    ):
        assert message in refused(f"train-prior {run} --max-steps 1 --codes {options}")


def test_levels_that_were_begun_with_other_codes(run, run_shards):
    train_levels(run, 1, training__max_steps="1")
    train_levels(run, 2, training__max_steps="1", codes=str(run_shards))
    with input_error("begun with different --prior.codes: resume each alone, with --level L"):
        resolve_priors(run, None, {}, resume=True)
    with input_error(r"--prior.codes is .* there, elsewhere here"):
        resolve_priors(run, 2, {"prior.codes": "elsewhere"}, resume=True)
