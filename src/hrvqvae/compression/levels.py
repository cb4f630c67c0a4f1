"""Encode and decode the codes of one level, for many images of one size at once.

docs/format.md defines the results. All numbers are integers, and the sums of an `EntropyNetwork`
fit in 32 bits.

To compile fast, a compiled function has a single signature, allocates no memory and assigns no
slices. Arguments of several functions: `layout` is `Layout.arrays` (begins, grids, symbols).
`network` is `EntropyNetwork.arrays` (table, bias, weights, offsets, groups, features, selecting,
shift), or `ABSENT`. `work` holds the buffers of a thread: coder state, maps of the groups, table
rows, hidden units and frequencies.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression import range_coder as coder
from hrvqvae.compression.network import (
    ABSENT,
    FRAME,
    FREQUENCY_BITS,
    POWERS,
    STEPS_PER_OCTAVE,
    ZONES,
    EntropyNetwork,
)
from hrvqvae.compression.range_coder import Bytes, Integers
from hrvqvae.utils.compiled import compiled, in_parts, inlined

CodeArray = NDArray[np.int32]

NOT_WHOLE = -1  # in place of the end of a stream: the stream is cut short or damaged
# an image may take so many 32-bit numbers of memory, and so many more per byte of its file
_MOST_CELLS = 1 << 24
_CELLS_PER_BYTE = 16
_MOST_CODE_BYTES = 5  # that one code adds to a stream
_ONE_THREAD_IMAGES = 8  # up to so many images, one thread is as fast


class Layout:
    """The order of an image's codes: level after level, coarse first.

    `grids` (levels, 2) are the sizes of the levels, `symbols` (levels,) the values per code.

    Attributes:
        begins: The index of the first code of each level, then the number of all codes (levels +
            1,).
        arrays: begins, grids and symbols, for kernels.
    """

    def __init__(self, grids: Any, symbols: Any) -> None:
        self.grids = np.array(grids, np.int64)
        self.symbols = np.array(symbols, np.int64)
        self.begins = np.cumsum([0, *self.grids.prod(1)]).astype(np.int64)
        self.arrays = self.begins, self.grids, self.symbols

    def split(self, codes: CodeArray, num_levels: int) -> tuple[CodeArray, ...]:
        """Split the codes of an image (all codes,) into maps (H_l, W_l) of the first `num_levels`
        levels.
        """
        ranges = pairwise(self.begins[: num_levels + 1])
        return tuple(
            codes[slice(*ends)].reshape(grid)
            for ends, grid in zip(ranges, self.grids, strict=False)
        )


@inlined
def fill_maps(
    codes: CodeArray,
    image: int,
    begins: Integers,
    grids: Integers,
    symbols: Integers,
    groups: Integers,
    num_levels: int,
    maps: CodeArray,
) -> None:
    """Write the value of each group at every position to `maps`, inside a frame with the value for
    outside.

    `groups` (G, 2) are the first and the last level of runs of levels whose codes form one number
    (network.py). No group ends behind the level that is coded. Only the codes of the first
    `num_levels` levels enter a value; `append_code` adds the code of the next level.
    """
    for group in range(len(groups)):
        first = groups[group, 0]
        last = groups[group, 1]
        outside_value = 1
        for coarser in range(first, last + 1):
            outside_value *= symbols[coarser]
        for y in range(maps.shape[1]):
            for x in range(maps.shape[2]):
                maps[group, y, x] = outside_value
        height = grids[last, 0]
        width = grids[last, 1]
        for y in range(height):
            for x in range(width):
                value = 0
                for coarser in range(first, min(last + 1, num_levels)):
                    row = y * grids[coarser, 0] // height
                    column = x * grids[coarser, 1] // width
                    value = (
                        value * symbols[coarser]
                        + codes[image, begins[coarser] + row * grids[coarser, 1] + column]
                    )
                maps[group, y + FRAME, x + FRAME] = value


@inlined
def append_code(
    maps: CodeArray, groups: Integers, level: int, num_symbols: int, y: int, x: int, code: int
) -> None:
    """Append a code of the level to the values of the groups that include the level."""
    for group in range(len(groups)):
        if groups[group, 1] == level:
            maps[group, y + FRAME, x + FRAME] = (
                maps[group, y + FRAME, x + FRAME] * num_symbols + code
            )


@inlined
def find_rows(
    maps: CodeArray,
    groups: Integers,
    grids: Integers,
    level: int,
    features: Integers,
    selecting: int,
    y: int,
    x: int,
    rows: Integers,
) -> int:
    """Write the table rows of the features and of the zone of a position to `rows` (F + 1,); return
    the weight set.
    """
    height = grids[level, 0]
    width = grids[level, 1]

    # columns of the features: group, dy, dx, first table row; the last feature is the zone
    num_features = len(features) - 1
    for feature in range(num_features):
        group = features[feature, 0]
        last = groups[group, 1]
        row = y
        column = x
        if last != level:
            row = y * grids[last, 0] // height
            column = x * grids[last, 1] // width
        value = maps[
            group, row + features[feature, 1] + FRAME, column + features[feature, 2] + FRAME
        ]
        rows[feature] = features[feature, 3] + value
    zone_row = y * ZONES // height
    zone_column = x * ZONES // width
    rows[num_features] = features[num_features, 3] + zone_row * ZONES + zone_column
    weight_set = 0
    if selecting >= 0:
        last = groups[selecting, 1]
        weight_set = maps[
            selecting, y * grids[last, 0] // height + FRAME, x * grids[last, 1] // width + FRAME
        ]
    return weight_set


@inlined
def compute_frequencies(
    hidden: Any,
    weight_set: int,
    weights: Any,
    offsets: Any,
    shift: int,
    frequencies: Integers,
    num_symbols: int,
) -> int:
    """Write the frequency of each symbol and return the total. `hidden`, before the ReLU, is
    overwritten.
    """
    num_hidden = len(hidden)
    for h in range(num_hidden):
        hidden[h] = max(hidden[h], np.int32(0))
    largest = np.int64(-(2**31))
    for k in range(num_symbols):
        score = np.int32(offsets[weight_set, k])
        for h in range(num_hidden):
            score += np.int32(weights[weight_set, k, h]) * hidden[h]
        frequencies[k] = score
        largest = max(largest, np.int64(score))
    total = 0
    for k in range(num_symbols):
        drop = (largest - frequencies[k]) >> shift
        octaves = drop // STEPS_PER_OCTAVE
        frequencies[k] = 1 + (
            (POWERS[drop % STEPS_PER_OCTAVE] >> octaves) if octaves <= FREQUENCY_BITS else 0
        )
        total += frequencies[k]
    return total


@inlined
def compute_hidden(level: int, layout: Any, network: Any, work: Any, y: int, x: int) -> int:
    """Write the hidden units of the code at a position, before the ReLU, to `work`, and return the
    weight set.
    """
    table, bias, _, _, groups, features, selecting, _ = network
    _, maps, rows, hidden, _ = work
    weight_set: int = find_rows(maps, groups, layout[1], level, features, selecting, y, x, rows)
    for h in range(len(bias)):
        hidden[h] = bias[h]
    for row in rows:
        for h in range(len(bias)):
            hidden[h] += np.int32(table[row, h])
    return weight_set


@inlined
def _predict(level: int, layout: Any, network: Any, work: Any, y: int, x: int) -> int:
    """Write the frequencies of the code at a position to `work`, and return their total. Without a
    network, frequencies are 1 and are not written.
    """
    _, _, weights, offsets, _, features, _, shift = network
    _, _, _, hidden, frequencies = work
    num_symbols: int = layout[2][level]
    if not len(features):
        return num_symbols
    weight_set = compute_hidden(level, layout, network, work, y, x)
    return compute_frequencies(
        hidden, weight_set, weights, offsets, shift, frequencies, num_symbols
    )


@compiled()
def encode_streams(
    codes: CodeArray,
    begin: int,
    end: int,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
    out: Bytes,
    lengths: Integers,
) -> int:
    """Encode codes[begin:end] (N, codes of all levels): write each stream to a row of `out`, its
    bytes to `lengths`.
    """
    begins, grids, symbols = layout
    groups = network[4]
    features = network[5]
    state, maps, _, _, frequencies = work
    num_symbols = symbols[level]
    height = grids[level, 0]
    width = grids[level, 1]
    for image in range(begin, end):
        coder.begin_encoding(state)
        fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
        for y in range(height):
            for x in range(width):
                code: Any = np.int64(codes[image, begins[level] + y * width + x])
                before = code
                frequency = 1
                total = _predict(level, layout, network, work, y, x)
                if len(features):
                    before = 0
                    frequency = frequencies[code]
                    for k in range(code):
                        before += frequencies[k]
                append_code(maps, groups, level, num_symbols, y, x, code)
                coder.encode(state, out, image, before, frequency, total)
        lengths[image] = coder.end_encoding(state, out, image)
    return end - begin


@compiled()
def decode_streams(
    content: Bytes,
    starts: Integers,
    stops: Integers,
    begin: int,
    end: int,
    codes: CodeArray,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
    ends: Integers,
) -> int:
    """Decode codes[begin:end] from content[start:stop] of each image.

    The offset in `content` at which the stream of an image ends is written to `ends`, or NOT_WHOLE.
    An image whose stop is before its start is refused unread.
    """
    begins, grids, symbols = layout
    groups = network[4]
    features = network[5]
    state, maps, _, _, frequencies = work
    num_symbols = symbols[level]
    height = grids[level, 0]
    width = grids[level, 1]
    for image in range(begin, end):
        start = starts[image]
        stop = stops[image]
        coder.begin_decoding(state, content, start, stop)
        position = 0
        whole = start <= stop
        if whole:  # maps that are not written take no memory
            fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
        while whole and position < height * width:
            y = position // width
            x = position % width
            total = _predict(level, layout, network, work, y, x)
            target = coder.find_target(state, total)
            whole = target < total and state[coder.USED] <= stop - start
            if whole:
                code = target
                before = target
                frequency = 1
                if len(features):
                    code = 0
                    before = 0
                    while before + frequencies[code] <= target:
                        before += frequencies[code]
                        code += 1
                    frequency = frequencies[code]
                append_code(maps, groups, level, num_symbols, y, x, code)
                coder.consume(state, content, start, stop, before, frequency, total)
                codes[image, begins[level] + position] = code
                position += 1
        length = coder.end_decoding(state)
        ends[image] = start + length if whole and 0 <= length <= stop - start else NOT_WHOLE
    return end - begin


def kernel_arguments(layout: Layout, level: int, network: EntropyNetwork | None) -> tuple[Any, ...]:
    """Return level, layout, network and the buffers of a thread, as kernels take them."""
    arrays = ABSENT if network is None else network.arrays
    _, bias, _, _, groups, features, *_ = arrays
    height, width = layout.grids[: level + 1].max(0) + 2 * FRAME
    work = (
        np.empty(4, np.int64),
        np.empty((len(groups), height, width), np.int32),
        np.empty(len(features), np.int64),
        np.empty(len(bias), np.int32),
        np.empty(layout.symbols[level], np.int64),
    )
    return level, layout.arrays, arrays, work


def encode_level(
    codes: CodeArray, layout: Layout, level: int, network: EntropyNetwork | None
) -> list[bytes]:
    """Return the stream of each image for one level. `codes` (N, all codes) must be below
    `layout.symbols`.
    """
    most_bytes = _MOST_CODE_BYTES * int(layout.grids[level].prod()) + 2 * coder.VALUE_BYTES
    out = np.empty((len(codes), most_bytes), np.uint8)
    lengths = np.zeros(len(codes), np.int64)

    def encode_range(begin: int, end: int) -> None:
        encode_streams(codes, begin, end, *kernel_arguments(layout, level, network), out, lengths)

    in_parts(len(codes), encode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return [row[:length].tobytes() for row, length in zip(out, lengths, strict=True)]


def count_required_bytes(layout: Layout, level: int, network: EntropyNetwork | None) -> int:
    """Return the least size in bytes of a file for which a reader allocates the codes up to a level
    and the maps of groups.
    """
    largest_grid = int(layout.grids[: level + 1].prod(1).max())
    cells = int(layout.begins[level + 1])
    if network:
        cells += len(network.contexts.groups) * largest_grid
    return max(0, math.ceil((cells - _MOST_CELLS) / _CELLS_PER_BYTE))


def decode_level(
    content: Bytes,
    starts: Integers,
    stops: Integers,
    codes: CodeArray,
    layout: Layout,
    level: int,
    network: EntropyNetwork | None,
) -> Integers:
    """Decode one level of each image from content[start:stop] into `codes` (N, all codes).

    Returns:
        The offset in `content` at which each stream ends (N,), or NOT_WHOLE.
    """
    num_codes = int(layout.grids[level].prod())
    num_symbols = int(layout.symbols[level])
    least_bits = num_codes * (num_symbols.bit_length() - 1)

    # with a network, a frequency f is at most 2^16 + 1, and the other m - 1 symbols add at least
    # m - 1 to the total: log2(total / f) >= (m - 1) / (2^16 + 1), as log2(1 + x) >= x up to x = 1
    if network:
        least_bits = num_codes * (num_symbols - 1) // (2**FREQUENCY_BITS + 1)
    too_short = least_bits > 8 * (stops - starts)
    stops = np.where(too_short, starts - 1, stops)  # refuses the image unread
    ends = np.empty(len(codes), np.int64)

    def decode_range(begin: int, end: int) -> None:
        decode_streams(
            content,
            starts,
            stops,
            begin,
            end,
            codes,
            *kernel_arguments(layout, level, network),
            ends,
        )

    in_parts(len(codes), decode_range, one_thread_up_to=_ONE_THREAD_IMAGES)
    return ends
