"""The model of one level in integers: from the codes around a position, the frequency of every symbol there.

A group is one or several levels in a row whose codes at a position are taken together as one number, so that it is the
path of a tree where all coarser levels are in it. A feature is a group at an offset: at coarser levels all around, at
the code's own level where it comes earlier in raster order. docs/format.md states how frequencies follow from these.

Nothing here is a float, and no sum leaves 32 bits: `Network` checks that when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import Grid
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import DamagedFileError

Integers = NDArray[np.int64]
Maps = NDArray[np.int32]

FRAME = 4  # positions around a map that hold the outside; the largest offset
PLACES = 16  # parts of the height and of the width
STEPS = 64  # of a score, in which it falls by an octave
TOP = 16  # bits of the largest frequency
POWERS: Integers = np.array([round(2 ** (TOP - step / STEPS)) for step in range(STEPS)], np.int64)
_LARGEST = 2**31 - 1

_FAMILY, _TOGETHER, _WIDE = 4096, 512, 64  # most values of a path, of a group of levels, of one that is seen far
_BEFORE = sorted(
    ((dy, dx) for dy in range(-3, 1) for dx in range(-3, 4) if (dy, dx) < (0, 0)),
    key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
)  # earlier in raster order, the nearest first
_NEAREST, _NEAR, _FAR, _FARTHEST = 2, 6, 12, 24  # of these: whole paths, groups, alone, and at the coarsest level
_AROUND = tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3))


@dataclass(frozen=True)
class Contexts:
    """What one level's codes are predicted from.

    Attributes:
        level: 0 is the coarsest.
        symbols: values of a code of each level up to this one.
        groups: (first, last) level of each group, both inside.
        features: (group, dy, dx).
        selecting: the group whose value at the position selects the output weights, or -1.
    """

    level: int
    symbols: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    features: tuple[tuple[int, int, int], ...]
    selecting: int

    def __post_init__(self) -> None:
        """Raises DamagedFileError where a feature could not be known to a decoder, or is none."""
        sound = len(self.symbols) == self.level + 1 and -1 <= self.selecting < len(self.groups) > 0
        sound = sound and all(0 <= first <= last <= self.level for first, last in self.groups)
        sound = sound and all(0 <= group < len(self.groups) for group, _, _ in self.features)
        if not sound or (self.selecting >= 0 and self.groups[self.selecting][1] == self.level):
            raise DamagedFileError(f"contexts of level {self.level + 1} name levels or groups that are not there")
        for group, dy, dx in self.features:
            if max(abs(dy), abs(dx)) > FRAME or (self.groups[group][1] == self.level and (dy, dx) >= (0, 0)):
                raise DamagedFileError(f"a context of level {self.level + 1} lies at ({dy}, {dx}), which is not known")

    def values(self, group: int) -> int:
        """Values of a group, the outside not counted."""
        first, last = self.groups[group]
        return math.prod(self.symbols[first : last + 1])

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Row of the table where each feature begins, and that of the place in the image."""
        return tuple(accumulate((self.values(group) + 1 for group, _, _ in self.features), initial=0))

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.starts[-1] + PLACES * PLACES

    @cached_property
    def group_array(self) -> Integers:
        """(G, 2): the groups as the compiled functions take them."""
        return np.array(self.groups, np.int64)

    @cached_property
    def feature_array(self) -> Integers:
        """(F + 1, 4): group, dy, dx and first row of each feature; of the place in the image the first row alone."""
        found = [(*one, start) for one, start in zip(self.features, self.starts, strict=False)]
        return np.array([*found, (0, 0, 0, self.starts[-1])], np.int64)

    @property
    def sets(self) -> int:
        """Sets of output weights."""
        return 1 if self.selecting < 0 else self.values(self.selecting)


def usual_contexts(level: int, symbols: Sequence[int], grids: Sequence[Grid]) -> Contexts:
    """The contexts that networks are learned for, of levels with these grids.

    Levels belong to one family as long as a path through them has at most 4,096 values. Of the family, whole paths are
    taken at the two nearest codes before the code, groups of at most 512 values at the next four, and codes alone at
    six more (eighteen at the coarsest level). Coarser levels of the family are seen in groups of at most 512 values,
    those of other families of 64, at the nine positions around; the next coarser ones, if they have 64 at most, at 25.
    """
    starts = [0]  # of the families
    for one in range(1, level + 1):
        if math.prod(symbols[starts[-1] : one + 1]) > _FAMILY:
            starts.append(one)
    groups: list[tuple[int, int]] = []

    def group(last: int, most: int) -> int:
        """The levels up to this one, of its family, that together have so many values."""
        first, begin = last, max(start for start in starts if start <= last)
        while first > begin and grids[first] == grids[first - 1] and math.prod(symbols[first - 1 : last + 1]) <= most:
            first -= 1
        if (first, last) not in groups:
            groups.append((first, last))
        return groups.index((first, last))

    steps = ((0, _NEAREST, _FAMILY), (_NEAREST, _NEAR, _TOGETHER), (_NEAR, _FAR if level else _FARTHEST, 1))
    features = [(group(level, most), *offset) for first, last, most in steps for offset in _BEFORE[first:last]]
    last, selecting = level - 1, -1
    while last >= 0:
        coarser = group(last, _TOGETHER if last >= starts[-1] else _WIDE)
        first = groups[coarser][0]
        values = math.prod(symbols[first : last + 1])
        reach = 2 if last == level - 1 and values <= _WIDE else 1
        features += [(coarser, *offset) for offset in _AROUND if max(map(abs, offset)) <= reach]
        if last == level - 1 and level not in starts and values * symbols[level] <= _FAMILY:
            selecting = coarser
        last = first - 1
    return Contexts(level, tuple(symbols[: level + 1]), tuple(groups), tuple(features), selecting)


@compiled()
def fill_maps(
    codes: Maps, begins: Integers, grids: Integers, symbols: Integers, groups: Integers, level: int, maps: Maps
) -> None:
    """Write the value of each group at every position of its grid, inside a frame of the value of the outside.

    Of groups that the level itself is in, the number of their coarser levels alone: `put` adds the code.

    Args:
        maps: (groups, H + 2 FRAME, W + 2 FRAME) for the largest H and W, written to.
    """
    for group in range(len(groups)):
        first, last = groups[group]
        outside = 1
        for one in range(first, last + 1):
            outside *= symbols[one]
        maps[group] = outside
        height, width = grids[last]
        for y in range(height):
            for x in range(width):
                value = 0
                for one in range(first, min(last + 1, level)):
                    row, column = y * grids[one, 0] // height, x * grids[one, 1] // width
                    value = value * symbols[one] + codes[begins[one] + row * grids[one, 1] + column]
                maps[group, y + FRAME, x + FRAME] = value


@compiled()
def put(maps: Maps, groups: Integers, level: int, symbols: int, y: int, x: int, code: int) -> None:
    """Make a code of the level known."""
    for group in range(len(groups)):
        if groups[group, 1] == level:
            maps[group, y + FRAME, x + FRAME] = maps[group, y + FRAME, x + FRAME] * symbols + code


@compiled()
def find_rows(
    maps: Maps, groups: Integers, grids: Integers, level: int, features: Integers, y: int, x: int, rows: Integers
) -> None:
    """Write the row of the table of each feature at a position, and of the place in the image, to `rows` (F + 1,)."""
    height, width = grids[level]
    count = len(features) - 1
    for one in range(count):
        group = features[one, 0]
        last = groups[group, 1]
        row, column = y, x
        if last != level:
            row, column = y * grids[last, 0] // height, x * grids[last, 1] // width
        value = maps[group, row + features[one, 1] + FRAME, column + features[one, 2] + FRAME]
        rows[one] = features[one, 3] + value
    rows[count] = features[count, 3] + y * PLACES // height * PLACES + x * PLACES // width


@compiled()
def find_set(maps: Maps, groups: Integers, grids: Integers, level: int, selecting: int, y: int, x: int) -> int:
    """The number of the set of output weights at a position."""
    if selecting < 0:
        return 0
    last = groups[selecting, 1]
    row, column = y * grids[last, 0] // grids[level, 0], x * grids[last, 1] // grids[level, 1]
    value: int = maps[selecting, row + FRAME, column + FRAME]
    return value


@dataclass(frozen=True)
class Network:
    """The model of one level.

    Attributes:
        table: (rows, hidden) int8.
        bias: (hidden,) int32.
        weights: (sets, symbols, hidden) int16.
        offsets: (sets, symbols) int32.
        shift: bits of a score below a 64th of an octave.
    """

    contexts: Contexts
    table: NDArray[np.int8]
    bias: NDArray[np.int32]
    weights: NDArray[np.int16]
    offsets: NDArray[np.int32]
    shift: int

    def __post_init__(self) -> None:
        """Raises DamagedFileError where shapes are not those of the contexts, or a sum could leave 32 bits."""
        contexts, hidden = self.contexts, len(self.bias)
        symbols = contexts.symbols[-1]
        shapes = (self.table.shape, self.weights.shape, self.offsets.shape)
        if shapes != ((contexts.rows, hidden), (contexts.sets, symbols, hidden), (contexts.sets, symbols)):
            raise DamagedFileError(f"the model of level {contexts.level + 1} has not the shape of its contexts")
        if not 0 <= self.shift < 31 or largest_score(self) > _LARGEST // 2:
            raise DamagedFileError(f"scores of level {contexts.level + 1} do not fit 32 bits")

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Table, bias, weights, offsets, groups and features, as the compiled functions take them."""
        contexts = self.contexts
        return self.table, self.bias, self.weights, self.offsets, contexts.group_array, contexts.feature_array


def largest_score(network: Network) -> int:
    """What the absolute value of a score, or of a sum on the way to it, can't exceed."""
    starts = [*network.contexts.starts, network.contexts.rows]
    parts = [np.abs(network.table[a:b].astype(np.int64)).max(0) for a, b in pairwise(starts)]
    hidden = np.abs(network.bias.astype(np.int64)) + np.sum(parts, axis=0)
    sums = np.abs(network.offsets.astype(np.int64)) + np.abs(network.weights.astype(np.int64)) @ hidden
    return max(int(hidden.max(initial=0)), int(sums.max(initial=0)))


@compiled()
def find_frequencies(
    rows: Integers, chosen: int, table: Any, bias: Any, weights: Any, offsets: Any, shift: int, hidden: Any,
    frequencies: Integers,
) -> int:  # fmt: skip
    """Write the frequency of every symbol, by a row for each feature and a set of output weights; -> their sum."""
    for h in range(len(bias)):
        hidden[h] = bias[h]
    for row in rows:
        for h in range(len(bias)):
            hidden[h] += np.int32(table[row, h])
    total: int = frequencies_of(hidden, chosen, weights, offsets, shift, frequencies)
    return total


@compiled(inline="always")  # a call would cost a twentieth of a code's time
def frequencies_of(hidden: Any, chosen: int, weights: Any, offsets: Any, shift: int, frequencies: Integers) -> int:
    """As `find_frequencies`, from the sums of bias and rows, which are overwritten with what the ReLU leaves."""
    size, symbols = len(hidden), len(frequencies)
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
