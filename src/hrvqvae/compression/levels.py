"""The codes of a level as bytes, and back, for many images of one size at once.

A level is coded by its `Network`, or, where there is none, every symbol alike: log2 m bits a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression import range_coder as coder
from hrvqvae.compression.network import FRAME, TOP, Network, fill_maps, find_frequencies, find_rows, find_set, put
from hrvqvae.config import Grid
from hrvqvae.utils.compiled import compiled, in_parts

Integers = NDArray[np.int64]
Codes = NDArray[np.int32]
Bytes = NDArray[np.uint8]

NOT_WHOLE = -1
_LARGEST_CODE = 5  # bytes that a code can take
_ALONE = 8  # images that are not worth a second thread


@dataclass(frozen=True)
class Layout:
    """Where the codes of the levels of an image lie, level after level: grids (levels, 2) and symbols (levels,)."""

    grids: Integers
    symbols: Integers

    @classmethod
    def of(cls, grids: Sequence[Grid], symbols: Sequence[int]) -> Layout:
        """Of levels with these grids, coarse first."""
        return cls(np.array(grids, np.int64), np.array(symbols, np.int64))

    @cached_property
    def begins(self) -> Integers:
        """(levels + 1,), the first code of each level, and the number of all codes."""
        return np.cumsum([0, *self.grids.prod(1)]).astype(np.int64)

    def first(self, levels: int) -> Layout:
        """Of the first levels alone."""
        return Layout(self.grids[:levels], self.symbols[:levels])

    def maps(self, codes: Codes, levels: int) -> tuple[Codes, ...]:
        """Codes (..., all codes) as maps (..., H_l, W_l) of the first levels."""
        parts = np.split(codes, self.begins[1:-1], axis=-1)
        return tuple(parts[level].reshape(*codes.shape[:-1], *self.grids[level]) for level in range(levels))


@compiled()
def _workspace(level: int, layout: Any, network: Any) -> Any:
    """Maps of the groups, a row for each feature, hidden units, and frequencies, all written to."""
    grids, symbols = layout[1:]
    groups = network[4]
    maps = np.empty((len(groups), grids[:, 0].max() + 2 * FRAME, grids[:, 1].max() + 2 * FRAME), np.int32)
    rows, hidden = np.empty(len(network[5]), np.int64), np.empty(len(network[1]), np.int32)
    return maps, rows, hidden, np.empty(symbols[level], np.int64)


@compiled()
def _encode(
    images: Codes, first: int, last: int, level: int, layout: Any, network: Any, out: Bytes, lengths: Integers
) -> int:
    """Write the streams of images[first:last] (N, all codes) to the rows of `out`, and their lengths."""
    begins, grids, symbols = layout
    values, height, width, state = symbols[level], grids[level, 0], grids[level, 1], np.empty(4, np.int64)
    if network is not None:  # numba compiles the function for networks, and for none
        table, bias, weights, offsets, groups, features, selecting, shift = network
        maps, rows, hidden, frequencies = _workspace(level, layout, network)
    for image in range(first, last):
        codes, stream = images[image], out[image]
        coder.begin_encoding(state)
        if network is not None:
            fill_maps(codes, begins, grids, symbols, groups, level, maps)
        for place in range(height * width):
            code = codes[begins[level] + place]
            if network is None:
                coder.encode(state, stream, code, 1, values)
            else:
                y, x = place // width, place % width
                find_rows(maps, groups, grids, level, features, y, x, rows)
                chosen = find_set(maps, groups, grids, level, selecting, y, x)
                total = find_frequencies(rows, chosen, table, bias, weights, offsets, shift, hidden, frequencies)
                coder.encode(state, stream, frequencies[:code].sum(), frequencies[code], total)
                put(maps, groups, level, values, y, x, code)
        lengths[image] = coder.end_encoding(state, stream)
    return last - first


@compiled()
def _decode(
    content: Bytes, starts: Integers, stops: Integers, first: int, last: int, images: Codes, level: int, layout: Any,
    network: Any, ends: Integers,
) -> int:  # fmt: skip
    """Write codes of images[first:last] from content[starts:stops], and where each stream ends (or NOT_WHOLE)."""
    begins, grids, symbols = layout
    values, height, width, state = symbols[level], grids[level, 0], grids[level, 1], np.empty(4, np.int64)
    if network is not None:
        table, bias, weights, offsets, groups, features, selecting, shift = network
        maps, rows, hidden, frequencies = _workspace(level, layout, network)
    for image in range(first, last):
        codes, stream = images[image], content[starts[image] : stops[image]]
        coder.begin_decoding(state, stream)
        whole = True
        if network is not None:
            fill_maps(codes, begins, grids, symbols, groups, level, maps)
        for place in range(height * width):
            y, x, total = place // width, place % width, values
            if network is not None:
                find_rows(maps, groups, grids, level, features, y, x, rows)
                chosen = find_set(maps, groups, grids, level, selecting, y, x)
                total = find_frequencies(rows, chosen, table, bias, weights, offsets, shift, hidden, frequencies)
            sought = coder.sought(state, total)
            whole = sought < total and state[2] <= len(stream)
            if not whole:
                break
            if network is None:
                code = sought
                coder.decode(state, stream, code, 1, total)
            else:
                code, before = 0, 0
                while before + frequencies[code] <= sought:
                    before += frequencies[code]
                    code += 1
                coder.decode(state, stream, before, frequencies[code], total)
                put(maps, groups, level, values, y, x, code)
            codes[begins[level] + place] = code
        end = coder.end_decoding(state) if whole else NOT_WHOLE
        ends[image] = starts[image] + end if 0 <= end <= len(stream) else NOT_WHOLE
    return last - first


def _arguments(layout: Layout, level: int, network: Network | None) -> tuple[Any, ...]:
    """`level`, `layout` and `network` as the compiled functions take them."""
    arrays = None if network is None else (*network.arrays, network.contexts.selecting, network.shift)
    return level, (layout.begins[: level + 2], layout.grids[: level + 1], layout.symbols), arrays


def encode_level(codes: Codes, layout: Layout, level: int, network: Network | None) -> list[bytes]:
    """The stream of a level of each image; codes (N, all codes), in range."""
    number = layout.begins[level + 1] - layout.begins[level]
    out = np.empty((len(codes), _LARGEST_CODE * number + 2 * coder.WIDTH), np.uint8)
    lengths = np.zeros(len(codes), np.int64)
    about = _arguments(layout, level, network)
    in_parts(len(codes), lambda first, last: _encode(codes, first, last, *about, out, lengths), alone=_ALONE)
    return [row[:length].tobytes() for row, length in zip(out, lengths, strict=True)]


def _least_bits(layout: Layout, level: int, network: Network | None) -> int:
    """Bits that the codes of a level can't take less than: so no memory is spent on a small file of a large image.

    A symbol by a network has 2^16 + 1 of at least 2^16 + m parts: -log2 of that is more than (m - 1) / (2^16 + 1).
    """
    number, symbols = int(layout.begins[level + 1] - layout.begins[level]), int(layout.symbols[level])
    return number * (symbols.bit_length() - 1) if network is None else number * (symbols - 1) // (2**TOP + 1)


def decode_level(
    content: Bytes, starts: Integers, stops: Integers, codes: Codes, layout: Layout, level: int,
    network: Network | None,
) -> Integers:  # fmt: skip
    """Write the codes of a level of each image; -> where its stream ends, or NOT_WHOLE.

    Args:
        content: bytes of all images.
        starts: (N,), where the stream of each begins.
        stops: (N,), what lies from here on is not read.
        codes: (N, all codes), those of the coarser levels known.
    """
    ends = np.full(len(codes), NOT_WHOLE, np.int64)
    possible = _least_bits(layout, level, network) <= 8 * (stops - starts)
    if not possible.all():
        if possible.any():
            some = codes[possible]
            ends[possible] = decode_level(content, starts[possible], stops[possible], some, layout, level, network)
            codes[possible] = some
        return ends
    about = _arguments(layout, level, network)
    in_parts(
        len(codes), lambda first, last: _decode(content, starts, stops, first, last, codes, *about, ends), alone=_ALONE
    )
    return ends
