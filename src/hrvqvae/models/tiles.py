"""Encode and decode large images in tiles: the same results, with memory that does not grow with
the image.

A tile has a core and a halo: the surroundings on which the core's codes or pixels depend. Core and
halo are computed, and the core is kept. Lengths are positions of the coarsest grid unless a line
says pixels. Along a side, a position has `stride` pixels.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid, NetworkConfig
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
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


def _iterate_tiles(
    grid: Grid, stride: int, networks: nn.Module, config: NetworkConfig, action: str
) -> Iterator[Tile]:
    """Yield tiles of about the same size, with a progress bar."""
    side = max(1, _TILE // stride)
    halo = compute_halo(networks, config.padding, stride)

    def divide_axis(length: int) -> Iterator[tuple[slice, slice, slice]]:
        count = -(-length // side)
        for tile in range(count):
            first = length * tile // count
            last = length * (tile + 1) // count
            begin = max(0, first - halo)
            end = min(length, last + halo)
            yield slice(first, last), slice(begin, end), slice(first - begin, last - begin)

    tiles = [Tile(*zip(*axes, strict=True)) for axes in product(*map(divide_axis, grid))]
    return tracked(tiles, f"{action} tiles", len(tiles), lambda _: 1)


def index_area(area: Area, factor: int = 1) -> Any:
    """Return the index of an area in a tensor (..., Y, X) of pixels or codes, which has `factor`
    rows and columns per position of the area.
    """
    return ..., *(slice(factor * part.start, factor * part.stop) for part in area)


def encode(
    encode_tile: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    config: NetworkConfig,
    networks: nn.Module,
) -> tuple[Tensor, ...]:
    """Return the codes of images (B, C, Y, X), or other maps of positions.

    Args:
        encode_tile: Encodes the images of a tile to maps (B, H, W) of any type.
        networks: The networks whose convolutions `encode_tile` uses.
    """
    # a traced graph can't depend on the size
    if torch.compiler.is_compiling() or images.shape[-2:].numel() <= _MAX_UNDIVIDED:
        return encode_tile(images)
    grids = config.geometry.grids(*images.shape[-2:])
    factors = [grid[0] // grids[0][0] for grid in grids]  # codes per position, along an axis
    stride = config.stride * factors[-1]
    maps = list[Tensor]()
    for core, extended, core_in_extended in _iterate_tiles(
        grids[0], stride, networks, config, "encode"
    ):
        tile_maps = encode_tile(images[index_area(extended, stride)])
        for index, tile_map in enumerate(tile_maps):
            # a map per level, or several of each
            factor = factors[index % len(factors)]
            if index == len(maps):
                grid = grids[index % len(grids)]
                maps.append(tile_map.new_empty(len(images), *grid))
            maps[index][index_area(core, factor)] = tile_map[index_area(core_in_extended, factor)]
    return tuple(maps)


def decode(
    decode_tile: Callable[[Codes, Grid], Tensor],
    codes: Codes,
    size: Grid | None,
    config: NetworkConfig,
    networks: nn.Module,
) -> Tensor:
    """Return the images (B, C, Y, X) of codes.

    Args:
        decode_tile: Decodes the codes of a tile to images of a size.
        size: Height and width (None: the largest size).
        networks: The networks whose convolutions `decode_tile` uses.

    Raises:
        InputError: The size does not fit the codes.
    """
    # of the images without their padding
    finest_rows, finest_columns = codes[-1].shape[1:]
    most_rows = finest_rows * config.stride - 2 * config.padding
    most_columns = finest_columns * config.stride - 2 * config.padding
    height, width = size or (most_rows, most_columns)
    if not (1 <= height <= most_rows and 1 <= width <= most_columns):
        raise InputError(
            f"size {height}x{width} does not fit these codes; at most {most_rows}x{most_columns}"
        )
    area = finest_rows * finest_columns * config.stride**2
    if torch.compiler.is_compiling() or area <= _MAX_UNDIVIDED:
        return decode_tile(codes, (height, width))

    grid = (codes[0].shape[1], codes[0].shape[2])
    factors = [level_codes.shape[1] // grid[0] for level_codes in codes]
    stride = config.stride * factors[-1]
    images: Tensor | None = None
    for core, extended, core_in_extended in _iterate_tiles(
        grid, stride, networks, config, "decode"
    ):
        pairs = zip(codes, factors, strict=True)
        tile_codes = tuple(
            level_codes[index_area(extended, factor)] for level_codes, factor in pairs
        )
        # `decode_tile` crops the padding above and to the left of a tile, as of an image. So the
        # first decoded pixel is that of the extended area.
        rows, columns = (stride * (part.stop - part.start) for part in extended)
        decoded = decode_tile(tile_codes, (rows, columns))
        if images is None:
            images = decoded.new_empty(*decoded.shape[:2], height, width)

        # the last cores reach beyond the image
        target = images[index_area(core, stride)]
        part = decoded[index_area(core_in_extended, stride)]
        target.copy_(part[..., : target.shape[-2], : target.shape[-1]])
    assert images is not None
    return images
