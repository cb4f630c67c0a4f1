"""Encode and decode the codes of one level of an image.

docs/format.md defines the results. All numbers are integers, and the sums of an `EntropyNetwork`
fit in 32 bits. With stops, the flags of a level come before its codes: 1 where a position stops, of
the positions that have not stopped. A code of a stopped position is -1.

To compile fast, a compiled function has a single signature, allocates no memory and assigns no
slices. Arguments of several functions: `codes` are the codes of all levels of an image, `layout` is
`Layout.arrays` (begins, grids, symbols). `network` is `EntropyNetwork.arrays` (table, bias,
weights, offsets, groups, features, selecting, shift), or `ABSENT`. `work` holds buffers: coder
state, maps of the groups, table rows, hidden units and frequencies. `quality` is that of the file.
With `is_flag` the flags of the level are coded, otherwise its codes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression import range_coder as coder
from hrvqvae.compression.network import (
    ABSENT,
    DEPTH,
    FRAME,
    FREQUENCY_BITS,
    POWERS,
    QUALITY,
    STEPS_PER_OCTAVE,
    ZONES,
    EntropyNetwork,
)
from hrvqvae.compression.range_coder import Bytes, Integers
from hrvqvae.config import Levels
from hrvqvae.quantize import Codes
from hrvqvae.utils.compiled import compiled, inlined

CodeArray = NDArray[np.int32]
Floats = NDArray[np.float32]

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


def flat_codes(codes: Codes) -> CodeArray:
    """Return codes as files hold them: (B, codes of all levels), level after level."""
    rows = [level.cpu().numpy().reshape(len(level), -1) for level in codes]
    return np.concatenate(rows, 1).astype(np.int32)


@inlined
def _extend(value: int, group: Integers, num_symbols: int, code: int) -> int:
    """Return the value of a group with the code of its next level."""
    if group[0] == DEPTH:
        return value + (code >= 0)
    if code < 0:
        return group[2]
    return value * num_symbols + code


@inlined
def fill_maps(
    codes: Any, layout: Any, groups: Integers, num_levels: int, quality: int, maps: CodeArray
) -> None:
    """Write the value of each group at every position to `maps`, inside a frame with the value for
    outside.

    `groups` (G, 3) are the first and the last level of runs of levels whose codes form one number
    (network.py), and the value for outside. No group ends behind the level that is coded. Only the
    codes of the first `num_levels` levels enter a value; `append_code` adds the code of the next
    level.
    """
    begins, grids, symbols = layout
    for index in range(len(groups)):
        group = groups[index]
        for y in range(maps.shape[1]):
            for x in range(maps.shape[2]):
                maps[index, y, x] = group[2]
        height = grids[group[1], 0]
        width = grids[group[1], 1]
        for y in range(height):
            for x in range(width):
                value = quality if group[0] == QUALITY else 0
                last = -1 if group[0] == QUALITY else group[1]
                for coarser in range(max(group[0], 0), min(last + 1, num_levels)):
                    row = y * grids[coarser, 0] // height
                    column = x * grids[coarser, 1] // width
                    code = codes[begins[coarser] + row * grids[coarser, 1] + column]
                    value = _extend(value, group, symbols[coarser], code)
                maps[index, y + FRAME, x + FRAME] = value


@inlined
def append_code(
    maps: CodeArray, groups: Integers, level: int, num_symbols: int, y: int, x: int, code: int
) -> None:
    """Append a code of the level to the values of the groups that include the level."""
    for index in range(len(groups)):
        if groups[index, 1] == level:
            value = maps[index, y + FRAME, x + FRAME]
            extended = _extend(value, groups[index], num_symbols, code)
            maps[index, y + FRAME, x + FRAME] = extended


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


@inlined
def is_coded(codes: Any, index: int, num_positions: int, is_flag: bool) -> bool:
    """Return whether the flag, or the code, at an index is coded."""
    return bool(codes[index - num_positions if is_flag else index] >= 0)


@compiled()
def encode_stream(
    codes: CodeArray,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
    quality: int,
    is_flag: bool,
    ends: tuple[bool, bool],
    out: Bytes,
) -> int:
    """Encode the flags or the codes of a level, and append them to the stream in `out`. `ends` tell
    whether the stream begins and ends with them. Return the bytes of a stream that ends.
    """
    begins, grids, symbols = layout
    groups = network[4]
    state, maps, _, _, frequencies = work
    num_positions = grids[level, 0] * grids[level, 1]
    if ends[0]:
        coder.begin_encoding(state)
    fill_maps(codes, layout, groups, level, quality, maps)
    for y in range(grids[level, 0]):
        for x in range(grids[level, 1]):
            index = begins[level] + y * grids[level, 1] + x
            code = codes[index]
            if is_coded(codes, index, num_positions, is_flag):
                symbol = code
                if is_flag:
                    symbol = 1 if code < 0 else 0
                total = _predict(level, layout, network, work, y, x)
                before = 0
                for k in range(symbol):
                    before += frequencies[k]
                coder.encode(state, out, before, frequencies[symbol], total)
            append_code(maps, groups, level, symbols[level], y, x, code)
    return int(coder.end_encoding(state, out)) if ends[1] else 0


@compiled()
def decode_stream(
    content: Bytes,
    start: int,
    codes: CodeArray,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
    quality: int,
    is_flag: bool,
    is_first: bool,
) -> int:
    """Decode the flags or the codes of a level into `codes`, which are 0; a flag becomes 0 or -1.
    The stream content[start:] may begin with them. Return the offset at which the stream ends if
    nothing follows, or NOT_WHOLE.
    """
    begins, grids, symbols = layout
    groups = network[4]
    state, maps, _, _, frequencies = work
    stop = len(content)
    num_positions = grids[level, 0] * grids[level, 1]
    if is_first:
        coder.begin_decoding(state, content, start, stop)
    fill_maps(codes, layout, groups, level, quality, maps)
    for y in range(grids[level, 0]):
        for x in range(grids[level, 1]):
            index = begins[level] + y * grids[level, 1] + x
            code = -1
            if is_coded(codes, index, num_positions, is_flag):
                total = _predict(level, layout, network, work, y, x)
                target = coder.find_target(state, total)
                if target >= total or state[coder.USED] > stop - start:
                    return NOT_WHOLE
                symbol = 0
                before = 0
                while before + frequencies[symbol] <= target:
                    before += frequencies[symbol]
                    symbol += 1
                coder.consume(state, content, start, stop, before, frequencies[symbol], total)
                code = -symbol if is_flag else symbol
            append_code(maps, groups, level, symbols[level], y, x, code)
            codes[index] = code
    end = start + coder.end_decoding(state)
    return int(end) if end <= stop else NOT_WHOLE


@compiled()
def measure_stream(
    codes: CodeArray, level: int, layout: Any, network: Any, work: Any, bits: Any
) -> int:
    """Write the ideal number of bits of each code of a level to `bits` (codes of the level,);
    return 0.
    """
    begins, grids, symbols = layout
    groups = network[4]
    _, maps, _, _, frequencies = work
    fill_maps(codes, layout, groups, level, 0, maps)
    for y in range(grids[level, 0]):
        for x in range(grids[level, 1]):
            position = y * grids[level, 1] + x
            code = codes[begins[level] + position]
            total = _predict(level, layout, network, work, y, x)
            bits[position] = np.log2(total / frequencies[code])
            append_code(maps, groups, level, symbols[level], y, x, code)
    return 0


def _network_arguments(
    layout: Layout, level: int, network: EntropyNetwork | None, state: Integers
) -> tuple[Any, Any]:
    """Return a network and its buffers, as kernels take them."""
    arrays = ABSENT if network is None else network.arrays
    _, bias, _, _, groups, features, *_ = arrays
    height, width = layout.grids[: level + 1].max(0) + 2 * FRAME
    num_symbols = layout.symbols[level] if network is None else network.contexts.num_symbols
    work = (
        state,
        np.empty((len(groups), height, width), np.int32),
        np.empty(len(features), np.int64),
        np.empty(len(bias), np.int32),
        np.ones(num_symbols, np.int64),
    )
    return arrays, work


class PartCoder:
    """Encodes and decodes a part of an image's levels as one stream. `codes` are all codes of an
    image, below `layout.symbols`.

    Args:
        levels: The consecutive levels of the part.
        networks: The network of each level of the image; with None all symbols are equally
            frequent.
        stops: The networks of the flags of each level; with None no position stops there.
        quality: The quality of a file with stops.
    """

    def __init__(
        self,
        layout: Layout,
        levels: Levels,
        networks: Sequence[EntropyNetwork | None],
        stops: Sequence[EntropyNetwork | None],
        quality: int = 0,
    ) -> None:
        self.levels = levels
        self._most_bytes = 2 * coder.VALUE_BYTES
        state = np.empty(4, np.int64)
        self._steps = list[tuple[Any, ...]]()  # arguments of kernels: flags, then codes of a level
        for level in levels:
            place = level, layout.arrays
            if stops[level] is not None:
                flags = _network_arguments(layout, level, stops[level], state)
                self._steps.append((*place, *flags, quality, True))
            network = _network_arguments(layout, level, networks[level], state)
            self._steps.append((*place, *network, quality, False))
            self._most_bytes += 2 * _MOST_CODE_BYTES * int(layout.grids[level].prod())

    def encode(self, codes: CodeArray) -> bytes:
        """Return the stream of the part."""
        out = np.empty(self._most_bytes, np.uint8)
        length = 0
        last = len(self._steps) - 1
        for number, arguments in enumerate(self._steps):
            length = encode_stream(codes, *arguments, (number == 0, number == last), out)
        return out[:length].tobytes()

    def decode(self, content: Bytes, start: int, codes: CodeArray) -> int:
        """Decode the part from content[start:] into `codes`, which are 0. Return the offset at
        which its stream ends, or NOT_WHOLE.
        """
        end = start
        for number, arguments in enumerate(self._steps):
            end = int(decode_stream(content, start, codes, *arguments, number == 0))
            if end == NOT_WHOLE:
                break
        return end


def measure_level(
    codes: CodeArray, layout: Layout, level: int, network: EntropyNetwork | None
) -> Floats:
    """Return the ideal number of bits (codes of the level,) of each code, where no position
    stops.
    """
    bits = np.empty(int(layout.grids[level].prod()), np.float32)
    state = np.empty(4, np.int64)
    arguments = _network_arguments(layout, level, network, state)
    measure_stream(codes, level, layout.arrays, *arguments, bits)
    return bits
