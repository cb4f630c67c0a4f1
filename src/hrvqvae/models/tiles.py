"""Large images in tiles, so that memory does not grow with the image; their codes and pixels are those of the whole.

A tile is coded or decoded with as much around it as its codes or pixels depend on, and only its own part is kept.
Lengths are in positions of the coarsest grid, s pixels each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid, NetworkConfig
from hrvqvae.models.base import fitting
from hrvqvae.quantize import Codes
from hrvqvae.utils.progress import tracked

_TILE = 1024  # pixels a side
_WHOLE = 2 * _TILE**2  # pixels of the largest image that is not divided

Area = tuple[slice, ...]  # rows and columns
Tile = tuple[Area, Area, Area]
"""A tile, it with what is around it, and the tile in that."""


def reach(networks: nn.Module, padding: int, stride: int) -> int:
    """Positions at each side of a tile that its codes and pixels can depend on: an upper bound.

    It counts the reach of every convolution as if all stood one after the other on the coarsest grid.
    """
    convolutions = (one for one in networks.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d))
    return sum(one.dilation[0] * (one.kernel_size[0] // 2) for one in convolutions) + -(-padding // stride)


def areas(grid: Grid, side: int, margin: int) -> list[Tile]:
    """Tiles of about the same size, at most `side` positions a side, with so much around them."""

    def parts(length: int) -> Iterator[Area]:
        count = -(-length // side)
        for one in range(count):
            first, last = length * one // count, length * (one + 1) // count
            begin, end = max(0, first - margin), min(length, last + margin)
            yield slice(first, last), slice(begin, end), slice(first - begin, last - begin)

    return [tuple(zip(*axes, strict=True)) for axes in product(*map(parts, grid))]  # type: ignore[misc]


def pixels(area: Area, factor: int = 1) -> Any:
    """The index of an area of a tensor (..., Y, X), on a grid that is `factor` times as fine."""
    return ..., *(slice(factor * one.start, factor * one.stop) for one in area)


def _tiles(grid: Grid, stride: int, networks: nn.Module, config: NetworkConfig, what: str) -> Iterator[Tile]:
    tiles = areas(grid, max(1, _TILE // stride), reach(networks, config.padding, stride))
    return tracked(tiles, f"{what} tiles", len(tiles), lambda _: 1)


def encode(whole: Callable[[Tensor], Codes], images: Tensor, config: NetworkConfig, networks: nn.Module) -> Codes:
    """Codes of images (B, C, Y, X), by the function that encodes whole ones, which checks them, with these networks."""
    if torch.compiler.is_compiling() or images.shape[-2:].numel() <= _WHOLE:
        return whole(images)
    grids = config.latent_grids(images.shape[-2], images.shape[-1])
    times = [grid[0] // grids[0][0] for grid in grids]
    stride = config.stride * times[-1]
    found = [torch.empty(len(images), *grid, dtype=torch.long, device=images.device) for grid in grids]
    for core, around, inside in _tiles(grids[0], stride, networks, config, "encode"):
        part = whole(images[pixels(around, stride)])
        for own, code, n in zip(found, part, times, strict=True):
            own[pixels(core, n)] = code[pixels(inside, n)]
    return tuple(found)


def decode(
    whole: Callable[[Codes, Grid | None], Tensor], codes: Codes, size: Grid | None, config: NetworkConfig,
    networks: nn.Module,
) -> Tensor:  # fmt: skip
    """Images (B, C, Y, X) of codes, by the function that decodes whole ones, which checks them, to a size in pixels.

    A size of None is the largest. Raises InputError where the size does not fit.
    """
    if torch.compiler.is_compiling() or not codes or codes[-1].shape[1:].numel() * config.stride**2 <= _WHOLE:
        return whole(codes, size)
    grid = (codes[0].shape[1], codes[0].shape[2])
    times = [code.shape[1] // grid[0] for code in codes]
    stride = config.stride * times[-1]
    size = fitting(size, grid[0] * stride, grid[1] * stride, config.padding)
    images: Tensor | None = None
    for core, around, inside in _tiles(grid, stride, networks, config, "decode"):
        some = tuple(code[pixels(around, n)] for code, n in zip(codes, times, strict=True))
        # A position's pixels are `padding` up and left of where it lies, which the margin holds.
        ends = zip(core, around, size, strict=True)
        height, width = (min(tile.stop * stride, side) - seen.start * stride for tile, seen, side in ends)
        part = whole(some, (height, width))
        images = part.new_empty(*part.shape[:2], *size) if images is None else images
        images[pixels(core, stride)] = part[pixels(inside, stride)]
    assert images is not None
    return images
