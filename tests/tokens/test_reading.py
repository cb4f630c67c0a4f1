"""Shards read back: to images, and to priors; those of other tools, and those that are damaged or of another kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import hrvqvae
from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.data.loading import load_images
from hrvqvae.tokens.maps import maps_of_shards
from hrvqvae.training.prior import resolve_priors
from hrvqvae.utils.errors import InputError
from tests.conftest import refused
from tests.kills import in_another_process
from tests.tokens.made import digit_files, table, tokenize
from tests.trained_run import GIVEN, train_levels, trained_copy


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of drawn digits by the model inside the package."""
    folder = digit_files(tmp_path_factory.mktemp("digits"), 30)
    out = tmp_path_factory.mktemp("shards") / "out"
    tokenize("mnist", folder, out, "--shard-size", 12)
    return out


@pytest.mark.parametrize("levels", [None, 1])
def test_back_to_images(levels: int | None, shards: Path, tmp_path: Path) -> None:
    options = [] if levels is None else ["--levels", str(levels)]
    assert main(["detokenize", str(shards), str(tmp_path / "back"), *options]) == 0
    model, rows = hrvqvae.load("mnist"), table(shards)
    codes = tuple(
        torch.tensor(rows.column(f"codes_{level}").to_pylist()).view(30, 16, 16)
        for level in range(1, (levels or 3) + 1)
    )
    for key, image in zip(rows.column("key").to_pylist(), model.decode(codes, levels, (28, 28)), strict=True):
        with Image.open(tmp_path / "back" / key) as found:
            assert (found.format, found.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(found), (image[0] * 255).round().to(torch.uint8).numpy())


def test_what_exists_is_written_over_by_force_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / table(shards).column("key")[13].as_py()
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"an original")
    assert f"{mine} is there already; --force" in refused(["detokenize", shards, tmp_path], capsys)
    assert mine.read_bytes() == b"an original"
    assert main(["detokenize", str(shards), str(tmp_path), "--force"]) == 0
    assert mine.read_bytes().startswith(b"\x89PNG")


def test_names_that_differ_by_their_suffix_alone_and_lists_that_lead_out(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("L", (28, 28), 7).save(tmp_path / name)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "all.txt").write_text("../a.png\n../a.jpg\n../b.png\n")
    tokenize("mnist", tmp_path / "lists" / "all.txt", tmp_path / "out")
    assert table(tmp_path / "out").column("key").to_pylist() == ["a.jpg", "a.png", "b.png"]
    assert main(["detokenize", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a.png", "a.png.png", "b.png"]


def _rewritten(path: Path, change: Callable[[pa.Table], pa.Table] = lambda rows: rows, **metadata: str) -> None:
    """A shard as another tool might write it, with something changed."""
    with pq.ParquetFile(path) as file:
        told = {name: value for name, value in file.metadata.metadata.items() if name != b"ARROW:schema"}
        rows = file.read()
    told |= {f"hrvqvae.{name}".encode(): value.encode() for name, value in metadata.items()}
    pq.write_table(change(rows).replace_schema_metadata(told), path)


def _with(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(name), name, pa.array(values(rows.column(name))))


def _flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(0).column(6).data_page_offset + 60
    content[place] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged or cut short"),
    "flipped": (_flipped_byte, "is damaged or cut short"),
    "name of a column": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"height_2", b"height_\xff")),
        "is damaged or cut short",
    ),
    "version": (lambda path: _rewritten(path, format="2"), "is of version 2 of the format"),
    "models": (lambda path: _rewritten(path, model="0" * 32), "shards of one model belong together"),
    "metadata": (lambda path: _rewritten(path, broken="["), "has damaged metadata"),
    "text": (
        lambda path: _rewritten(path, _with("height", lambda old: ["high"] * len(old))), "has other columns",
    ),
    "no shard": (lambda path: pq.write_table(pa.table({"a": [1]}), path), "is no shard of codes: its metadata has no"),
    "column": (lambda path: _rewritten(path, lambda rows: rows.drop_columns(["codes_2"])), "has other columns"),
    "grid": (
        lambda path: _rewritten(path, _with("height_2", lambda old: [9] * len(old))),
        "has 256 codes of level 2 for 9x16",
    ),
    "nulls": (
        lambda path: _rewritten(path, _with("codes_1", lambda old: [None, *old.to_pylist()[1:]])), "has nulls",
    ),
    "no numbers": (
        lambda path: _rewritten(path, _with("codes_1", lambda old: [[0.5] * 256] * len(old))),
        "has other columns than docs/tokens.md says",
    ),
    "out of range": (
        lambda path: _rewritten(path, _with("codes_3", lambda old: [[4] * 256] * len(old))), "codes of",
    ),
    "escape": (
        lambda path: _rewritten(path, _with("key", lambda old: [f"../{key}" for key in old.to_pylist()])),
        "has a key that leads out of a folder: '../",
    ),
    "twice": (
        lambda path: _rewritten(path, _with("key", lambda old: ["a.png"] * 3 + old.to_pylist()[3:])),
        "would both be",
    ),
    "gone": (lambda path: path.unlink(), "lacks part-000001.parquet, 1 of 3 shards; run the same"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_or_of_another_kind(
    kind: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    damage, message = DAMAGE[kind]
    damage(out / "part-000001.parquet")
    assert message in refused(["detokenize", out, tmp_path / "back"], capsys)


def test_another_model_and_none(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    back = tmp_path / "back"
    assert "was made by another model" in refused(["detokenize", shards, back, "--model", "cifar10"], capsys)
    assert "levels is 4; this model decodes 1, 2, 3" in refused(["detokenize", shards, back, "--levels", 4], capsys)
    unknown = tmp_path / "unknown.parquet"
    shutil.copyfile(shards / "part-000000.parquet", unknown)
    _rewritten(unknown, model="0" * 32)
    said = refused(["detokenize", unknown, back], capsys)
    assert "by no model inside the package (000000000000): name it with --model RUN" in said
    unknown.unlink()
    assert "has no shards (.parquet)" in refused(["detokenize", tmp_path, back], capsys)
    assert "there is no such file" in refused(["detokenize", tmp_path / "nothing", back], capsys)
    assert not back.exists()


@pytest.fixture
def run(tiny: Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


@pytest.fixture
def own_shards(run: Path, tmp_path: Path) -> Path:
    """Shards of the run's own training images, from a list of files."""
    images = load_images(RunFolder(run).read_config().data, "train")
    names = [tmp_path / f"{number:03d}.png" for number in range(len(images))]
    for number, name in enumerate(names):
        Image.fromarray(images.read(number, None)[0]).save(name)
    lines = [f"{name}\t{images.classes[label]}\n" for name, label in zip(names, images.labels, strict=True)]
    (tmp_path / "list.txt").write_text("".join(lines))
    tokenize(run, tmp_path / "list.txt", tmp_path / "tokens", "--shard-size", 40)
    return tmp_path / "tokens"


def _weights(run: Path) -> list[dict[str, torch.Tensor]]:
    folders = [prior_folder(run, level) for level in range(2)]
    return [storage.read(path)[0] for folder in folders for path in (folder.model, folder.saved()[0])]


def test_priors_from_shards_are_those_from_the_runs_own_codes(run: Path, own_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "own")
    schedule = {"prior.training.schedule": "constant"}  # that does not depend on where training ends
    train_levels(tmp_path / "own", training__schedule="constant")
    fields = {name: value for name, value in GIVEN.items() if name != "prior.training.max_steps"} | schedule
    given = [part for name, value in fields.items() for part in (f"--{name}", value)]
    codes = ["--codes", str(own_shards)]
    assert main(["train-prior", str(run), *codes, "--max-steps", "5", *given]) == 0
    assert main(["train-prior", str(run), "--max-steps", "12", "--resume"]) == 0, "it knows its codes"
    for found, expected in zip(_weights(run), _weights(tmp_path / "own"), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    model, config = load_with_config(run)
    maps = maps_of_shards(RunFolder(run).codes, own_shards, model, config)
    own = codemaps.stored(RunFolder(tmp_path / "own").codes, storage.digest(run / "model.safetensors"), config, "train")
    assert own is not None
    assert all(isinstance(level, np.memmap) and level.dtype == np.uint8 for level in maps.levels)
    assert all(np.array_equal(one, other) for one, other in zip(maps.levels, own.levels, strict=True))
    assert np.array_equal(maps.labels, own.labels)
    assert maps.classes == own.classes


def test_shards_of_another_tool(run: Path, own_shards: Path, tmp_path: Path) -> None:
    """Other row groups, types and order of columns, no more metadata than has to be, labels as numbers."""
    rows = table(own_shards)
    wide = rows.select(["key", "height", "width"])
    for level in (2, 1):
        wide = wide.append_column(f"codes_{level}", rows.column(f"codes_{level}").cast(pa.large_list(pa.int64())))
        for name in (f"height_{level}", f"width_{level}"):
            wide = wide.append_column(name, rows.column(name).cast(pa.int64()))
    wide = wide.append_column("label", pc.cast(rows.column("label"), pa.int64()))
    told = pq.read_metadata(own_shards / "part-000000.parquet").metadata
    told = {name: told[name] for name in (b"hrvqvae.format", b"hrvqvae.model")}
    (tmp_path / "other").mkdir()
    pq.write_table(wide.replace_schema_metadata(told), tmp_path / "other" / "all.parquet", row_group_size=7)
    model, config = load_with_config(run)
    found = maps_of_shards(tmp_path / "a", tmp_path / "other", model, config)
    expected = maps_of_shards(tmp_path / "b", own_shards, model, config)
    assert all(np.array_equal(one, other) for one, other in zip(found.levels, expected.levels, strict=True))
    names = json.dumps([f"digit {number}" for number in reversed(range(10))])
    _rewritten(tmp_path / "other" / "all.parquet", classes=names)
    named = maps_of_shards(tmp_path / "a", tmp_path / "other", model, config)
    assert named.classes == tuple(json.loads(names)), "numbers index the names"
    assert named.labels.tolist() == rows.column("label").cast(pa.int64()).to_pylist()
    assert np.array_equal(found.labels, expected.labels)
    assert found.classes == expected.classes == tuple("0123456789")


def test_shards_that_change_are_laid_out_anew(run: Path, own_shards: Path, tmp_path: Path) -> None:
    model, config = load_with_config(run)
    first = maps_of_shards(tmp_path / "codes", own_shards, model, config)
    laid_out = (tmp_path / "codes" / "shards.json").stat().st_mtime_ns
    maps_of_shards(tmp_path / "codes", own_shards, model, config)
    assert (tmp_path / "codes" / "shards.json").stat().st_mtime_ns == laid_out
    assert len(first) == 96
    assert len(maps_of_shards(tmp_path / "codes", own_shards / "part-000002.parquet", model, config)) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: _rewritten(path, _with("codes_1", lambda old: [[3] * 49] * len(old))), "has codes 0 to 2 there"),
        (
            lambda path: _rewritten(path, _with("label", lambda old: [None, *old.to_pylist()[1:]])),
            "1 of 96 images have no label; label all of them, or none",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged or cut short"),
    ],
)
def test_codes_that_priors_can_not_be_trained_from(
    change: Callable[[Path], Any], message: str, run: Path, own_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(own_shards / "part-000001.parquet")
    assert message in refused(["train-prior", run, "--codes", own_shards, "--max-steps", 1], capsys)
    assert not [path.name for path in RunFolder(run).codes.iterdir() if path.suffix in (".npy", ".json")]
    assert not prior_folder(run, 0).begun()


def test_codes_of_another_model_or_size(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["train-prior", run, "--codes", shards, "--max-steps", 1], capsys)
    assert "holds codes of another model" in said
    tokenize(run, digit_files(tmp_path / "wide", 3, size=20), tmp_path / "tokens", "--full-size")
    said = refused(["train-prior", run, "--codes", tmp_path / "tokens", "--max-steps", 1], capsys)
    assert "priors are trained on 7x7, of images of 12x12 pixels: make the shards without --full-size" in said


def test_who_lays_them_out_is_waited_for(run: Path, own_shards: Path, tmp_path: Path) -> None:
    model, config = load_with_config(run)
    said = list[str]()
    with in_another_process(tmp_path / "codes") as pid:

        def say(line: str) -> None:
            said.append(line)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            maps_of_shards(tmp_path / "codes", own_shards, model, config, say)
    assert said == [f"{tmp_path / 'codes'} is in use by another process (pid {pid}); waiting for it"]


def test_levels_that_were_begun_with_other_codes(run: Path, own_shards: Path) -> None:
    train_levels(run, 1, training__max_steps="1")
    train_levels(run, 2, training__max_steps="1", codes=str(own_shards))
    with pytest.raises(InputError, match="begun with codes of several places; go on with one at a time: --level L"):
        resolve_priors(run, None, {}, resume=True)
    with pytest.raises(InputError, match=r"--prior.codes is .* there, elsewhere here"):
        resolve_priors(run, 2, {"prior.codes": "elsewhere"}, resume=True)
