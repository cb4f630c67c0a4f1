"""The codes of a level as bytes, and back, for many images of one size at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.kernels import NOT_WHOLE, decode_images, encode_images, workspace
from hrvqvae.compression.network import NO_ARRAYS, TOP, EntropyNetwork
from hrvqvae.compression.range_coder import WIDTH
from hrvqvae.config import Grid
from hrvqvae.utils.compiled import in_parts

Integers = NDArray[np.int64]
Codes = NDArray[np.int32]
Bytes = NDArray[np.uint8]

_CELLS, _CELLS_PER_BYTE = 1 << 24, 16  # 32-bit numbers in memory while an image is decoded, by the bytes of its file
_LARGEST_CODE = 5  # bytes that a code can take
_ALONE = 8  # images that are not worth a second thread


@dataclass(frozen=True)
class Layout:
    """Where the codes of an image lie, level after level: grids (levels, 2) and symbols (levels,), coarse first."""

    grids: Integers
    symbols: Integers

    @classmethod
    def of(cls, grids: Sequence[Grid], symbols: Sequence[int]) -> Layout:
        """Return the layout of levels with these grids."""
        return cls(np.array(grids, np.int64), np.array(symbols, np.int64))

    @cached_property
    def begins(self) -> Integers:
        """The first code of each level, and the number of all codes (levels + 1,)."""
        return np.cumsum([0, *self.grids.prod(1)]).astype(np.int64)

    def first(self, levels: int) -> Layout:
        """Return the layout of the first levels alone."""
        return Layout(self.grids[:levels], self.symbols[:levels])

    def maps(self, codes: Codes, levels: int) -> tuple[Codes, ...]:
        """Return codes (..., all codes) as maps (..., H_l, W_l) of the first levels."""
        shapes = self.grids.tolist()[:levels]
        ranges = pairwise(self.begins.tolist()[: levels + 1])
        return tuple(
            codes[..., begin:end].reshape(*codes.shape[:-1], *shape)
            for shape, (begin, end) in zip(shapes, ranges, strict=True)
        )


def _arguments(layout: Layout, level: int, network: EntropyNetwork | None) -> tuple[Any, ...]:
    """Return level, layout and network as the compiled functions take them."""
    arrays = NO_ARRAYS if network is None else network.arrays
    return level, (layout.begins[: level + 2], layout.grids[: level + 1], layout.symbols), arrays


def encode_level(codes: Codes, layout: Layout, level: int, network: EntropyNetwork | None) -> list[bytes]:
    """Return the stream of a level of each image; codes (N, all codes), in range."""
    out = np.empty((len(codes), _LARGEST_CODE * int(layout.grids[level].prod()) + 2 * WIDTH), np.uint8)
    lengths = np.zeros(len(codes), np.int64)
    about = _arguments(layout, level, network)

    def run(first: int, last: int) -> None:
        encode_images(codes, first, last, *about, workspace(*about), out, lengths)

    in_parts(len(codes), run, one_thread_up_to=_ALONE)
    return [row[:length].tobytes() for row, length in zip(out, lengths, strict=True)]


def _least_bits(layout: Layout, level: int, network: EntropyNetwork | None) -> int:
    """Return the fewest bits of the codes of a level, so that no memory is spent on a small file of a large image.

    A symbol by a network has 2^16 + 1 of at least 2^16 + m parts: -log2 of that is more than (m - 1) / (2^16 + 1).
    """
    count, symbols = int(layout.grids[level].prod()), int(layout.symbols[level])
    return count * (symbols.bit_length() - 1) if network is None else count * (symbols - 1) // (2**TOP + 1)


def least_bytes(layout: Layout, level: int, network: EntropyNetwork | None) -> int:
    """Return how many bytes a file must have for a reader to spend memory on a level: for codes and maps of groups."""
    largest = int(layout.grids[: level + 1].prod(1).max())
    cells = int(layout.begins[level + 1]) + (0 if network is None else len(network.contexts.groups) * largest)
    return max(0, -(-(cells - _CELLS) // _CELLS_PER_BYTE))


def decode_level(
    content: Bytes, starts: Integers, stops: Integers, codes: Codes, layout: Layout, level: int,
    network: EntropyNetwork | None,
) -> Integers:  # fmt: skip
    """Write a level of codes (N, all codes) from content[start:stop] of each image.

    Returns:
        Where each stream ends (N,), or NOT_WHOLE.
    """
    ends = np.full(len(codes), NOT_WHOLE, np.int64)
    possible = _least_bits(layout, level, network) <= 8 * (stops - starts)
    if not possible.all():
        if possible.any():
            part = codes[possible]
            ends[possible] = decode_level(content, starts[possible], stops[possible], part, layout, level, network)
            codes[possible] = part
        return ends
    about = _arguments(layout, level, network)

    def run(first: int, last: int) -> None:
        decode_images(content, starts, stops, first, last, codes, *about, workspace(*about), ends)

    in_parts(len(codes), run, one_thread_up_to=_ALONE)
    return ends
