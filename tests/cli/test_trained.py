"""What is done with a trained run: evaluated, reconstructed, and refused where it is not what it should be."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.data.images import read_image
from tests.cli.helpers import refused, write_file
from tests.conftest import write_picture
from tests.trained_run import tiny_run_with_priors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run folder of a tiny model, trained by the command line from a configuration file, without priors."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    return shutil.copytree(tiny_run_with_priors(mnist_root), folder, ignore=shutil.ignore_patterns("priors"))


def test_evaluation_for_programs_and_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"], report["split"], report["images"]) == ("mnist", "test", 40)
    assert report["prior_bits_per_image"] is None, "there are no priors"
    assert report["no_priors"] == f"train them: hrvqvae train-prior {run}"
    assert [level["codewords"] for level in report["levels"]] == [3, 9, 27]
    assert report["mse"] == report["levels"][-1]["mse"]
    assert main(["evaluate", str(run), "--split", "train", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mnist train: 96 images" in out
    assert [line.split()[1] for line in out.splitlines() if line[:1] in "123" and line[1:2] == " "] == ["3", "9", "27"]
    assert f"no priors: train them: hrvqvae train-prior {run}" in out


def test_a_beam_encodes_whatever_the_model_was_trained_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By all commands that encode; files that were made so are read without a word about it."""
    greedy, wide = hrvqvae.load(run), hrvqvae.load(run, beam=9)
    for number in range(3):
        write_picture(tmp_path / "images" / f"{number}.png", number, (12, 12), "L")
    paths = sorted((tmp_path / "images").iterdir())
    images = torch.stack([torch.from_numpy(read_image(path, 1)) for path in paths])
    codes = wide.encode(images)
    assert any((one != other).any() for one, other in zip(codes, greedy.encode(images), strict=True))
    latents = greedy.autoencoder.latents(images / 255)  # type: ignore[operator]
    leaves = greedy.autoencoder.quantizer.lookup  # type: ignore[union-attr]
    distances = [float((latents - leaves(one)).square().sum()) for one in (codes, greedy.encode(images))]  # type: ignore[operator]
    assert distances[0] < distances[1]
    decoded = greedy.decode(codes, size=(12, 12))

    beam = ["--beam", "9"]
    assert main(["reconstruct", str(run), *map(str, paths), "-o", str(tmp_path / "sheet.png"), *beam]) == 0
    told = [float(line.split("MSE ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()[:3]]
    assert told == pytest.approx((decoded - images / 255).square().mean((1, 2, 3)).tolist(), rel=1e-3)
    assert main(["compress", str(run), str(tmp_path / "images"), "-o", str(tmp_path / "codes"), *beam]) == 0
    files = [path.read_bytes() for path in sorted((tmp_path / "codes").iterdir())]
    assert torch.equal(torch.stack(greedy.decompress(files)), decoded)
    capsys.readouterr()
    errors = []
    for some in ([], beam):
        assert main(["evaluate", str(run), "--json", "--device", "cpu", *some]) == 0
        errors.append(json.loads(capsys.readouterr().out)["mse"])
    assert errors[0] != errors[1]
    shards = tmp_path / "shards"
    assert main(["tokenize", str(run), str(tmp_path / "images"), str(shards), "--workers", "0", *beam]) == 0
    rows = pq.read_table(shards / "part-000000.parquet")
    for level, code in enumerate(codes, start=1):
        assert rows.column(f"codes_{level}").to_pylist() == code.flatten(1).tolist()
    line = refused(["tokenize", run, tmp_path / "images", shards, "--workers", "0"], capsys)
    assert f"{shards} was begun with another --beam: 9" in line
    assert "beam is 0; it must be at least 1" in refused(["evaluate", run, "--beam", 0], capsys)


def test_lambda_is_of_the_levels_that_are_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an entropy model it is the error alone that is minimized."""
    write_picture(tmp_path / "image.png", 0, (12, 12), "L")
    sheet = ["reconstruct", run, tmp_path / "image.png", "-o", tmp_path / "sheet.png", "--levels"]
    for command in ([*sheet, 1], [*sheet, 3], ["evaluate", run, "--device", "cpu"]):
        errors = []
        for some in ([], ["--lmbda", "0"]):
            assert main([*map(str, command), *some]) == 0
            errors.append(float(re.findall(r"MSE ([\d.e+-]+)", capsys.readouterr().out)[0]))
        assert errors[1] < errors[0], command
    for command in (["evaluate", run], ["reconstruct", run, tmp_path / "image.png", "-o", tmp_path / "none.png"]):
        for weight, told in ((-1, "-1.0"), ("1e300", "1e+300"), ("nan", "nan")):
            line = refused([*command, "--lmbda", weight], capsys)
            assert f"the lambda is {told}; it must be from 0 to 1e6" in line
    assert not (tmp_path / "none.png").exists()


def test_skipped_images_are_told_beside_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 3
    assert "skip" in captured.err


@pytest.mark.parametrize("levels", [None, 1])
def test_reconstruction(levels: int | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "a.png", 1, (12, 12), "L")
    write_picture(tmp_path / "b.jpg", 2, (33, 21), "L")
    out = tmp_path / "sheet.png"
    extra = [] if levels is None else ["--levels", str(levels)]
    images = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    assert main(["reconstruct", str(run), *images, "-o", str(out), *extra]) == 0
    printed = capsys.readouterr().out
    model = hrvqvae.load(run)
    pixels = torch.from_numpy(read_image(tmp_path / "a.png", 1))[None]
    decoded = model.decode(model.encode(pixels), levels=levels, size=(12, 12))
    error = float((decoded - pixels / 255).square().mean().detach())
    assert f"a.png: MSE {error:.3e}, PSNR {-10 * math.log10(error):.2f} dB\n" in printed
    assert read_image(out, 3).shape[2] >= 33 * 2


def test_bad_runs_and_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "grey.png", 1, mode="L")
    out = tmp_path / "sheet.png"

    def reconstruct(image: str, *extra: object, folder: Path = run, to: Path = out) -> str:
        return refused(["reconstruct", folder, tmp_path / image, "-o", to, *extra], capsys)

    for levels in (0, 4):
        assert f"levels is {levels}; this model has levels 1 to 3" in reconstruct("grey.png", "--levels", levels)
    assert "is not a run folder" in reconstruct("grey.png", folder=tmp_path)
    assert "can't be written" in reconstruct("grey.png", to=tmp_path / "nowhere" / "sheet.png")
    assert not out.exists()
    assert "--split: invalid choice: 'dev'" in refused(["evaluate", run, "--split", "dev"], capsys)
    assert "get it with" in refused(["evaluate", run, "--data", tmp_path / "nowhere"], capsys)
    assert "--images is 0; it must be at least 1" in refused(["evaluate", run, "--images", 0], capsys)
