"""Files of at most so many bytes: they fit, and have no more error than what fits of any lambda."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

import hrvqvae
from hrvqvae.compression import images as compression
from hrvqvae.compression.rate_distortion import RateDistortion
from hrvqvae.utils.errors import InputError
from tests.compression.test_rate_distortion import digits, run

__all__ = ["run"]


def errors(model: hrvqvae.TrainedModel, files: list[bytes], images: Tensor) -> Tensor:
    """The squared error of each image, in [0, 1]."""
    return (torch.stack(model.decompress(files)) - images / 255).square().flatten(1).sum(1)


def test_the_error_is_about_the_least_of_all_levels_and_weights_that_fit(run: Path) -> None:
    model, images, most = hrvqvae.load(run), digits(8), 26
    found = model.compress(images, max_bytes=most)
    assert max(map(len, found)) <= most
    least = torch.full((8,), torch.inf)
    tried = [model.compress(images, levels) for levels in (1, 2, 3)]
    tried += [model.compress(images, levels, lmbda=2.0**power) for levels in (1, 2, 3) for power in range(-7, 4, 2)]
    for files in tried:
        fits = torch.tensor([len(file) <= most for file in files])
        least = torch.where(fits, torch.minimum(least, errors(model, files, images)), least)
    assert least.isfinite().all()
    assert errors(model, found, images).sum() <= 1.005 * least.sum()


def test_where_all_fits_the_error_alone_counts(run: Path) -> None:
    model, images = hrvqvae.load(run), digits(4)
    for levels in (2, 3):
        assert model.compress(images, levels, max_bytes=1000) == model.compress(images, levels, lmbda=0)


def test_images_of_several_sizes_each_have_their_own(run: Path) -> None:
    model = hrvqvae.load(run)
    images = [digits(1)[0], digits(2)[1, :, :7], digits(3)[2]]
    found = model.compress(images, max_bytes=24)
    assert found == [model.compress(image[None], max_bytes=24)[0] for image in images]


def test_what_does_not_fit_is_named(run: Path) -> None:
    model, small = hrvqvae.load(run), digits(1)[0, :, :2, :2]
    large = torch.randint(0, 256, (1, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"^image 2 takes (\d+) bytes at the least; 12 are admitted$") as refused:
        model.compress([small, large], max_bytes=12)
    assert int(str(refused.value).split()[3]) > 12


@pytest.mark.parametrize("least", [0.001, 0.03, 0.3, 6.0])
def test_files_that_do_not_shrink_for_long_are_found_too(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 31 bytes up to that weight, where 30 are admitted: it lies far from where their size says."""

    def weigh(_: Tensor, weights: Tensor) -> tuple[tuple[Tensor], Tensor]:
        return (weights,), weights

    def files(_: object, codes: tuple[Tensor], *__: object) -> list[bytes]:
        return [bytes(28 if weight >= least else 31) for weight in codes[0].tolist()]

    monkeypatch.setattr(compression, "_files_of", files)
    encoder = SimpleNamespace(weigh=weigh, codec=SimpleNamespace(networks=(None,)), levels=1)
    found = compression._Found.none(30, 1)
    assert compression._weighed(cast(RateDistortion, encoder), torch.zeros(1, 1), np.arange(1), found).tolist() == [
        True
    ]
    assert found.files == [bytes(28)]
    assert least <= found.errors[0] <= 4 * least, "the error is the weight here"


@pytest.mark.parametrize("most", [0, -5])
def test_no_bytes_are_refused(run: Path, most: int) -> None:
    with pytest.raises(InputError, match=f"^files of {most} bytes are asked for; at least 1 must be admitted$"):
        hrvqvae.load(run).compress(digits(1), max_bytes=most)
