"""Encode and decode the codes of one level, for many images of one size at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.kernels import NOT_WHOLE, decode_streams, encode_streams, workspace
from hrvqvae.compression.network import FREQUENCY_BITS, NO_ARRAYS, EntropyNetwork
from hrvqvae.compression.range_coder import WIDTH
from hrvqvae.config import Grid
from hrvqvae.utils.compiled import in_parts

Integers = NDArray[np.int64]
CodeArray = NDArray[np.int32]
Bytes = NDArray[np.uint8]

_MOST_CELLS, _CELLS_PER_BYTE = 1 << 24, 16  # 32-bit numbers in memory to decode an image, and more per byte of the file
_MOST_CODE_BYTES = 5  # that one code adds to a stream
_ONE_THREAD_IMAGES = 8  # up to so many images, one thread is as fast


@dataclass(frozen=True)
class Layout:
    """The order of an image's codes, level after level: grids (levels, 2), values per code (levels,); coarse first."""

    grids: Integers
    symbols: Integers

    @classmethod
    def of(cls, grids: Sequence[Grid], symbols: Sequence[int]) -> Layout:
        """Return the layout of levels, from their grids and their values per code."""
        return cls(np.array(grids, np.int64), np.array(symbols, np.int64))

    @cached_property
    def begins(self) -> Integers:
        """The index of the first code of each level, then the number of all codes (levels + 1,)."""
        return np.cumsum([0, *self.grids.prod(1)]).astype(np.int64)

    def truncate(self, num_levels: int) -> Layout:
        """Return the layout of the first `num_levels` levels."""
        return Layout(self.grids[:num_levels], self.symbols[:num_levels])

    def split(self, codes: CodeArray, num_levels: int) -> tuple[CodeArray, ...]:
        """Split codes (..., all codes) into maps (..., H_l, W_l) of the first `num_levels` levels."""
        shapes = self.grids.tolist()[:num_levels]
        ranges = pairwise(self.begins.tolist()[: num_levels + 1])
        return tuple(
            codes[..., begin:end].reshape(*codes.shape[:-1], *shape)
            for shape, (begin, end) in zip(shapes, ranges, strict=True)
        )


def _kernel_arguments(layout: Layout, level: int, network: EntropyNetwork | None) -> tuple[Any, ...]:
    """Return level, layout and network, as kernels take them."""
    arrays = NO_ARRAYS if network is None else network.arrays
    return level, (layout.begins[: level + 2], layout.grids[: level + 1], layout.symbols), arrays


def encode_level(codes: CodeArray, layout: Layout, level: int, network: EntropyNetwork | None) -> list[bytes]:
    """Return the stream of each image for one level. `codes` (N, all codes) must be below `layout.symbols`."""
    out = np.empty((len(codes), _MOST_CODE_BYTES * int(layout.grids[level].prod()) + 2 * WIDTH), np.uint8)
    lengths = np.zeros(len(codes), np.int64)
    arguments = _kernel_arguments(layout, level, network)

    def encode_range(begin: int, end: int) -> None:
        encode_streams(codes, begin, end, *arguments, workspace(*arguments), out, lengths)

    in_parts(len(codes), encode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return [row[:length].tobytes() for row, length in zip(out, lengths, strict=True)]


def _count_required_bits(layout: Layout, level: int, network: EntropyNetwork | None) -> int:
    """Return a lower bound of the bits of a level's codes, by which a file that is too short is refused unread.

    A symbol has a frequency of at most 2^16 + 1, and the total of m symbols is then at least 2^16 + m. So the symbol
    takes at least (m - 1) / (2^16 + 1) bits.
    """
    num_codes, num_symbols = int(layout.grids[level].prod()), int(layout.symbols[level])
    return (
        num_codes * (num_symbols.bit_length() - 1)
        if network is None
        else num_codes * (num_symbols - 1) // (2**FREQUENCY_BITS + 1)
    )


def count_required_bytes(layout: Layout, level: int, network: EntropyNetwork | None) -> int:
    """Return how many bytes a file needs before a reader allocates the codes up to a level and the maps of groups."""
    largest_grid = int(layout.grids[: level + 1].prod(1).max())
    cells = int(layout.begins[level + 1]) + (0 if network is None else len(network.contexts.groups) * largest_grid)
    return max(0, -(-(cells - _MOST_CELLS) // _CELLS_PER_BYTE))


def decode_level(
    content: Bytes, starts: Integers, stops: Integers, codes: CodeArray, layout: Layout, level: int,
    network: EntropyNetwork | None,
) -> Integers:  # fmt: skip
    """Decode one level of each image from content[start:stop] into `codes` (N, all codes).

    Returns:
        The offset in `content` at which each stream ends (N,), or NOT_WHOLE.
    """
    ends = np.full(len(codes), NOT_WHOLE, np.int64)
    possible = _count_required_bits(layout, level, network) <= 8 * (stops - starts)
    if not possible.all():
        if possible.any():
            possible_codes = codes[possible]
            ends[possible] = decode_level(
                content, starts[possible], stops[possible], possible_codes, layout, level, network
            )
            codes[possible] = possible_codes
        return ends
    arguments = _kernel_arguments(layout, level, network)

    def decode_range(begin: int, end: int) -> None:
        decode_streams(content, starts, stops, begin, end, codes, *arguments, workspace(*arguments), ends)

    in_parts(len(codes), decode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return ends
