"""Encode and decode the codes of one level, for many images of one size at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.kernels import decode_streams, encode_streams
from hrvqvae.compression.network import FRAME, FREQUENCY_BITS, NO_ARRAYS, EntropyNetwork
from hrvqvae.compression.range_coder import WIDTH, Bytes, Integers
from hrvqvae.utils.compiled import in_parts

CodeArray = NDArray[np.int32]

_MOST_CELLS, _CELLS_PER_BYTE = 1 << 24, 16  # 32-bit numbers in memory to decode an image, and more per byte of the file
_MOST_CODE_BYTES = 5  # that one code adds to a stream
_ONE_THREAD_IMAGES = 8  # up to so many images, one thread is as fast


class Layout:
    """The order of an image's codes, level after level: grids (levels, 2), values per code (levels,); coarse first.

    Attributes:
        begins: The index of the first code of each level, then the number of all codes (levels + 1,).
        arrays: begins, grids and symbols, for kernels.
    """

    def __init__(self, grids: Any, symbols: Any) -> None:
        self.grids, self.symbols = np.array(grids, np.int64), np.array(symbols, np.int64)
        self.begins = np.cumsum([0, *self.grids.prod(1)]).astype(np.int64)
        self.arrays = self.begins, self.grids, self.symbols

    def split(self, codes: CodeArray, num_levels: int) -> tuple[CodeArray, ...]:
        """Split codes (..., all codes) into maps (..., H_l, W_l) of the first `num_levels` levels."""
        shapes = self.grids.tolist()[:num_levels]
        ranges = pairwise(self.begins.tolist()[: num_levels + 1])
        return tuple(
            codes[..., begin:end].reshape(*codes.shape[:-1], *shape)
            for shape, (begin, end) in zip(shapes, ranges, strict=True)
        )


def _kernel_arguments(layout: Layout, level: int, network: EntropyNetwork | None) -> tuple[Any, ...]:
    """Return level, layout, network and the buffers of a thread, as kernels take them."""
    arrays = NO_ARRAYS if network is None else network.arrays
    _, bias, _, _, groups, features, *_ = arrays
    height, width = layout.grids[: level + 1].max(0) + 2 * FRAME
    work = (
        np.empty(4, np.int64), np.empty((len(groups), height, width), np.int32), np.empty(len(features), np.int64),
        np.empty(len(bias), np.int32), np.empty(layout.symbols[level], np.int64),
    )  # fmt: skip
    return level, layout.arrays, arrays, work


def encode_level(codes: CodeArray, layout: Layout, level: int, network: EntropyNetwork | None) -> list[bytes]:
    """Return the stream of each image for one level. `codes` (N, all codes) must be below `layout.symbols`."""
    out = np.empty((len(codes), _MOST_CODE_BYTES * int(layout.grids[level].prod()) + 2 * WIDTH), np.uint8)
    lengths = np.zeros(len(codes), np.int64)

    def encode_range(begin: int, end: int) -> None:
        encode_streams(codes, begin, end, *_kernel_arguments(layout, level, network), out, lengths)

    in_parts(len(codes), encode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return [row[:length].tobytes() for row, length in zip(out, lengths, strict=True)]


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
    num_codes, num_symbols = int(layout.grids[level].prod()), int(layout.symbols[level])
    if network is None:
        least_bits = num_codes * (num_symbols.bit_length() - 1)
    else:  # a frequency is at most 2^16 + 1, and the total is then at least 2^16 + m: (m - 1) / (2^16 + 1) bits
        least_bits = num_codes * (num_symbols - 1) // (2**FREQUENCY_BITS + 1)
    stops = np.where(least_bits <= 8 * (stops - starts), stops, starts - 1)  # too short: refused unread
    ends = np.empty(len(codes), np.int64)

    def decode_range(begin: int, end: int) -> None:
        decode_streams(content, starts, stops, begin, end, codes, *_kernel_arguments(layout, level, network), ends)

    in_parts(len(codes), decode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return ends
