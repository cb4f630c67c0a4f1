"""Encode and decode large images in tiles, with the same results, so that memory does not grow with the image.

A tile is computed with a halo, the surroundings on which its codes or pixels depend. Only the core is kept.
Lengths are in positions of the coarsest grid, `stride` pixels each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid, NetworkConfig
from hrvqvae.models.base import fit_size
from hrvqvae.quantize import Codes
from hrvqvae.utils.progress import tracked

_TILE = 1024  # pixels per side
_WHOLE = 2 * _TILE**2  # pixels of the largest image that is not divided

Area = tuple[slice, ...]  # rows and columns
Tile = tuple[Area, Area, Area]
"""(core, core + halo, core within core + halo)."""


def compute_halo(networks: nn.Module, padding: int, stride: int) -> int:
    """Return the width of the halo: an upper bound of how far codes and pixels depend on their surroundings.

    It is the sum of the reach of every convolution, as if each worked on the coarsest grid.
    """
    convolutions = (layer for layer in networks.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    return sum(layer.dilation[0] * (layer.kernel_size[0] // 2) for layer in convolutions) + -(-padding // stride)


def divide_grid(grid: Grid, side: int, margin: int) -> list[Tile]:
    """Return tiles of about the same size, at most `side` positions per side, with a halo of `margin` positions."""

    def parts(length: int) -> Iterator[Area]:
        count = -(-length // side)
        for tile in range(count):
            first, last = length * tile // count, length * (tile + 1) // count
            begin, end = max(0, first - margin), min(length, last + margin)
            yield slice(first, last), slice(begin, end), slice(first - begin, last - begin)

    return [tuple(zip(*axes, strict=True)) for axes in product(*map(parts, grid))]  # type: ignore[misc]


def index_pixels(area: Area, factor: int = 1) -> Any:
    """Return the index of an area in a tensor (..., Y, X), on a grid that is `factor` times as fine."""
    return ..., *(slice(factor * side.start, factor * side.stop) for side in area)


def _track_tiles(grid: Grid, stride: int, networks: nn.Module, config: NetworkConfig, action: str) -> Iterator[Tile]:
    tiles = divide_grid(grid, max(1, _TILE // stride), compute_halo(networks, config.padding, stride))
    return tracked(tiles, f"{action} tiles", len(tiles), lambda _: 1)


def encode(encode_tile: Callable[[Tensor], Codes], images: Tensor, config: NetworkConfig, networks: nn.Module) -> Codes:
    """Return the codes of images (B, C, Y, X).

    Args:
        encode_tile: checks and encodes a tile, or a small image.
        networks: the networks that `encode_tile` applies.
    """
    if torch.compiler.is_compiling() or images.shape[-2:].numel() <= _WHOLE:
        return encode_tile(images)
    grids = config.latent_grids(images.shape[-2], images.shape[-1])
    times = [grid[0] // grids[0][0] for grid in grids]
    stride = config.stride * times[-1]
    codes = [torch.empty(len(images), *grid, dtype=torch.long, device=images.device) for grid in grids]
    for core, around, inside in _track_tiles(grids[0], stride, networks, config, "encode"):
        tile_codes = encode_tile(images[index_pixels(around, stride)])
        for level, tile_level, n in zip(codes, tile_codes, times, strict=True):
            level[index_pixels(core, n)] = tile_level[index_pixels(inside, n)]
    return tuple(codes)


def decode(
    decode_tile: Callable[[Codes, Grid | None], Tensor], codes: Codes, size: Grid | None, config: NetworkConfig,
    networks: nn.Module,
) -> Tensor:  # fmt: skip
    """Return the images (B, C, Y, X) of codes; arguments as for `encode`.

    Raises InputError if the size in pixels (None: the largest) does not fit.
    """
    if torch.compiler.is_compiling() or not codes or codes[-1].shape[1:].numel() * config.stride**2 <= _WHOLE:
        return decode_tile(codes, size)
    grid = (codes[0].shape[1], codes[0].shape[2])
    times = [code.shape[1] // grid[0] for code in codes]
    stride = config.stride * times[-1]
    size = fit_size(size, grid[0] * stride, grid[1] * stride, config.padding)
    images: Tensor | None = None
    for core, around, inside in _track_tiles(grid, stride, networks, config, "decode"):
        tile_codes = tuple(code[index_pixels(around, n)] for code, n in zip(codes, times, strict=True))
        # The pixels of a position are shifted up and left by `padding`; the halo covers this.
        ends = zip(core, around, size, strict=True)
        height, width = (min(tile.stop * stride, side) - halo.start * stride for tile, halo, side in ends)
        decoded = decode_tile(tile_codes, (height, width))
        images = decoded.new_empty(*decoded.shape[:2], *size) if images is None else images
        images[index_pixels(core, stride)] = decoded[index_pixels(inside, stride)]
    assert images is not None
    return images
