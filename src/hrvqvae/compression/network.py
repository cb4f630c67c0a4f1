"""The model of one level in integers: from the codes around a position, the frequency of every symbol there.

A group is one or several levels in a row whose codes at a position are taken together as one number, so that it is the
path of a tree where all coarser levels are in it. A feature is a group at an offset: at coarser levels all around, at
the code's own level where it comes earlier in raster order. docs/format.md states how frequencies follow from these.

Nothing here is a float, and no sum leaves 32 bits: `EntropyNetwork` checks that when it is made.
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


@dataclass(frozen=True)
class EntropyNetwork:
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
    def arrays(self) -> tuple[Any, ...]:
        """Table, bias, weights, offsets, groups, features, selecting group and shift, as kernels take them."""
        contexts = self.contexts
        return (
            self.table, self.bias, self.weights, self.offsets, contexts.group_array, contexts.feature_array,
            contexts.selecting, self.shift,
        )  # fmt: skip


NO_ARRAYS: tuple[Any, ...] = (
    np.zeros((0, 0), np.int8), np.zeros(0, np.int32), np.zeros((0, 0, 0), np.int16), np.zeros((0, 0), np.int32),
    np.zeros((0, 2), np.int64), np.zeros((0, 4), np.int64), -1, 0,
)  # fmt: skip
"""The `arrays` of a level without a network."""


def largest_score(network: EntropyNetwork) -> int:
    """What the absolute value of a score, or of a sum on the way to it, can't exceed."""
    starts = [*network.contexts.starts, network.contexts.rows]
    parts = [np.abs(network.table[a:b].astype(np.int64)).max(0) for a, b in pairwise(starts)]
    hidden = np.abs(network.bias.astype(np.int64)) + np.sum(parts, axis=0)
    sums = np.abs(network.offsets.astype(np.int64)) + np.abs(network.weights.astype(np.int64)) @ hidden
    return max(int(hidden.max(initial=0)), int(sums.max(initial=0)))
