"""Large images in tiles, so that memory does not grow with the image; their codes and pixels are those of the whole.

A tile is coded or decoded with as much around it as its codes or pixels depend on, and only its own part is kept.
Lengths are in positions of the coarsest grid, s pixels each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid
from hrvqvae.models.base import fitting
from hrvqvae.quantize import Codes
from hrvqvae.utils.progress import tracked

_TILE = 1024  # pixels a side
_WHOLE = 2 * _TILE**2  # pixels of the largest image that is not divided


def reach(networks: nn.Module, padding: int, stride: int) -> int:
    """Positions at each side of a tile that its codes and pixels can depend on: an upper bound.

    It counts the reach of every convolution as if all stood one after the other on the coarsest grid.
    """
    convolutions = (one for one in networks.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d))
    return sum(one.dilation[0] * (one.kernel_size[0] // 2) for one in convolutions) + -(-padding // stride)


def _tiles(grid: Grid, stride: int, margin: int, what: str) -> Iterator[tuple[tuple[int, int, int, int], ...]]:
    """For rows and columns: where a tile with its margin begins, the tile begins, ends, and ends with its margin."""
    side = max(1, _TILE // stride)
    axes = [
        [
            (max(0, begin - margin), begin, min(begin + side, length), min(begin + side + margin, length))
            for begin in range(0, length, side)
        ]
        for length in grid
    ]
    tiles = list(product(*axes))
    return tracked(tiles, f"{what} tiles", len(tiles), lambda _: 1)


def encode(
    whole: Callable[[Tensor], Codes], images: Tensor, grid_of: Callable[[int, int], Grid], stride: int,
    margin: Callable[[], int],
) -> Codes:  # fmt: skip
    """Codes of images (B, C, Y, X), by the function that encodes whole ones, which checks them.

    Args:
        grid_of: height and width in pixels -> the coarsest grid.
        stride: s.
        margin: gives what `reach` does, where it is needed.
    """
    if torch.compiler.is_compiling() or images.shape[-2:].numel() <= _WHOLE:
        return whole(images)
    grid, found = grid_of(images.shape[-2], images.shape[-1]), list[Tensor]()
    for rows, columns in _tiles(grid, stride, margin(), "encode"):
        (top, first, last, bottom), (left, begin, end, right) = rows, columns
        part = whole(images[..., top * stride : bottom * stride, left * stride : right * stride])
        if not found:
            times = [max(1, code.shape[1] // min(one.shape[1] for one in part)) for code in part]
            found = [code.new_empty(len(code), grid[0] * n, grid[1] * n) for code, n in zip(part, times, strict=True)]
        for own, code, n in zip(found, part, times, strict=True):
            kept = code[:, (first - top) * n : (last - top) * n, (begin - left) * n : (end - left) * n]
            own[:, first * n : last * n, begin * n : end * n] = kept
    return tuple(found)


def decode(
    whole: Callable[[Codes, Grid | None], Tensor], codes: Codes, size: Grid | None, padding: int, stride: int,
    margin: Callable[[], int],
) -> Tensor:  # fmt: skip
    """Images (B, C, Y, X) of codes, by the function that decodes whole ones, which checks them, to a size in pixels.

    A size of None is the largest. The rest as `encode`. Raises InputError where the size does not fit.
    """
    if torch.compiler.is_compiling() or not codes or codes[0].shape[1:].numel() * stride**2 <= _WHOLE:
        return whole(codes, size)
    grid = (codes[0].shape[1], codes[0].shape[2])
    height, width = fitting(size, grid[0] * stride, grid[1] * stride, padding)
    times, images = [code.shape[1] // grid[0] for code in codes], None
    for rows, columns in _tiles(grid, stride, margin(), "decode"):
        (top, first, last, bottom), (left, begin, end, right) = rows, columns
        some = (code[:, top * n : bottom * n, left * n : right * n] for code, n in zip(codes, times, strict=True))
        # A position's pixels are `padding` up and left of where it lies, which the margin holds.
        reached = (min(last * stride, height) - top * stride, min(end * stride, width) - left * stride)
        part = whole(tuple(some), reached)
        if images is None:
            images = part.new_empty(*part.shape[:2], height, width)
        own = part[..., (first - top) * stride :, (begin - left) * stride :]
        images[..., first * stride : last * stride, begin * stride : end * stride] = own
    assert images is not None
    return images
