"""Encode and decode the codes of one level of an image.

docs/format.md defines the results. All numbers are integers, and the sums of an `EntropyNetwork`
fit in 32 bits.

To compile fast, a compiled function has a single signature, allocates no memory and assigns no
slices. Arguments of several functions: `codes` are the codes of all levels of an image, `layout` is
`Layout.arrays` (begins, grids, symbols). `network` is `EntropyNetwork.arrays` (table, bias,
weights, offsets, groups, features, selecting, shift), or `ABSENT`. `work` holds buffers: coder
state, maps of the groups, table rows, hidden units and frequencies.
"""

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
from hrvqvae.utils.compiled import compiled, inlined

CodeArray = NDArray[np.int32]

NOT_WHOLE = -1  # in place of the end of a stream: the stream is cut short or damaged
_MOST_CODE_BYTES = 5  # that one code adds to a stream


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
        levels = np.split(codes, self.begins[1:])
        pairs = zip(levels[:num_levels], self.grids, strict=False)
        return tuple(level.reshape(grid) for level, grid in pairs)


@inlined
def fill_maps(codes: Any, layout: Any, groups: Integers, num_levels: int, maps: CodeArray) -> None:
    """Write the value of each group at every position to `maps`, inside a frame with the value for
    outside.

    `groups` (G, 2) are the first and the last level of runs of levels whose codes form one number
    (network.py). No group ends behind the level that is coded. Only the codes of the first
    `num_levels` levels enter a value; `append_code` adds the code of the next level.
    """
    begins, grids, symbols = layout
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
                    code = codes[begins[coarser] + row * grids[coarser, 1] + column]
                    value = value * symbols[coarser] + code
                maps[group, y + FRAME, x + FRAME] = value


@inlined
def append_code(
    maps: CodeArray, groups: Integers, level: int, num_symbols: int, y: int, x: int, code: int
) -> None:
    """Append a code of the level to the values of the groups that include the level."""
    for group in range(len(groups)):
        if groups[group, 1] == level:
            value = maps[group, y + FRAME, x + FRAME]
            maps[group, y + FRAME, x + FRAME] = value * num_symbols + code


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
        row += features[feature, 1] + FRAME
        column += features[feature, 2] + FRAME
        rows[feature] = features[feature, 3] + maps[group, row, column]
    zone_row = y * ZONES // height
    zone_column = x * ZONES // width
    rows[num_features] = features[num_features, 3] + zone_row * ZONES + zone_column
    if selecting < 0:
        return 0
    last = groups[selecting, 1]
    row = y * grids[last, 0] // height + FRAME
    column = x * grids[last, 1] // width + FRAME
    return int(maps[selecting, row, column])


@inlined
def compute_scores(
    rows: Integers, weight_set: int, parameters: Any, hidden: Any, scores: Any
) -> None:
    """Write the hidden units, and the score of each symbol, of a position with these table rows.

    `parameters` are table, bias, weights and offsets. All arrays are integers, or all are floats.
    """
    table, bias, weights, offsets = parameters
    num_hidden = len(hidden)
    for h in range(num_hidden):
        hidden[h] = bias[h]
    for row in rows:
        for h in range(num_hidden):
            hidden[h] += table[row, h]
    for h in range(num_hidden):
        hidden[h] = max(hidden[h], hidden.dtype.type(0))
    for k in range(len(scores)):
        score = offsets[weight_set, k]
        for h in range(num_hidden):
            score += hidden.dtype.type(weights[weight_set, k, h]) * hidden[h]
        scores[k] = score


@inlined
def _predict(level: int, layout: Any, network: Any, work: Any, y: int, x: int) -> int:
    """Write the frequencies of the code at a position to `work`, and return their total. Without a
    network they stay 1.
    """
    table, bias, weights, offsets, groups, features, selecting, shift = network
    _, maps, rows, hidden, frequencies = work
    if not len(features):
        return len(frequencies)
    weight_set = find_rows(maps, groups, layout[1], level, features, selecting, y, x, rows)
    compute_scores(rows, weight_set, (table, bias, weights, offsets), hidden, frequencies)
    largest = frequencies[0]
    for score in frequencies:
        largest = max(largest, score)
    total = 0
    for k in range(len(frequencies)):
        drop = (largest - frequencies[k]) >> shift
        octaves = drop // STEPS_PER_OCTAVE
        frequencies[k] = 1
        if octaves <= FREQUENCY_BITS:
            frequencies[k] += POWERS[drop % STEPS_PER_OCTAVE] >> octaves
        total += frequencies[k]
    return int(total)


@compiled()
def encode_stream(
    codes: CodeArray, level: int, layout: Any, network: Any, work: Any, out: Bytes
) -> int:
    """Encode a level, write the stream to `out`, and return its length in bytes."""
    begins, grids, symbols = layout
    groups = network[4]
    state, maps, _, _, frequencies = work
    fill_maps(codes, layout, groups, level, maps)
    coder.begin_encoding(state)
    for y in range(grids[level, 0]):
        for x in range(grids[level, 1]):
            code = codes[begins[level] + y * grids[level, 1] + x]
            total = _predict(level, layout, network, work, y, x)
            before = 0
            for k in range(code):
                before += frequencies[k]
            coder.encode(state, out, before, frequencies[code], total)
            append_code(maps, groups, level, symbols[level], y, x, code)
    return int(coder.end_encoding(state, out))


@compiled()
def decode_stream(
    content: Bytes,
    start: int,
    codes: CodeArray,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
) -> int:
    """Decode a level from content[start:] into `codes`. Return the offset at which its stream ends,
    or NOT_WHOLE.
    """
    begins, grids, symbols = layout
    groups = network[4]
    state, maps, _, _, frequencies = work
    stop = len(content)
    fill_maps(codes, layout, groups, level, maps)
    coder.begin_decoding(state, content, start, stop)
    for y in range(grids[level, 0]):
        for x in range(grids[level, 1]):
            total = _predict(level, layout, network, work, y, x)
            target = coder.find_target(state, total)
            if target >= total or state[coder.USED] > stop - start:
                return NOT_WHOLE
            code = 0
            before = 0
            while before + frequencies[code] <= target:
                before += frequencies[code]
                code += 1
            coder.consume(state, content, start, stop, before, frequencies[code], total)
            append_code(maps, groups, level, symbols[level], y, x, code)
            codes[begins[level] + y * grids[level, 1] + x] = code
    end = start + coder.end_decoding(state)
    return int(end) if end <= stop else NOT_WHOLE


def _kernel_arguments(
    layout: Layout, level: int, network: EntropyNetwork | None
) -> tuple[Any, ...]:
    """Return level, layout, network and buffers, as kernels take them."""
    arrays = ABSENT if network is None else network.arrays
    _, bias, _, _, groups, features, *_ = arrays
    height, width = layout.grids[: level + 1].max(0) + 2 * FRAME
    work = (
        np.empty(4, np.int64),
        np.empty((len(groups), height, width), np.int32),
        np.empty(len(features), np.int64),
        np.empty(len(bias), np.int32),
        np.ones(layout.symbols[level], np.int64),
    )
    return level, layout.arrays, arrays, work


def encode_level(
    codes: CodeArray, layout: Layout, level: int, network: EntropyNetwork | None
) -> bytes:
    """Return the stream of one level. `codes` (all codes,) must be below `layout.symbols`."""
    most_bytes = _MOST_CODE_BYTES * int(layout.grids[level].prod()) + 2 * coder.VALUE_BYTES
    out = np.empty(most_bytes, np.uint8)
    length = encode_stream(codes, *_kernel_arguments(layout, level, network), out)
    return out[:length].tobytes()


def decode_level(
    content: Bytes,
    start: int,
    codes: CodeArray,
    layout: Layout,
    level: int,
    network: EntropyNetwork | None,
) -> int:
    """Decode one level from content[start:] into `codes` (all codes,). Return the offset at which
    its stream ends, or NOT_WHOLE.
    """
    return int(decode_stream(content, start, codes, *_kernel_arguments(layout, level, network)))
