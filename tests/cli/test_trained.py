"""Commands for a trained run: evaluate, reconstruct, and their errors."""

import json
import math
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import hrvqvae
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.data.images import read_image
from tests.conftest import do, done, refused, same, write_file, write_picture
from tests.trained_run import tiny_run_with_priors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run folder of a tiny model without priors."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    return shutil.copytree(tiny_run_with_priors(mnist_root), folder, ignore=shutil.ignore_patterns("priors"))


def test_evaluation_for_programs_and_people(run: Path) -> None:
    report = json.loads(do("evaluate", run, "--json", "--device", "cpu"))
    assert (report["dataset"], report["split"], report["images"]) == ("mnist", "test", 40)
    assert report["prior_bits_per_image"] is None, "there are no priors"
    assert report["no_priors"] == f"train them: hrvqvae train-prior {run}"
    assert [level["codewords"] for level in report["levels"]] == [3, 9, 27]
    assert report["mse"] == report["levels"][-1]["mse"]
    out = do("evaluate", run, "--split", "train", "--device", "cpu")
    assert "mnist train: 96 images" in out
    assert [line.split()[1] for line in out.splitlines() if line[:1] in "123" and line[1:2] == " "] == ["3", "9", "27"]
    assert f"no priors: train them: hrvqvae train-prior {run}" in out


def test_a_beam_encodes_whatever_the_model_was_trained_with(run: Path, tmp_path: Path) -> None:
    """By all commands that encode; files that were made so are read without a word about it."""
    greedy, wide, beam = hrvqvae.load(run), hrvqvae.load(run, beam=9), ["--beam", "9"]
    for number in range(3):
        write_picture(tmp_path / "images" / f"{number}.png", number, (12, 12), "L")
    paths = sorted((tmp_path / "images").iterdir())
    images = torch.stack([torch.from_numpy(read_image(path, 1)) for path in paths])
    codes = wide.encode(images)
    assert not same(codes, greedy.encode(images))
    decoded = greedy.decode(codes, size=(12, 12))
    lines = do("reconstruct", run, *paths, "-o", tmp_path / "sheet.png", *beam).splitlines()
    told = [float(line.split("MSE ")[1].split(",")[0]) for line in lines[:3]]
    assert told == pytest.approx((decoded - images / 255).square().mean((1, 2, 3)).tolist(), rel=1e-3)
    do("compress", run, tmp_path / "images", "-o", tmp_path / "codes", *beam)
    files = [path.read_bytes() for path in sorted((tmp_path / "codes").iterdir())]
    assert torch.equal(torch.stack(greedy.decompress(files)), decoded)
    shards = tmp_path / "shards"
    do("tokenize", run, tmp_path / "images", shards, "--workers", "0", *beam)
    rows = pq.read_table(shards / "part-000000.parquet")
    for level, code in enumerate(codes, start=1):
        assert rows.column(f"codes_{level}").to_pylist() == code.flatten(1).tolist()
    line = refused(["tokenize", run, tmp_path / "images", shards, "--workers", "0"])
    assert f"{shards} was begun with another beam: 9" in line
    assert "beam is 0; it must be at least 1" in refused(["evaluate", run, "--beam", 0])


def test_lambda_is_of_the_levels_that_are_shown(run: Path, tmp_path: Path) -> None:
    """Without an entropy model it is the error alone that is minimized."""
    write_picture(tmp_path / "image.png", 0, (12, 12), "L")
    sheet = ["reconstruct", run, tmp_path / "image.png", "-o", tmp_path / "sheet.png", "--levels"]
    for command in ([*sheet, 1], [*sheet, 3], ["evaluate", run, "--device", "cpu"]):
        errors = []
        for options in ([], ["--lmbda", "0"]):
            (tmp_path / "sheet.png").unlink(missing_ok=True)
            errors.append(float(re.findall(r"MSE ([\d.e+-]+)", do(*command, *options))[0]))
        assert errors[1] < errors[0], command
    for weight, told in ((-1, "-1.0"), ("1e300", "1e+300"), ("nan", "nan")):
        line = refused(["evaluate", run, "--lmbda", weight])
        assert f"the lambda is {told}; it must be from 0 to 1e6" in line


def test_skipped_images_are_told_beside_the_json(tmp_path: Path) -> None:
    for index in range(12):
        write_picture(tmp_path / "images" / ("train" if index < 8 else "test") / f"{index}.png", index)
    broken = tmp_path / "images" / "test" / "9.png"
    broken.write_bytes(broken.read_bytes()[:100])
    fields = {
        "data.root": str(tmp_path / "images"), "data.size": "16", "data.workers": "0", "data.on_error": "skip",
        "model.stride": "4", "model.hidden_units": "8", "model.residual_units": "8", "training.batch_size": "4",
        "training.max_steps": "1", "training.device": "cpu", "model.quantizer.init_vectors": "1000",
    }  # fmt: skip
    file = write_file(override(presets.get("hrvqvae/photos").config, fields), tmp_path / "small.yaml")
    do("train", file, "--out", tmp_path / "run")
    _, printed, told = done("evaluate", tmp_path / "run", "--json")
    assert json.loads(printed)["images"] == 3
    assert "skip" in told


def test_reconstruction(run: Path, tmp_path: Path) -> None:
    image, out, model = tmp_path / "a.png", tmp_path / "sheet.png", hrvqvae.load(run)
    write_picture(image, 1, (12, 12), "L")
    write_picture(tmp_path / "b.jpg", 2, (33, 21), "L")
    pixels = torch.from_numpy(read_image(image, 1))[None]
    for levels in (1, 3):
        printed = do("reconstruct", run, image, tmp_path / "b.jpg", "-o", out, "--levels", levels, "--force")
        decoded = model.decode(model.encode(pixels), levels=levels, size=(12, 12))
        error = float((decoded - pixels / 255).square().mean().detach())
        assert f"a.png: MSE {error:.3e}, PSNR {-10 * math.log10(error):.2f} dB\n" in printed
    assert read_image(out, 3).shape[2] >= 33 * 2


def test_bad_runs_and_images(run: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "grey.png", tmp_path / "sheet.png"
    write_picture(image, 1, mode="L")
    for command, message in (
        (["reconstruct", run, image, "-o", out, "--levels", 0], "--levels is 0; it must be at least 1"),
        (["reconstruct", run, image, "-o", out, "--levels", 4], "levels is 4; this model decodes 1, 2, 3"),
        (["reconstruct", tmp_path, image, "-o", out], "is not a run folder"),
        (["evaluate", run, "--split", "dev"], "unknown --split 'dev': there are test, train"),
        (["evaluate", run, "--data", tmp_path / "nowhere"], "get it with"),
        (["evaluate", run, "--images", 0], "--images is 0; it must be at least 1"),
    ):
        assert message in refused(command)
    assert not out.exists()
