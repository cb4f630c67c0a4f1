"""The loops that read contexts, predict frequencies, and encode and decode the codes of a level.

docs/format.md states what they compute. Nothing here is a float, and no sum of an `EntropyNetwork` leaves 32 bits.

A kernel has one signature, allocates nothing and assigns no slices, because each of these takes longer to compile than
the loop. `layout` is (begins, grids, symbols) of a `Layout`. `network` is `EntropyNetwork.arrays`; the features are
empty where a level has no network. `work` is what `workspace` returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression import range_coder as coder
from hrvqvae.compression.network import FRAME, PLACES, POWERS, STEPS, TOP
from hrvqvae.utils.compiled import compiled

Integers = NDArray[np.int64]
CodeArray = NDArray[np.int32]
Bytes = NDArray[np.uint8]

NOT_WHOLE = -1


def workspace(level: int, layout: Any, network: Any) -> tuple[NDArray[Any], ...]:
    """Return the arrays that a thread works in: coder state, maps of the groups, rows, hidden units, frequencies."""
    _, grids, symbols = layout
    groups, features, bias = network[4], network[5], network[1]
    height, width = grids.max(0) + 2 * FRAME
    return (
        np.empty(4, np.int64), np.empty((len(groups), height, width), np.int32), np.empty(len(features), np.int64),
        np.empty(len(bias), np.int32), np.empty(symbols[level], np.int64),
    )  # fmt: skip


@compiled(inline="always")
def fill_maps(
    codes: CodeArray, image: int, begins: Integers, grids: Integers, symbols: Integers, groups: Integers, level: int,
    maps: CodeArray,
) -> None:  # fmt: skip
    """Write the value of each group at every position to `maps`, inside a frame of the value of the outside.

    Of groups that the level itself is in, only the coarser levels are counted: `put` adds the code.
    """
    for group in range(len(groups)):
        first, last = groups[group, 0], groups[group, 1]
        outside = 1
        for coarser in range(first, last + 1):
            outside *= symbols[coarser]
        for y in range(maps.shape[1]):
            for x in range(maps.shape[2]):
                maps[group, y, x] = outside
        height, width = grids[last, 0], grids[last, 1]
        for y in range(height):
            for x in range(width):
                value = 0
                for coarser in range(first, min(last + 1, level)):
                    row, column = y * grids[coarser, 0] // height, x * grids[coarser, 1] // width
                    value = value * symbols[coarser] + codes[image, begins[coarser] + row * grids[coarser, 1] + column]
                maps[group, y + FRAME, x + FRAME] = value


@compiled(inline="always")
def put(maps: CodeArray, groups: Integers, level: int, symbols: int, y: int, x: int, code: int) -> None:
    """Add a code of the level to the groups that the level is in."""
    for group in range(len(groups)):
        if groups[group, 1] == level:
            maps[group, y + FRAME, x + FRAME] = maps[group, y + FRAME, x + FRAME] * symbols + code


@compiled(inline="always")
def find_rows(
    maps: CodeArray, groups: Integers, grids: Integers, level: int, features: Integers, y: int, x: int, rows: Integers
) -> None:
    """Write the table row of each feature at a position, and that of the place in the image, to `rows` (F + 1,)."""
    height, width = grids[level, 0], grids[level, 1]
    count = len(features) - 1
    for feature in range(count):
        group = features[feature, 0]
        last = groups[group, 1]
        row, column = y, x
        if last != level:
            row, column = y * grids[last, 0] // height, x * grids[last, 1] // width
        value = maps[group, row + features[feature, 1] + FRAME, column + features[feature, 2] + FRAME]
        rows[feature] = features[feature, 3] + value
    rows[count] = features[count, 3] + y * PLACES // height * PLACES + x * PLACES // width


@compiled(inline="always")
def find_set(maps: CodeArray, groups: Integers, grids: Integers, level: int, selecting: int, y: int, x: int) -> int:
    """Return the number of the set of output weights at a position."""
    chosen = 0
    if selecting >= 0:
        last = groups[selecting, 1]
        row, column = y * grids[last, 0] // grids[level, 0], x * grids[last, 1] // grids[level, 1]
        chosen = maps[selecting, row + FRAME, column + FRAME]
    return chosen


@compiled(inline="always")
def sum_rows(rows: Integers, table: Any, bias: Any, hidden: Any) -> None:
    """Write the sums before the ReLU, of the bias and the table's rows, to `hidden` (H,)."""
    for h in range(len(bias)):
        hidden[h] = bias[h]
    for feature in range(len(rows)):
        row = rows[feature]
        for h in range(len(bias)):
            hidden[h] += np.int32(table[row, h])


@compiled(inline="always")
def count_frequencies(
    hidden: Any, size: int, chosen: int, weights: Any, offsets: Any, shift: int, frequencies: Integers, symbols: int
) -> int:
    """Write the frequency of each symbol from the sums before the ReLU, which are overwritten, and return their sum."""
    for h in range(size):
        hidden[h] = max(hidden[h], np.int32(0))
    best = np.int64(-(2**31))
    for k in range(symbols):
        score = np.int32(offsets[chosen, k])
        for h in range(size):
            score += np.int32(weights[chosen, k, h]) * hidden[h]
        frequencies[k] = score
        best = max(best, np.int64(score))
    total = 0
    for k in range(symbols):
        below = (best - frequencies[k]) >> shift
        octaves = below // STEPS
        frequencies[k] = 1 + ((POWERS[below % STEPS] >> octaves) if octaves <= TOP else 0)
        total += frequencies[k]
    return total


@compiled()
def encode_images(
    codes: CodeArray, first: int, last: int, level: int, layout: Any, network: Any, work: Any, out: Bytes,
    lengths: Integers,
) -> int:  # fmt: skip
    """Write the streams of codes[first:last] (N, codes of all levels) to the rows of `out`, and their lengths."""
    begins, grids, symbols = layout
    table, bias, weights, offsets, groups, features, selecting, shift = network
    state, maps, rows, hidden, frequencies = work
    values, height, width = symbols[level], grids[level, 0], grids[level, 1]
    for image in range(first, last):
        coder.begin_encoding(state)
        if len(features):
            fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
        for y in range(height):
            for x in range(width):
                code: Any = np.int64(codes[image, begins[level] + y * width + x])
                before, frequency, total = code, 1, values
                if len(features):
                    find_rows(maps, groups, grids, level, features, y, x, rows)
                    chosen = find_set(maps, groups, grids, level, selecting, y, x)
                    sum_rows(rows, table, bias, hidden)
                    total = count_frequencies(hidden, len(bias), chosen, weights, offsets, shift, frequencies, values)
                    before, frequency = 0, frequencies[code]
                    for k in range(code):
                        before += frequencies[k]
                    put(maps, groups, level, values, y, x, code)
                coder.encode(state, out, image, before, frequency, total)
        lengths[image] = coder.end_encoding(state, out, image)
    return last - first


@compiled()
def decode_images(
    content: Bytes, starts: Integers, stops: Integers, first: int, last: int, codes: CodeArray, level: int, layout: Any,
    network: Any, work: Any, ends: Integers,
) -> int:  # fmt: skip
    """Write codes[first:last] from content[start:stop] of each image, and where its stream ends (or NOT_WHOLE)."""
    begins, grids, symbols = layout
    table, bias, weights, offsets, groups, features, selecting, shift = network
    state, maps, rows, hidden, frequencies = work
    values, height, width = symbols[level], grids[level, 0], grids[level, 1]
    for image in range(first, last):
        start, stop = starts[image], stops[image]
        coder.begin_decoding(state, content, start, stop)
        if len(features):
            fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
        place, whole = 0, True
        while whole and place < height * width:
            y, x, total = place // width, place % width, values
            if len(features):
                find_rows(maps, groups, grids, level, features, y, x, rows)
                chosen = find_set(maps, groups, grids, level, selecting, y, x)
                sum_rows(rows, table, bias, hidden)
                total = count_frequencies(hidden, len(bias), chosen, weights, offsets, shift, frequencies, values)
            target = coder.target_of(state, total)
            whole = target < total and state[2] <= stop - start
            if whole:
                code, before, frequency = target, target, 1
                if len(features):
                    code, before = 0, 0
                    while before + frequencies[code] <= target:
                        before += frequencies[code]
                        code += 1
                    frequency = frequencies[code]
                    put(maps, groups, level, values, y, x, code)
                coder.decode(state, content, start, stop, before, frequency, total)
                codes[image, begins[level] + place] = code
                place += 1
        end = coder.end_decoding(state)
        ends[image] = start + end if whole and 0 <= end <= stop - start else NOT_WHOLE
    return last - first
