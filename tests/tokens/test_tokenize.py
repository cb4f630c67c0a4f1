"""Images to shards of codes: those of the model, each image once, however often it is stopped."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.data.images import read_image
from hrvqvae.tokens.tokenize import Tokenizer
from hrvqvae.utils.files import TEMPORARY
from tests.conftest import refused, write_picture
from tests.kills import Killed, Kills, in_another_process
from tests.tokens.made import code_arrays, digit_files, files, table, tokenize


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 drawn digits in class folders."""
    return digit_files(tmp_path_factory.mktemp("digits"), 90)


@pytest.fixture(scope="module")
def shards(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards, which no test changes."""
    out = tmp_path_factory.mktemp("shards") / "out"
    tokenize("mnist", digits, out, "--shard-size", 20)
    return out


def test_shards_hold_the_codes_of_the_model(shards: Path, digits: Path) -> None:
    model = hrvqvae.load("mnist")
    names = sorted(path.relative_to(digits).as_posix() for path in digits.rglob("*.png"))
    rows = table(shards)
    assert rows.column("key").to_pylist() == names
    assert rows.column("label").to_pylist() == [name.split("/")[0] for name in names]
    assert set(rows.column("height").to_pylist()) == set(rows.column("width").to_pylist()) == {28}
    pixels = torch.from_numpy(np.stack([read_image(digits / name, 1) for name in names]))
    for level, codes in enumerate(model.encode(pixels), start=1):
        assert str(rows.schema.field(f"codes_{level}").type.value_type) == "uint8"
        assert np.array_equal(np.stack(code_arrays(rows, level)), codes.numpy())
    assert [pq.read_metadata(path).num_rows for path in sorted(shards.glob("*.parquet"))] == [20, 20, 20, 20, 10]
    told = pq.read_metadata(shards / "part-000004.parquet").metadata
    assert told[b"hrvqvae.format"] == b"1"
    assert told[b"hrvqvae.model"].decode() == model.codec.model
    assert told[b"hrvqvae.version"].decode() == hrvqvae.__version__
    assert json.loads(told[b"hrvqvae.config"])["model"]["quantizer"]["levels"] == 3
    assert json.loads(told[b"hrvqvae.classes"]) == sorted({path.name for path in digits.iterdir()})


def test_one_that_is_finished_is_left_as_it_is(shards: Path, digits: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    tokenize("mnist", digits, shards)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")} == before


def test_thirty_random_kills(shards: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Kills(5)
    with monkeypatch.context() as patched:
        killer.watch(patched, (
            (os, "fsync"), (Path, "replace"), (pq.ParquetWriter, "write_table"),
            (pq.ParquetWriter, "add_key_value_metadata"), (Tokenizer, "_coded"),
        ))  # fmt: skip
        kills = 0
        while kills < 30:
            killer.arm(16)
            try:
                tokenize("mnist", digits, tmp_path / "out", "--shard-size", 20)
            except Killed:
                kills += 1
                (tmp_path / "out" / f"{TEMPORARY}left-part-000001.parquet").write_bytes(b"what a real kill leaves")
                for path in (tmp_path / "out").glob("part-*.parquet"):
                    assert path.read_bytes() == (shards / path.name).read_bytes(), "a shard is whole or not there"
                if not killer.draw.randrange(4):  # or nothing would be left to kill
                    shutil.rmtree(tmp_path / "out")
    tokenize("mnist", digits, tmp_path / "out", "--shard-size", 20)
    assert files(tmp_path / "out") == files(shards)
    assert not list((tmp_path / "out").glob(f"{TEMPORARY}*"))


def test_workers_go_on_with_what_is_there(digits: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    (out / "part-000001.parquet").unlink()
    (out / "part-000003.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert main(["tokenize", "mnist", str(digits), str(out), "--shard-size", "20", "--workers", "2"]) == 0
    assert files(out) == files(shards)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "finished shards are not touched"


def test_broken_images_are_listed_and_can_be_tried_again(
    digits: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "digits", tmp_path / "out"
    shutil.copytree(digits, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    broken = [names[3], names[30], *names[40:60]]  # one whole shard among them
    for name in broken:
        (folder / name).write_bytes((digits / name).read_bytes()[:40])
    tokenize("mnist", folder, out, "--shard-size", 20)
    assert "broken images left out: 22 of 90, listed in" in capsys.readouterr().err
    listed = [json.loads(line) for line in (out / "_broken.jsonl").read_text().splitlines()]
    assert [one["key"] for one in listed] == broken
    assert all(one["error"] == "is not a readable PNG, JPEG or WebP image" for one in listed)
    parts = files(out)
    assert table(out).column("key").to_pylist() == [name for name in names if name not in broken]
    for name in broken[:2]:
        shutil.copyfile(digits / name, folder / name)
    for _ in range(2):
        tokenize("mnist", folder, out, "--retry-broken")
        assert [name for name in files(out) if name not in parts] == ["retry-000000.parquet"]
        assert len((out / "_broken.jsonl").read_text().splitlines()) == 20
    for name in broken:
        shutil.copyfile(digits / name, folder / name)
    first = (out / "retry-000000.parquet").rename(out / "retry-000001.parquet").read_bytes()
    tokenize("mnist", folder, out, "--retry-broken")
    assert (out / "retry-000001.parquet").read_bytes() == first, "the first free number is taken"
    assert not (out / "_broken.jsonl").exists()
    assert {name: files(out)[name] for name in parts} == parts
    assert table(out).sort_by("key").equals(table(shards).sort_by("key"))


def _plan(**changes: object) -> Callable[[Path], object]:
    """Changes the plan of a folder."""

    def change(out: Path) -> None:
        plan = json.loads((out / "_manifest.json").read_text())
        (out / "_manifest.json").write_text(json.dumps(plan | changes))

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_plan(model="0" * 32), (), "was begun with another model: 000000000000"),
        (_plan(shard_size=0), (), "_manifest.json is damaged"),
        (_plan(more=0), (), "_manifest.json is damaged"),
        (lambda out: os.truncate(out / "part-000001.parquet", 300), (), "part-000001.parquet is damaged or cut short"),
        (lambda out: (out / "_manifest.json").unlink(), (), "holds .parquet files, but no _manifest.json"),
        (None, ("--shard-size", 30), "was begun with another --shard-size: 20, not 30"),
        (None, ("--full-size",), "was begun with images of another size"),
        (None, ("--shard-size", 0), "it must be at least 1"),
    ],
)
def test_a_folder_that_was_begun_otherwise(
    change: Callable[[Path], object] | None, options: tuple[Any, ...], message: str, shards: Path, digits: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    if change:
        change(out)
    before = files(out)
    assert message in refused(["tokenize", "mnist", digits, out, *options], capsys)
    assert files(out) == before


def test_other_images_and_none(shards: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tmp_path / "more"
    shutil.copytree(digits, more)
    write_picture(more / "0" / "more.png", 1)
    said = refused(["tokenize", "mnist", more, shards], capsys)
    assert "was begun with other images: 90, not 91; choose another folder" in said
    (tmp_path / "empty").mkdir()
    assert "has no image" in refused(["tokenize", "mnist", tmp_path / "empty", tmp_path / "out"], capsys)
    (tmp_path / "none.txt").write_text("\n\n")
    assert "names no image" in refused(["tokenize", "mnist", tmp_path / "none.txt", tmp_path / "out"], capsys)
    (tmp_path / "twice.txt").write_text("a.png\n./a.png\n")
    assert "two images named a.png" in refused(["tokenize", "mnist", tmp_path / "twice.txt", tmp_path / "out"], capsys)
    refused(["tokenize", "mnist", tmp_path / "nowhere", tmp_path / "out"], capsys)
    refused(["tokenize", "no-such-model", digits, tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_two_writers(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_another_process(tmp_path / "out") as pid:
        said = refused(["tokenize", "mnist", digits, tmp_path / "out"], capsys)
        assert f"is in use by another process (pid {pid})" in said
    assert files(tmp_path / "out") == {}


def test_images_at_their_own_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(40, 30), (40, 30), (28, 50), (61, 61), (40, 30)]  # width, height
    for number, size in enumerate(sizes):
        write_picture(tmp_path / "pictures" / f"{number}.png", number, size)
    tokenize("cifar10", tmp_path / "pictures", tmp_path / "out", "--full-size")
    rows, model = table(tmp_path / "out"), hrvqvae.load("cifar10")
    found = zip(rows.column("width").to_pylist(), rows.column("height").to_pylist(), strict=True)
    assert list(found) == sizes
    assert rows.column("label").to_pylist() == [None] * 5
    codes = [code_arrays(rows, level) for level in (1, 2, 3)]
    for number in range(5):
        pixels = read_image(tmp_path / "pictures" / f"{number}.png", 3)
        expected = model.encode(torch.from_numpy(pixels)[None])
        assert all(np.array_equal(level[number], one[0]) for level, one in zip(codes, expected, strict=True))
    assert main(["detokenize", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    back = [read_image(tmp_path / "back" / f"{number}.png", 3).shape for number in range(5)]
    assert back == [(3, height, width) for width, height in sizes]


def test_lists_and_what_training_takes(digits: Path, shards: Path, tmp_path: Path) -> None:
    rows = table(shards)
    names, labels = rows.column("key").to_pylist(), rows.column("label").to_pylist()
    lines = [f"{digits / name}\t{label}\n" for name, label in zip(names, labels, strict=True)]
    (tmp_path / "list.txt").write_text("".join(random.Random(1).sample(lines, len(lines))))
    tokenize("mnist", tmp_path / "list.txt", tmp_path / "listed")
    listed = table(tmp_path / "listed")
    assert listed.column("key").to_pylist() == [f"{digits / name}".lstrip("/") for name in names]
    assert main(["data", "pack", str(digits), str(tmp_path / "packed" / "digits")]) == 0
    tokenize("mnist", tmp_path / "packed", tmp_path / "tars")
    pixels = np.concatenate([read_image(digits / name, 1) for name in names])
    np.savez(tmp_path / "digits.npz", images=pixels, labels=np.array(labels, np.int64))
    tokenize("mnist", tmp_path / "digits.npz", tmp_path / "arrays")
    arrays = table(tmp_path / "arrays")
    numbers = [int("".join(filter(str.isdigit, key))) for key in arrays.column("key").to_pylist()]
    for other in (listed, table(tmp_path / "tars"), arrays.take(np.argsort(numbers))):
        assert list(map(str, other.column("label").to_pylist())) == labels
        assert all(other.column(f"codes_{level}").equals(rows.column(f"codes_{level}")) for level in (1, 2, 3))
    assert table(tmp_path / "tars").column("key").to_pylist() == names


def test_ray_writes_the_same_bytes(
    digits: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On this machine; nothing but its own results is printed."""
    program = (
        "import ray, sys\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='error')\n"
        "from hrvqvae.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = ["tokenize", "mnist", str(digits), str(tmp_path / "out"), "--shard-size", "20", "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "90 images in 5 shards" in done.stdout
    assert files(tmp_path / "out") == files(shards)
