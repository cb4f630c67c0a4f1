"""Gradient and curvature of decoded images: against those of the whole image, by automatic differentiation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae.compression import sensitivity
from hrvqvae.compression.sensitivity import Decoding, tiles
from hrvqvae.models.build import build
from hrvqvae.models.single_grid import SingleGridAutoencoder
from tests.tiny_systems import tiny_systems


def model_of(root: Path, padding: int = 0) -> SingleGridAutoencoder:
    torch.manual_seed(0)
    config = tiny_systems(root)["hrvqvae"]
    found = build(dataclasses.replace(config, model=dataclasses.replace(config.model, padding=padding)))
    assert isinstance(found, SingleGridAutoencoder)
    return found.eval().requires_grad_(False)


def test_the_cores_of_tiles_are_the_grid() -> None:
    for grid in ((1, 1), (160, 161), (700, 3)):
        covered = torch.zeros(grid, dtype=torch.int)
        for tile in tiles(grid):
            covered[tile.core] += 1
            around = torch.zeros(grid, dtype=torch.int)
            around[tile.around] = 1
            assert (around[tile.core] == 1).all()
            assert torch.equal(
                torch.nonzero(around[tile.around][tile.inside])[-1] + 1, torch.tensor(covered[tile.core].shape)
            )
        assert (covered == 1).all()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("levels", [1, 3])
def test_gradients_by_tiles_are_those_of_the_image(
    mnist_root: Path, monkeypatch: pytest.MonkeyPatch, padding: int, levels: int
) -> None:
    """Images that do not fill their grid, in tiles of a few positions."""
    model = model_of(mnist_root, padding)
    unit = torch.rand(2, 1, 63, 89, generator=torch.Generator().manual_seed(1))
    grid = model.config.grid(63, 89)
    vectors = torch.randn(2, *grid, model.latent_dim, generator=torch.Generator().manual_seed(2))
    decoding = Decoding(model, levels)

    def error(at: Tensor) -> Tensor:
        return (((model.pixels(at, (63, 89)) + 1) / 2).clamp(0, 1) - unit).square().sum()

    whole = torch.autograd.functional.jacobian(error, vectors)
    torch.testing.assert_close(decoding.gradient(vectors, unit), whole)
    monkeypatch.setattr(sensitivity, "_CORE", 16)
    assert len(list(tiles(grid))) > 4
    torch.testing.assert_close(decoding.gradient(vectors, unit), whole)


def test_the_curvature_is_about_the_mean_over_positions(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random projections have the mean J^T J over the positions; many of them come near to it, in tiles too."""
    model = model_of(mnist_root)
    unit = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    grid = model.config.grid(16, 24)
    vectors = torch.randn(1, *grid, model.latent_dim, generator=torch.Generator().manual_seed(2))
    decoding = Decoding(model, 3)
    jacobian = torch.autograd.functional.jacobian(lambda at: decoding(at, (16, 24)), vectors)
    rows = jacobian.reshape(unit.numel(), grid[0] * grid[1], model.latent_dim)
    mean = torch.einsum("opd,ope->de", rows, rows) / rows.shape[1]
    monkeypatch.setattr(sensitivity, "_PROJECTIONS", 400)
    found = decoding.curvature(vectors, unit)[0]
    assert (found - mean).norm() < 0.1 * mean.norm()
    monkeypatch.setattr(sensitivity, "_CORE", 6)
    found = decoding.curvature(vectors, unit)[0]
    assert (found - mean).norm() < 0.1 * mean.norm()
