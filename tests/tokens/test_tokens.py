"""Images to shards of codes, however often it is stopped; shards read back: damaged, of other
tools, by priors.
"""

import json
import multiprocessing
import os
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
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
from hrvqvae.tokens.tokenize import tokenize as write_shards
from hrvqvae.training.prior import resolve_priors
from hrvqvae.utils.outputs import TEMPORARY
from tests.checkpoints.conftest import change
from tests.checkpoints.test_damage import equal
from tests.conftest import (
    cells_of,
    check_refusals,
    do,
    drawn_digits,
    input_error,
    names_in,
    parametrize,
    read_json,
    run_python,
    same,
    shared_fixture,
    write_picture,
)
from tests.data.stored import folder_of, write_tar
from tests.kills import Killed, Kills, in_another_process
from tests.trained_run import GIVEN, as_options, load_stored, train_levels, trained_copy

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def digit_files(folder, count, size=28, seed=1):
    for index, (pixels, label) in enumerate(zip(*drawn_digits(count, seed, size), strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def tokenize(line, workers=0):
    do(f"tokenize {line} --workers {workers}")


def parts_of(folder):
    return sorted(Path(folder).glob("*.parquet"))


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
    parts = [pq.read_metadata(path) for path in parts_of(shards)]
    assert [part.num_rows for part in parts] == [20] * 4 + [10]
    about = {name.decode(): value.decode() for name, value in parts[4].metadata.items()}
    assert about["hrvqvae.format"] == "1"
    assert about["hrvqvae.model"] == model.entropy_model.model
    assert about["hrvqvae.version"] == hrvqvae.__version__
    assert json.loads(about["hrvqvae.config"])["model"]["quantizer"]["levels"] == 3
    assert json.loads(about["hrvqvae.classes"]) == names_in(digits)


def test_random_kills(shards, digits, monkeypatch):
    killer = Kills(5)
    out = Path("out")
    command = f"mnist {digits} out --shard-size 20"
    writer = pq.ParquetWriter
    calls = [(os, "fsync"), (Path, "replace"), (Tokenizer, "_encode")]
    calls += [(writer, "write_table"), (writer, "add_key_value_metadata")]
    with monkeypatch.context() as patched:
        killer.watch(patched, calls)
        kills = 0
        while kills < 12:
            killer.arm(16)
            try:
                tokenize(command)
            except Killed:
                kills += 1
                left = out / f"{TEMPORARY}left-part-000001.parquet"
                left.write_bytes(b"what a real kill leaves")
                for path in out.glob("part-*.parquet"):
                    # a shard is whole or not there
                    assert path.read_bytes() == (shards / path.name).read_bytes()
                if not killer.draw.randrange(4):  # or nothing would be left to kill
                    shutil.rmtree(out)
    tokenize(command)
    assert read_files(out) == read_files(shards)
    assert not list(out.glob(f"{TEMPORARY}*"))


def test_a_worker_that_is_killed_while_codes_are_made_is_one_line(digits):
    killed = RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    with patch.object(Tokenizer, "_encode", side_effect=killed):
        check_refusals(f"tokenize mnist {digits} out --workers 0 | in this process: --workers 0")


def test_workers_write_the_missing_shards(digits, shards):
    """Finished shards are not touched. A manifest without an effort is of effort 0."""
    out = shutil.copytree(shards, Path("out"))
    manifest = read_json(out / "_manifest.json")
    assert manifest.pop("effort") == 0
    (out / "_manifest.json").write_text(json.dumps(manifest))
    for number in (1, 3):
        (out / f"part-00000{number}.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in parts_of(out)}
    tokenize(f"mnist {digits} out --shard-size 20", workers=2)
    assert read_files(out) == read_files(shards)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_broken_images_are_listed(digits, shards, capsys):
    folder = shutil.copytree(digits, Path("digits"))
    names = column(read_table(shards), "key")
    broken = [names[3], names[30], *names[40:60]]  # one whole shard among them
    for name in broken:
        (folder / name).write_bytes((digits / name).read_bytes()[:40])
    tokenize("mnist digits out --shard-size 20")
    assert "broken images left out: 22 of 90, listed in" in capsys.readouterr().err
    list_of_broken = Path("out/_broken.jsonl")
    listed = [json.loads(line) for line in list_of_broken.read_text().splitlines()]
    assert [image["key"] for image in listed] == broken
    assert {image["error"] for image in listed} == {"is not a readable PNG, JPEG or WebP image"}
    assert column(read_table("out"), "key") == [name for name in names if name not in broken]
    parts = read_files("out")
    for name in broken[:2]:
        shutil.copyfile(digits / name, folder / name)
    for _ in range(2):
        tokenize("mnist digits out --retry-broken")
        assert read_files("out").keys() - parts.keys() == {"retry-000000.parquet"}
        assert len(list_of_broken.read_text().splitlines()) == 20
    for name in broken:
        shutil.copyfile(digits / name, folder / name)
    Path("out/retry-000000.parquet").rename("out/retry-000001.parquet")
    parts = read_files("out")
    tokenize("mnist digits out --retry-broken")  # takes the first free number
    assert not list_of_broken.exists()
    assert read_files("out").items() >= parts.items()
    assert read_table("out").sort_by("key").equals(read_table(shards).sort_by("key"))

    # a shard that is made anew has read an image that a retry shard names as broken
    shutil.copytree("out", "anew")
    for name in ("part-000002", "retry-000000"):
        Path(f"anew/{name}.parquet").unlink()
    tokenize("mnist digits anew --retry-broken")
    assert sorted(column(read_table("anew"), "key")) == sorted(names)

    # a shard that is made anew leaves out the images of retry shards
    rows = read_table("out").num_rows
    Path("out/part-000000.parquet").unlink()
    tokenize("mnist digits out")
    tokenize("mnist digits out")
    assert read_table("out").num_rows == rows
    assert sorted(column(read_table("out"), "key")) == sorted(names)

    # an image of a retry shard that is replaced later
    (folder / broken[0]).write_bytes((digits / broken[0]).read_bytes() + b"more")
    check_refusals("tokenize mnist digits out | made of other images of the same names")


def _change_plan(out, **changes):
    plan = read_json(out / "_manifest.json")
    (out / "_manifest.json").write_text(json.dumps(plan | changes))


@parametrize(
    "options, changes, message",
    cells_of("""
        --effort 0 | {"model": "00000000000000000000000000000000"} | another model: 000000000000
        --effort 0 | {"shard_size": 0} | _manifest.json is damaged
        --effort 0 | {"keys": 90.5} | _manifest.json is damaged
        --effort 0 | {"more": 0} | _manifest.json is damaged
        --shard-size 30 | {} | was begun with another shard_size: 20
        --full-size | {} | was begun with another image_size: 28
        --shard-size 0 | {} | it must be at least 1
    """),
)
def test_a_folder_that_was_begun_otherwise(options, changes, message, shards, digits):
    out = shutil.copytree(shards, Path("out"))
    _change_plan(out, **json.loads(changes))
    before = read_files(out)
    check_refusals(f"tokenize mnist {digits} out {options} | {message}")
    assert read_files(out) == before


def test_a_beam_of_version_1_0_0_is_not_mixed_with_another(tmp_path, monkeypatch):
    """It searched each group of levels alone."""
    folder = digit_files(tmp_path / "digits", 4)
    command = f"thumb {folder} out --shard-size 2 --beam 2"
    with monkeypatch.context() as patched:
        patched.setattr("hrvqvae.tokens.tokenize.__version__", "1.0.0")
        tokenize(command)
    tokenize(command)  # nothing is missing
    Path("out/part-000001.parquet").unlink()
    check_refusals(f"tokenize {command} | was begun by hrvqvae 1.0.0, whose --beam searched other")


def test_damaged_shards_and_shards_without_a_manifest_are_kept(shards, digits):
    out = shutil.copytree(shards, Path("out"))
    _cut(out / "part-000001.parquet")
    before = read_files(out)
    command = f"tokenize mnist {digits} out"
    check_refusals(f"{command} | part-000001.parquet is damaged")
    (out / "_manifest.json").unlink()
    check_refusals(f"{command} | holds .parquet files, but no _manifest.json")
    assert read_files(out) == before


def test_more_effort_gives_other_shards_of_less_error(shards, digits):
    options = f"mnist {digits} out --shard-size 20"
    tokenize(f"{options} --effort 1")
    errors = []
    model = hrvqvae.load("mnist")
    images = [read_image(path, 1) for path in sorted(digits.rglob("*.png"))]
    for folder in (shards, "out"):
        decoded = model.decode(stack_codes(read_table(folder), 3), size=(28, 28))
        errors.append(float((decoded - torch.from_numpy(np.stack(images)) / 255).square().sum()))
    assert errors[1] < 0.98 * errors[0]
    check_refusals(f"tokenize {options} | was begun with another effort: 1, not 0")


def test_other_images_and_none(shards, digits):
    more = shutil.copytree(digits, Path("more"))
    write_picture(more / "0" / "more.png", 1)
    Path("empty").mkdir()
    Path("none.txt").write_text("\n\n")
    Path("twice.txt").write_text("a.png\n./a.png\n")
    with in_another_process(Path("held").absolute()) as pid:
        check_refusals(f"tokenize mnist more held | is in use by another process (pid {pid})")
    numbers = "number of images: 90, not 91; choose another folder"
    check_refusals(f"""
        tokenize mnist more {shards} | was begun with another {numbers}
        tokenize mnist empty out | has no image
        tokenize mnist none.txt out | names no image
        tokenize mnist twice.txt out | two images named a.png
        tokenize mnist nowhere out | no such file
        tokenize no-such-model {digits} out | no-such-model
    """)
    assert not Path("out").exists()


def test_arguments_from_python_are_checked(digits):
    options = {"full_size": False, "device": "cpu", "retry_broken": False, "beam": None}
    options |= {"shard_size": 50, "workers": 0, "engine": "local", "effort": 0}
    for wrong, message in (
        ({"shard_size": -1}, "shard_size is -1; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"engine": "x"}, "engine is 'x'; it must be local or ray"),
    ):
        with input_error(message):
            write_shards("mnist", digits, Path("out"), **options | wrong)
    assert not Path("out").exists()
    assert write_shards("mnist", str(digits), "out", **options).images == 90


def test_images_that_were_replaced_are_noticed(tmp_path):
    """Under their old names, after their shard was written; images of a shard that is not there may
    change.
    """
    folder = digit_files(tmp_path / "digits", 4)
    first, *_, last = sorted(folder.rglob("*.png"))
    tokenize("mnist digits out --shard-size 2")
    Path("out/part-000001.parquet").unlink()
    other = Image.new("L", (28, 28), 9)
    other.save(last)
    tokenize("mnist digits out")
    other.save(first)
    before = read_files("out")
    told = "was made of other images of the same names; choose another folder"
    check_refusals(f"tokenize mnist digits out | part-000000.parquet {told}")
    assert read_files("out") == before


def test_labels_that_are_missing_wrong_or_named_alike(caplog):
    """Either each image keeps its label, or a note says why no image has one."""
    write_picture(Path("partly/a/0.png"), 0, (28, 28))
    write_picture(Path("partly/1.png"), 1, (28, 28))
    png = Path("partly/1.png").read_bytes()
    for number, folder in enumerate(("train/cat", "test/dog", "unlabeled")):
        write_picture(Path(f"stl/{folder}/{number}.png"), number, (28, 28))
    Path("some.txt").write_text("partly/a/0.png\tcat\npartly/1.png")
    Path("all.txt").write_text("partly/a/0.png\tcat\npartly/1.png\tdog")

    def write_parquet(path, labels, names=()):
        image = pa.array([{"bytes": png, "path": None}] * len(labels))
        table = pa.table({"image": image, "label": pa.array(labels)})
        info = {"info": {"features": {"label": {"names": names}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)

    write_parquet("null.parquet", ["x", None, "y"])
    write_parquet("numbers.parquet", [-1, -1], ["cat", "dog"])
    write_parquet("alike.parquet", [0, 1, 2, 1], ["crane", "drum", "crane"])
    for source, reason in (
        ("partly", "1 image outside of class folders"),
        ("stl", "1 image outside of the splits"),
        ("some.txt", "1 line without a label"),
        ("null.parquet", "1 image without a label"),
        ("numbers.parquet", "row 0 has label -1, but there are 2 class names"),
    ):
        out = f"out-{source}"
        tokenize(f"mnist {source} {out}")
        assert set(column(read_table(out), "label")) == {None}
        place = f"{Path(source).absolute()}: " if reason.startswith("row") else ""
        assert f"encoded without labels: {place}{reason}" in caplog.text
    tokenize("mnist alike.parquet alike")
    assert column(read_table("alike"), "label") == [0, 1, 2, 1]
    caplog.clear()
    tokenize("mnist all.txt listed")
    assert column(read_table("listed"), "label") == ["dog", "cat"]  # in the order of the keys
    assert "without labels" not in caplog.text
    metadata = pq.read_metadata("alike/part-000000.parquet").metadata
    assert json.loads(metadata[b"hrvqvae.classes"]) == ["crane", "drum", "crane"]


def test_each_kind_of_conversion_is_counted(caplog):
    for index, mode in enumerate(("RGB", "L", "RGB", "CMYK")):
        write_picture(Path(f"images/{index}.jpg"), index, (28, 28), mode)
    tokenize("mnist images out")
    told = "images converted: 3 (1 CMYK to RGB, colour to greyscale; 2 colour to greyscale)"
    assert told in caplog.text


def test_the_second_of_several_processes_prints_no_notice(monkeypatch, capsys):
    write_picture(Path("images/0.jpg"), 0, (28, 28))
    monkeypatch.setenv("RANK", "1")
    tokenize("mnist images out")
    check_refusals("tokenize mnist nowhere out | no such file")
    assert "converted" not in capsys.readouterr().err


def test_spawned_workers_read_for_all_shards(digits, shards):
    """Workers for each shard would import everything anew. An actor of Ray writes shards one by
    one, as here.
    """
    workers = set()
    options = {"workers": 1, "device": "cpu", "full_size": False, "beam": None, "effort": 0}
    with patch.object(batches, "DataLoader", partial(DataLoader, multiprocessing_context="spawn")):
        tokenizer = Tokenizer("mnist", load_keyed_images(digits), **options)
        for index in range(3):
            path = Path(f"part-{index:06d}.parquet")
            tokenizer.write(path, range(20 * index, 20 * index + 20))
            workers |= {process.pid for process in multiprocessing.active_children()}
            assert path.read_bytes() == (shards / path).read_bytes()
    assert len(workers) == 1


def test_images_at_their_own_sizes(monkeypatch):
    monkeypatch.setattr("hrvqvae.tokens.tokenize._GROUP_CODES", 3000)
    sizes = [(40, 30), (40, 30), (28, 50), (61, 61), (40, 30)]  # width, height
    for index, size in enumerate(sizes):
        write_picture(Path(f"pictures/{index}.png"), index, size)
    tokenize("cifar10 pictures out --full-size")
    rows = read_table("out")
    model = hrvqvae.load("cifar10")
    assert [*zip(column(rows, "width"), column(rows, "height"), strict=True)] == sizes
    assert column(rows, "label") == [None] * 5
    do("detokenize out back")
    codes = [read_codes(rows, level) for level in (1, 2, 3)]
    for index, (width, height) in enumerate(sizes):
        pixels = read_image(Path(f"pictures/{index}.png"), 3)
        expected = model.encode(pixels[None])
        assert same([torch.from_numpy(level[index][None]) for level in codes], expected)
        assert read_image(Path(f"back/{index}.png"), 3).shape == (3, height, width)
    # the first ends soon
    assert pq.read_metadata("out/part-000000.parquet").num_row_groups == 2
    monkeypatch.setattr("hrvqvae.tokens.tokenize.MOST_VALUES", 1000)
    command = "tokenize cifar10 pictures none --full-size --workers 0"
    check_refusals(f"{command} | codes, too many for a shard")


def test_names_of_a_tar_become_names_of_files(tmp_path):
    """They need not be UTF-8, and may differ by their suffix alone."""
    Path("mnist").mkdir()  # no run, but perhaps the data
    (image,) = digit_files(tmp_path / "in", 1).rglob("*.png")
    names = [os.fsdecode(b"caf\xe9.png"), "a.png", "a.jpg"]
    write_tar("a.tar", dict.fromkeys(names, image.read_bytes()))
    tokenize("mnist a.tar out")
    assert column(read_table("out"), "key") == ["a.jpg", "a.png", "caf\\udce9.png"]
    do("detokenize out back")
    assert names_in(Path("back")) == ["a-2.png", "a.png", "caf_udce9.png"]


def test_a_line_of_a_list_ends_nowhere_else():
    names = ["a\u2028b.png", "c\x85d.png", "e\x0bf.png", "g.png"]
    path = Path("list.txt")
    path.write_bytes("\r\n".join([*names[:3], "../g.png", ""]).encode())
    source = load_keyed_images(path).source
    assert [source.name(row) for row in range(len(source))] == names


def test_lists_and_what_training_takes(digits, shards):
    rows = read_table(shards)
    names = column(rows, "key")
    labels = column(rows, "label")
    lines = [f"{digits / name}\t{label}\n" for name, label in zip(names, labels, strict=True)]
    Path("list.txt").write_text("".join(reversed(lines)))
    tokenize("mnist list.txt listed")
    listed = read_table("listed")
    assert column(listed, "key") == [f"{digits / name}".lstrip("/") for name in names]
    pixels = np.concatenate([read_image(digits / name, 1) for name in names])
    np.savez("digits.npz", images=pixels, labels=np.array(labels, np.int64))
    tokenize("mnist digits.npz arrays")
    arrays = read_table("arrays")
    Path("folder").mkdir()
    shutil.move("digits.npz", "folder")
    check_refusals("""
        tokenize mnist folder folder/out | folder/out lies in folder
        tokenize mnist folder/*.* folder | folder lies in folder/*.*
    """)
    assert names_in(Path("folder")) == ["digits.npz"]
    tokenize("mnist folder folder/.out")
    tokenize("mnist folder/*.* folder/below")
    order = [int("".join(filter(str.isdigit, key))) for key in column(arrays, "key")]
    for table in (listed, arrays.take(np.argsort(order))):
        assert list(map(str, column(table, "label"))) == labels
        assert same(stack_codes(table, 3), stack_codes(rows, 3))


ON_RAY = """
import sys
from types import SimpleNamespace as Fake
import os
from hrvqvae.cli import main
from hrvqvae.tokens import tokenize

os.environ["RAY_ADDRESS"] = "head"
main([*sys.argv[1:4], "unreached", "--engine", "ray"])
del os.environ["RAY_ADDRESS"]
import ray
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
    ended = run_python("-c", ON_RAY, *command, env=environment)
    assert "hrvqvae: Ray can't be started on head (" in ended.stderr
    printed = ended.stdout
    assert "90 images in 5 shards" in printed
    assert "no/run: there is no such run folder" in printed  # why Ray stopped
    assert read_files("out") == read_files(shards)


@parametrize("levels", [3, 1])
def test_back_to_images(levels, shards):
    do(f"detokenize {shards} back --levels {levels}")
    model = hrvqvae.load("mnist")
    rows = read_table(shards)
    images = (model.decode(stack_codes(rows, levels), levels, (28, 28)) * 255).round()
    for key, image in zip(column(rows, "key"), images, strict=True):
        with Image.open(f"back/{key}") as written:
            assert written.format == "PNG"
            assert written.mode == "L"
            assert np.array_equal(np.asarray(written), image[0])


def test_what_exists_is_written_over_by_force_alone(shards, tmp_path):
    mine = tmp_path / column(read_table(shards), "key")[25]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"an original")
    check_refusals(f"detokenize {shards} {tmp_path} | {mine} exists already")
    assert mine.read_bytes() == b"an original"
    assert list(tmp_path.rglob("*.png")) == [mine]  # nothing is written before all names are free
    do(f"detokenize {shards} . --force")
    assert mine.read_bytes().startswith(b"\x89PNG")


def _rewrite(path, change=lambda rows: rows, **metadata):
    with pq.ParquetFile(path) as file:
        values = {
            name: value for name, value in file.metadata.metadata.items() if name != b"ARROW:schema"
        }
        rows = file.read()
    values |= {f"hrvqvae.{name}".encode(): value.encode() for name, value in metadata.items()}
    pq.write_table(change(rows).replace_schema_metadata(values), path)


def _replace_column(name, values, path):
    def change(rows):
        column = values(rows.column(name)) if callable(values) else [values] * len(rows)
        return rows.set_column(rows.column_names.index(name), name, pa.array(column))

    _rewrite(path, change)


def _lose_first(values):
    return [None, *values.to_pylist()[1:]]


def _cut(path):
    os.truncate(path, 300)


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


UNREADABLE = "is damaged, or no Parquet file"
DAMAGE = [
    (_cut, UNREADABLE),
    (_flip_byte, UNREADABLE),
    (
        lambda path: path.write_bytes(path.read_bytes().replace(b"height_2", b"height_\xff")),
        UNREADABLE,
    ),
    (_drop_a_type, UNREADABLE),
    (partial(_rewrite, format="2"), "is of version 2 of the format"),
    (partial(_rewrite, model="0" * 32), "are of two models"),
    (partial(_rewrite, broken="["), "has damaged metadata"),
    (partial(pq.write_table, pa.table({"a": [1]})), "is no shard of codes: its metadata has no"),
    (partial(_rewrite, change=lambda rows: rows.drop_columns(["codes_2"])), "has other columns"),
    (partial(_replace_column, "height_2", 9), "has 256 codes of level 2 for 9x16"),
    (partial(_replace_column, "codes_1", _lose_first), "has nulls"),
    (partial(_replace_column, "codes_1", [0.5] * 256), "has other columns than docs/tokens.md"),
    (partial(_replace_column, "codes_3", [4] * 256), "codes of"),
    (partial(_rewrite, change=_add_many_codes), "values, too many for its size"),
    (partial(_replace_column, "label", "x" * 4_000_000), "texts are too long for its size"),
    (partial(_replace_column, "label", [1]), "has other columns"),
    (Path.unlink, "lacks part-000001.parquet; run the same"),
    (
        lambda path: _change_plan(path.parent, keys=10**12, shard_size=1),
        "lacks part-000005.parquet; run",
    ),
]


@parametrize("damage, message", DAMAGE)
def test_what_is_damaged_or_of_another_kind(damage, message, shards):
    shutil.copytree(shards, "out")
    damage(Path("out/part-000001.parquet"))
    check_refusals(f"detokenize out back | {message}")


def test_another_model_and_none(shards, tmp_path):
    unknown = tmp_path / "unknown" / "0.parquet"
    unknown.parent.mkdir()
    shutil.copyfile(shards / "part-000000.parquet", unknown)
    _rewrite(unknown, model="0" * 32)
    of_none = "by no model inside the package (000000000000): name it with --model RUN"
    check_refusals(f"""
        detokenize {shards} back --model cifar10 | was made by another model
        detokenize {unknown} back | {of_none}
        detokenize . back | has no shards (.parquet)
        detokenize nothing back | there is no such file
    """)
    assert not Path("back").exists()


@pytest.fixture
def run(tiny, tmp_path_factory, tmp_path):
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


def test_shards_are_decoded_after_further_training(run, run_shards):
    do(f"detokenize {run_shards} before --model {run}")
    change(run)
    # a module in the current folder is not imported
    Path("json.py").write_text("raise SystemExit")
    do(f"detokenize {run_shards} after --model {run}")
    assert folder_of(Path("before")) == folder_of(Path("after"))


@pytest.fixture
def run_shards(run, tmp_path):
    images = load_images(RunFolder(run).read_config().data, "train")
    with Path("list.txt").open("w") as file:
        for index, label in enumerate(images.labels):
            name = tmp_path / f"{index:03d}.png"
            Image.fromarray(images.decode(index, None).pixels[0]).save(name)
            file.write(f"{name}\t{images.classes[label]}\n")
    tokenize(f"{run} list.txt tokens --shard-size 40")
    return tmp_path / "tokens"


def lay_out(run, shards, folder="codes"):
    """Return the maps of shards for a run."""
    return load_shard_maps(Path(folder), shards, *Run(run).load())


def _weights(run):
    folders = [prior_folder(run, level) for level in range(2)]
    return [
        storage.read(path)[0] for folder in folders for path in (folder.model, folder.saved()[0])
    ]


def test_priors_from_shards_are_those_from_the_runs_own_codes(run, run_shards, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    # does not depend on where training ends
    train_levels(copy, changes="training.schedule=constant")
    fields = GIVEN | {"prior.training.schedule": "constant", "prior.training.max_steps": "5"}
    do(f"train-prior {run} --codes {run_shards} {as_options(fields)}")
    do(f"train-prior {run} --max-steps 12 --resume")  # it knows its codes
    assert all(map(same, _weights(run), _weights(copy)))
    trained = Run(run)
    maps = lay_out(run, run_shards, trained.folder.codes)
    expected = load_stored(RunFolder(copy).codes, trained.digest, trained.config, "train")
    assert all(isinstance(level, np.memmap) and level.dtype == np.uint8 for level in maps.levels)
    assert equal(maps, expected)


def test_shards_of_another_tool(run, run_shards):
    """Other row groups, types and order of columns, no more metadata than has to be, labels as
    numbers.
    """
    rows = read_table(run_shards)
    whole = pa.int64()
    codes = pa.large_list(whole)
    kinds = {"key": pa.string(), "codes_1": codes, "codes_2": codes}
    names = reversed(rows.column_names)
    wide = pa.table({name: rows.column(name).cast(kinds.get(name, whole)) for name in names})
    metadata = pq.read_metadata(parts_of(run_shards)[0]).metadata
    metadata = {name: metadata[name] for name in (b"hrvqvae.format", b"hrvqvae.model")}
    file = Path("all.parquet")
    pq.write_table(wide.replace_schema_metadata(metadata), file, row_group_size=7)
    maps = lay_out(run, file)
    assert equal(maps, lay_out(run, run_shards, "others"))
    assert maps.classes == tuple("0123456789")
    names = [f"digit {label}" for label in reversed(range(10))]
    _rewrite(file, classes=json.dumps(names))
    relabelled = lay_out(run, file)
    assert relabelled.classes == tuple(names)  # numbers index the names
    assert relabelled.labels.tolist() == column(wide, "label")


def test_shards_that_change_are_laid_out_anew(run, run_shards):
    assert len(lay_out(run, run_shards)) == 96
    about = Path("codes/shards.json")
    laid_out = about.stat().st_mtime_ns
    lay_out(run, run_shards)
    assert about.stat().st_mtime_ns == laid_out
    assert len(lay_out(run, parts_of(run_shards)[2])) == 16


@parametrize(
    "change, message",
    [
        (partial(_replace_column, "codes_1", [3] * 49), "has codes 0 to 2 there"),
        (partial(_replace_column, "label", _lose_first), "1 of 96 images have no"),
        (_cut, UNREADABLE),
    ],
)
def test_codes_that_train_no_prior(change, message, run, run_shards):
    change(run_shards / "part-000001.parquet")
    check_refusals(f"train-prior {run} --codes {run_shards} --max-steps 1 | {message}")
    assert not [*RunFolder(run).codes.glob("*.npy"), *RunFolder(run).codes.glob("*.json")]
    assert not prior_folder(run, 0).begun()


def test_codes_of_another_model_or_size(run, shards, tmp_path):
    digit_files(tmp_path / "wide", 3, size=20)
    tokenize(f"{run} wide tokens --full-size")
    Path("broken").mkdir()
    Path("broken/0.png").write_bytes(b"no image")
    tokenize(f"{run} broken none")
    size = "priors are trained on 7x7, of images of 12x12 pixels: make the shards without"
    command = f"train-prior {run} --max-steps 1 --codes"
    check_refusals(f"""
        {command} {shards} | holds codes of another model
        {command} {shards} --prior.flip true | need the run's own images
        {command} {shards} --prior.shifts 1 | need the run's own images
        {command} {shards} --prior.variants 2 | need the run's own images
        {command} tokens | {size}
        {command} none | none holds codes of no image; make shards of images that can be read
    """)


def test_levels_that_were_begun_with_other_codes(run, run_shards):
    train_levels(run, 1, "training.max_steps=1")
    train_levels(run, 2, f"training.max_steps=1 codes={run_shards}")
    with input_error("begun with different --prior.codes: resume each alone, with --level L"):
        resolve_priors(run, None, {}, resume=True)
    with input_error(r"--prior.codes is .* there, elsewhere here"):
        resolve_priors(run, 2, {"prior.codes": "elsewhere"}, resume=True)
