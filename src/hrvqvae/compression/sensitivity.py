"""How the error of a decoded image answers to its codewords: gradient and curvature, in tiles that bound the memory.

A tile is up to `_CORE` positions a side, and is decoded with `_HALO` positions more around it. A decoder that looks at
no more than half of these on each side, as those of convolutions do, has the gradients of the whole image. One that
looks farther has about those.

Shapes: B images, (H, W) positions, D channels of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.models.single_grid import SingleGridAutoencoder

_CORE = 160  # positions a side
_HALO = 12
_PROJECTIONS = 2  # for the curvature


Area = tuple[slice, slice]


def tiles(grid: Grid) -> Iterator[tuple[Area, Area, Area]]:
    """Tiles of about the same size whose cores are the grid: core, what is decoded for it, and the core in that."""
    for rows, columns in product(_parts(grid[0]), _parts(grid[1])):
        core, around, inside = zip(rows, columns, strict=True)
        yield core, around, inside


def _parts(length: int) -> Iterator[tuple[slice, slice, slice]]:
    """The same of one side."""
    count = -(-length // _CORE)
    for one in range(count):
        first, last = length * one // count, length * (one + 1) // count
        begin, end = max(0, first - _HALO), min(length, last + _HALO)
        yield slice(first, last), slice(begin, end), slice(first - begin, last - begin)


@dataclass(frozen=True)
class Decoding:
    """The decoder of the codewords of so many levels."""

    model: SingleGridAutoencoder
    levels: int

    def __call__(self, vectors: Tensor, size: Grid) -> Tensor:
        """(B, H, W, D) codewords -> (B, C, Y, X) on the scale [0, 1], not clamped; size as for `Autoencoder.decode`."""
        fewer = self.levels < self.model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self.model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def gradient(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Of the squared error of each image (B, C, Y, X), to its codewords (B, H, W, D)."""
        found = torch.empty_like(vectors)
        for core, around, inside in tiles((vectors.shape[1], vectors.shape[2])):
            at, decoded, where = self._decoded(vectors, around, unit)
            error = (decoded.clamp(0, 1) - unit[..., *where]).square().sum()
            (back,) = torch.autograd.grad(error, at)
            found[:, *core] = back[:, *inside]
        return found

    @torch.enable_grad()
    def curvature(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """The mean of J^T J over the positions of each image: (B, D, D). An image's does not depend on the others."""
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for _, around, inside in tiles((vectors.shape[1], vectors.shape[2])):
            at, decoded, _ = self._decoded(vectors, around, unit)
            for number in range(_PROJECTIONS):
                direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
                last = number == _PROJECTIONS - 1
                (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=not last)
                rows = back[:, *inside].flatten(1, 2)
                total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decoded(self, vectors: Tensor, around: Area, unit: Tensor) -> tuple[Tensor, Tensor, Area]:
        """The codewords of a part of the grid, what is decoded from them, and where in the image that lies."""
        stride, padding = self.model.config.stride, self.model.config.padding
        # `padding` pixels are cropped from the first side of a part as from the first side of an image
        begin = [stride * side.start for side in around]
        largest = [stride * (side.stop - side.start) - 2 * padding for side in around]
        rows, columns = (
            min(most, whole - first) for most, whole, first in zip(largest, unit.shape[-2:], begin, strict=True)
        )
        at = vectors[:, *around].detach().requires_grad_()
        where = (slice(begin[0], begin[0] + rows), slice(begin[1], begin[1] + columns))
        return at, self(at, (rows, columns)), where
