"""How the error of a decoded image answers to its codewords: gradient and curvature, in tiles that bound the memory.

A tile is up to `_CORE` positions a side, and is decoded with `_HALO` positions more around it. A decoder that looks at
no more than half of these on each side, as those of convolutions do, has the gradients of the whole image. One that
looks farther has about those.

Shapes: B images, (H, W) positions, D channels of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.models.single_grid import SingleGridAutoencoder

_CORE = 160  # positions a side
_HALO = 12
_PROJECTIONS = 2  # for the curvature


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the grid.

    Attributes:
        core: whose gradients are wanted.
        around: what is decoded for it.
    """

    core: tuple[slice, slice]
    around: tuple[slice, slice]

    @property
    def inside(self) -> tuple[slice, slice]:
        """The core, counted from where `around` begins."""
        rows, columns = (
            slice(core.start - around.start, core.stop - around.start)
            for core, around in zip(self.core, self.around, strict=True)
        )
        return rows, columns


def tiles(grid: Grid) -> Iterator[Tile]:
    """Tiles of about the same size whose cores are the grid."""
    cores = [_parts(length) for length in grid]
    for rows in cores[0]:
        for columns in cores[1]:
            yield Tile((rows, columns), (_grown(rows, grid[0]), _grown(columns, grid[1])))


def _parts(length: int) -> list[slice]:
    count = -(-length // _CORE)
    return [slice(length * one // count, length * (one + 1) // count) for one in range(count)]


def _grown(core: slice, length: int) -> slice:
    return slice(max(0, core.start - _HALO), min(length, core.stop + _HALO))


@dataclass(frozen=True)
class Decoding:
    """The decoder of the codewords of so many levels.

    Attributes:
        model: that decodes.
        levels: how many.
    """

    model: SingleGridAutoencoder
    levels: int

    def __call__(self, vectors: Tensor, size: Grid | None) -> Tensor:
        """(B, H, W, D) codewords -> (B, C, Y, X) on the scale [0, 1], not clamped; size as for `Autoencoder.decode`."""
        fewer = self.levels < self.model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self.model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def gradient(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Of the squared error of each image (B, C, Y, X), to its codewords (B, H, W, D)."""
        found = torch.empty_like(vectors)
        for tile, at, decoded, where in self._decoded_tiles(vectors, unit):
            error = (decoded.clamp(0, 1) - unit[..., *where]).square().sum()
            (back,) = torch.autograd.grad(error, at)
            found[:, *tile.core] = back[:, *tile.inside]
        return found

    @torch.enable_grad()
    def curvature(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """The mean of J^T J over the positions of each image: (B, D, D). An image's does not depend on the others."""
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for tile, at, decoded, _ in self._decoded_tiles(vectors, unit):
            for number in range(_PROJECTIONS):
                direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
                last = number == _PROJECTIONS - 1
                (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=not last)
                rows = back[:, *tile.inside].flatten(1, 2)
                total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decoded_tiles(
        self, vectors: Tensor, unit: Tensor
    ) -> Iterator[tuple[Tile, Tensor, Tensor, tuple[slice, slice]]]:
        """Each tile with its codewords, what is decoded from them, and where in the image that lies."""
        grid, stride = (vectors.shape[1], vectors.shape[2]), self.model.config.stride
        padding = self.model.config.padding
        for tile in tiles(grid):
            # `padding` pixels are cropped from the first side of a tile as from the first side of an image
            begin = [stride * side.start for side in tile.around]
            largest = [stride * (side.stop - side.start) - 2 * padding for side in tile.around]
            rows, columns = (
                min(most, whole - first) for most, whole, first in zip(largest, unit.shape[-2:], begin, strict=True)
            )
            at = vectors[:, *tile.around].detach().requires_grad_()
            where = (slice(begin[0], begin[0] + rows), slice(begin[1], begin[1] + columns))
            yield tile, at, self(at, (rows, columns)), where
