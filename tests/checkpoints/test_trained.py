"""A trained model as one object: what it samples and completes is what the commands draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.data.images import read_image
from hrvqvae.plots.sheets import grid
from hrvqvae.priors import generative
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from hrvqvae.utils.errors import InputError
from tests.trained_run import tiny_run_with_priors


@pytest.fixture
def run(mnist_root: Path) -> Path:
    return tiny_run_with_priors(mnist_root)


def test_samples_are_those_of_the_command_and_of_the_plain_sampler(run: Path, tmp_path: Path) -> None:
    model = hrvqvae.load(run)
    images = model.sample(6, class_name="7", seed=3, temperature=0.8, top_k=2, top_p=0.9)
    assert images.shape == (6, 1, 12, 12)
    assert images.dtype == torch.float32
    draw = SamplingParams(temperature=0.8, top_k=2, top_p=0.9)
    plain = model.draw(6, seed=3, class_name="7", params=draw, sampler=sample_plain)
    assert torch.equal(images, plain.images)
    assert plain.classes == ("7",) * 6
    how = ["--class", "7", "--seed", "3", "--temperature", "0.8", "--top-k", "2", "--top-p", "0.9"]
    where = ["-o", str(tmp_path / "sheet.png"), "--save-dir", str(tmp_path / "single")]
    assert main(["sample", str(run), "-n", "6", *how, *where]) == 0
    assert np.array_equal(read_image(tmp_path / "sheet.png", 3), np.asarray(grid(list(images))).transpose(2, 0, 1))
    for number, image in enumerate(images):
        written = torch.from_numpy(read_image(tmp_path / "single" / f"7-{number:04d}.png", 1))
        assert torch.equal(written, (image * 255).round().byte())


def test_without_a_class_all_come_and_batches_change_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hrvqvae.load(run)
    together = model.draw(40, seed=0)
    assert together.images.shape == (40, 1, 12, 12)
    assert len(set(together.classes)) > 5
    monkeypatch.setattr(generative, "_BATCH", 7)
    in_parts = model.draw(40, seed=0)
    assert in_parts.classes == together.classes
    assert all(torch.equal(one, other) for one, other in zip(in_parts.codes, together.codes, strict=True))
    torch.testing.assert_close(in_parts.images, together.images)


@pytest.mark.parametrize(("keep", "rows", "columns"), [("top", 4, 7), ("left", 7, 3), ("0.25", 2, 7)])
def test_completions_keep_the_codes_of_that_part(run: Path, keep: str, rows: int, columns: int) -> None:
    model = hrvqvae.load(run)
    image = torch.randint(256, (1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = model.known_part(image, keep)
    drawn = model.draw(5, seed=2, class_name="3", known=known)
    for codes, given in zip(drawn.codes, model.encode(image[None]), strict=True):
        expected = given.expand(5, -1, -1)
        assert torch.equal(codes[:, :rows, :columns], expected[:, :rows, :columns])
        assert not torch.equal(codes, expected)
    assert torch.equal(model.complete(image, 5, keep=keep, class_name="3", seed=2), drawn.images)
    for other, part, message in (
        (image[:, 2:], keep, "the image has 10x12 pixels; this model completes 12"),
        (image + 2.0, keep, "2"),
        (image, "bottom", "--keep is 'bottom'"),
    ):
        with pytest.raises(InputError, match=message):
            model.complete(other, keep=part)
