"""Encode and decode large images in tiles: the same results, with memory that does not grow with
the image.

A tile has a core and a halo, the surroundings on which the core's codes or pixels depend. Both are
computed, and the core is kept. Lengths are positions of the coarsest grid unless a line says
pixels; a position has `stride` pixels.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid, NetworkConfig
from hrvqvae.models.base import resolve_size
from hrvqvae.quantize import Codes
from hrvqvae.utils.progress import tracked

_TILE = 1024  # pixels per side
_MAX_UNDIVIDED = 2 * _TILE**2  # pixels of the largest image that is not divided

Area = tuple[slice, ...]  # rows and columns


class Tile(NamedTuple):
    """A tile of a grid."""

    core: Area
    extended: Area  # core and halo
    core_in_extended: Area  # the core, counted from the corner of `extended`


def compute_halo(networks: nn.Module, padding: int, stride: int) -> int:
    """Return the width of the halo: an upper bound of the distance over which codes or pixels
    depend on others.

    The bound is the sum of the reach of every convolution, as if each convolution ran on the
    coarsest grid.
    """
    convolutions = (
        layer for layer in networks.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    )
    reach = sum(layer.dilation[0] * (layer.kernel_size[0] // 2) for layer in convolutions)
    # decoded pixels are shifted by the padding, and a decoded tile is smaller by twice the padding
    shift = -(-padding // stride)
    cropped = -(-2 * padding // stride)
    return max(reach + shift, cropped)


def divide_grid(grid: Grid, side: int, margin: int) -> list[Tile]:
    """Divide a grid into tiles of about the same size, at most `side` positions per side, with
    halos of `margin`.
    """

    def divide_axis(length: int) -> Iterator[tuple[slice, slice, slice]]:
        count = -(-length // side)
        for tile in range(count):
            first = length * tile // count
            last = length * (tile + 1) // count
            begin = max(0, first - margin)
            end = min(length, last + margin)
            yield slice(first, last), slice(begin, end), slice(first - begin, last - begin)

    return [Tile(*zip(*axes, strict=True)) for axes in product(*map(divide_axis, grid))]


def index_area(area: Area, factor: int = 1) -> Any:
    """Return the index of an area in pixels or codes (..., Y, X), of which a position of the area's
    grid has `factor` per axis.
    """
    return ..., *(slice(factor * part.start, factor * part.stop) for part in area)


def _track_tiles(
    grid: Grid, stride: int, networks: nn.Module, config: NetworkConfig, action: str
) -> Iterator[Tile]:
    tiles = divide_grid(
        grid, max(1, _TILE // stride), compute_halo(networks, config.padding, stride)
    )
    return tracked(tiles, f"{action} tiles", len(tiles), lambda _: 1)


def encode(
    encode_tile: Callable[[Tensor], Codes],
    images: Tensor,
    config: NetworkConfig,
    networks: nn.Module,
) -> Codes:
    """Return the codes of images (B, C, Y, X); `encode_tile` encodes a tile, perhaps in its first
    levels only, by the convolutions of `networks`.
    """
    # a traced graph can't depend on the size
    if torch.compiler.is_compiling() or images.shape[-2:].numel() <= _MAX_UNDIVIDED:
        return encode_tile(images)
    grids = config.geometry.grids(*images.shape[-2:])
    factors = [grid[0] // grids[0][0] for grid in grids]  # codes per position, along an axis
    stride = config.stride * factors[-1]
    codes = [
        torch.empty(len(images), *grid, dtype=torch.long, device=images.device) for grid in grids
    ]
    for core, extended, core_in_extended in _track_tiles(
        grids[0], stride, networks, config, "encode"
    ):
        tile_codes = encode_tile(images[index_area(extended, stride)])
        for level_codes, level_tile, factor in zip(codes, tile_codes, factors, strict=False):
            level_codes[index_area(core, factor)] = level_tile[index_area(core_in_extended, factor)]
    return tuple(codes[: len(tile_codes)])


def decode(
    decode_tile: Callable[[Codes, Grid | None], Tensor],
    codes: Codes,
    size: Grid | None,
    config: NetworkConfig,
    networks: nn.Module,
) -> Tensor:
    """Return the images (B, C, Y, X) of codes; `decode_tile` decodes codes to a size by
    convolutions of `networks`.

    Raises InputError if the size does not fit; None is the largest size.
    """
    if (
        torch.compiler.is_compiling()
        or codes[-1].shape[1:].numel() * config.stride**2 <= _MAX_UNDIVIDED
    ):
        return decode_tile(codes, size)
    grid = (codes[0].shape[1], codes[0].shape[2])
    factors = [level_codes.shape[1] // grid[0] for level_codes in codes]
    stride = config.stride * factors[-1]
    size = resolve_size(size, grid[0] * stride, grid[1] * stride, config.padding)
    images: Tensor | None = None
    for core, extended, core_in_extended in _track_tiles(grid, stride, networks, config, "decode"):
        if any(part.start * stride >= side for part, side in zip(core, size, strict=True)):
            continue  # the tile lies outside an image of this size
        pairs = zip(codes, factors, strict=True)
        tile_codes = tuple(
            level_codes[index_area(extended, factor)] for level_codes, factor in pairs
        )
        # `decode_tile` crops the padding at the top left of a tile as of an image, so the first
        # decoded pixel is that of the extended area. Pixels end with the core, or the image.
        axes = zip(core, extended, size, strict=True)
        height, width = (
            min(part.stop * stride, side) - extended_part.start * stride
            for part, extended_part, side in axes
        )
        decoded = decode_tile(tile_codes, (height, width))
        images = decoded.new_empty(*decoded.shape[:2], *size) if images is None else images
        images[index_area(core, stride)] = decoded[index_area(core_in_extended, stride)]
    assert images is not None
    return images
