"""Sheets by command: samples, completions, a row for each class, copies that would show; and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.data.images import read_image
from hrvqvae.plots import sheets
from tests.cli.helpers import refused
from tests.conftest import write_picture
from tests.trained_run import tiny_run_with_priors


@pytest.fixture
def run(mnist_root: Path) -> Path:
    return tiny_run_with_priors(mnist_root)


def test_samples_by_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, single = tmp_path / "sheet.png", tmp_path / "single"
    command = ["sample", str(run), "-n", "6", "--class", "7", "--seed", "3"]
    assert main([*command, "-o", str(out), "--save-dir", str(single)]) == 0
    assert "6 samples" in capsys.readouterr().out
    assert sorted(path.name for path in single.iterdir()) == [f"7-{number:04d}.png" for number in range(6)]
    expected = sheets.grid(list(hrvqvae.load(run).sample(6, class_name="7", seed=3)))
    assert np.array_equal(read_image(out, 3), np.asarray(expected).transpose(2, 0, 1))
    again = tmp_path / "again.png"
    assert main([*command, "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_completion(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row with the original and the part that is kept, then the completions, five times as large."""
    write_picture(tmp_path / "image.png", 3, (12, 12), "L")
    out = tmp_path / "sheet.png"
    command = ["complete", str(run), str(tmp_path / "image.png"), "--class", "1", "-n", "3", "-o", str(out)]
    assert main([*command, "--keep", "top"]) == 0
    assert "3 completions" in capsys.readouterr().out
    sheet, image = read_image(out, 1), read_image(tmp_path / "image.png", 1)
    zoom, gap, caption = 5, 4, 20
    top, side = gap + caption, 12 * zoom
    shown = sheet[0, top : top + side : zoom, gap : 2 * gap + 2 * side]
    assert np.array_equal(shown[:, :side:zoom], image[0])
    kept = shown[:, side + gap :: zoom]
    assert np.array_equal(kept[:7], image[0, :7]), "four of the seven rows of codes"
    assert (kept[7:] == 128).all()
    completed = hrvqvae.load(run).complete(torch.from_numpy(image), 3, class_name="1")
    below = sheet[0, 2 * top + side : 2 * top + 2 * side : zoom]
    for number, one in enumerate(completed):
        left = gap + number * (side + gap)
        assert np.array_equal(below[:, left : left + side : zoom], (one[0] * 255).round().byte().numpy())
    for keep in ("bottom", "1.0", "0"):
        assert "--keep is" in refused([*command, "--keep", keep], capsys)


def test_samples_beside_their_nearest_training_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", "nearest", str(run), "-n", "4", "-o", str(tmp_path / "near.png")]) == 0
    assert "MSE" in capsys.readouterr().out
    _, height, width = read_image(tmp_path / "near.png", 3).shape
    assert width > 1.7 * height, "pairs side by side"


def test_a_row_of_samples_for_each_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classes.png"
    assert main(["figure", "classes", str(run), "-n", "3", "-o", str(out)]) == 0
    assert "3 samples of each of 10 classes" in capsys.readouterr().out
    assert read_image(out, 3).shape[1] > 10 * 60
    unguided = out.read_bytes()
    assert "class_dropout" in refused(["figure", "classes", run, "-o", out, "--guidance", "2"], capsys)
    assert out.read_bytes() == unguided


def test_bad_sampling(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"

    def sample(*arguments: object) -> str:
        return refused(["sample", run, "-o", out, *arguments], capsys)

    assert "class '11' is not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in sample("--class", "11")
    assert "temperature is 0; it must be from 1e-6 to 1e6" in sample("--temperature", "0")
    assert "top-k is 4, but a code has only 3 symbols" in sample("--top-k", "4")
    assert "--top-k is 0; it must be at least 1" in sample("--top-k", "0")
    assert "top-p is 2" in sample("--top-p", "2")
    assert "number of samples is 0" in sample("-n", "0")
    assert "seed is -1" in sample("--seed", "-1")
    assert "must end in .png" in refused(["sample", run, "-o", tmp_path / "sheet.gif"], capsys)
    assert "there is no folder" in refused(["sample", run, "-o", tmp_path / "nowhere" / "sheet.png"], capsys)
    (tmp_path / "file").write_text("")
    assert "can't be made" in sample("--save-dir", tmp_path / "file")
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("priors"))
    line = refused(["sample", bare, "-o", out], capsys)
    assert f"{bare} has no priors; train them: hrvqvae train-prior {bare}" in line
    assert "there is no such run folder" in refused(["sample", tmp_path / "none", "-o", out], capsys)
    assert "no such image" in refused(["complete", run, tmp_path / "none.png", "-o", out], capsys)
    assert not out.exists()
