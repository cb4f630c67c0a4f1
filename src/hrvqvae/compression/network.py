"""The network that predicts the codes of one level, in integers: from the codes around a position, frequencies.

A group is one or several consecutive levels, whose codes at a position are taken together as one number. A feature is a
group at an offset: anywhere around for coarser levels, earlier in raster order for the level itself. docs/format.md
states how frequencies follow from the features.
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

_FAMILY, _TOGETHER, _WIDE = 4096, 512, 64  # largest values of a family, of a group, and of a distant group
_BEFORE = sorted(
    ((dy, dx) for dy in range(-3, 1) for dx in range(-3, 4) if (dy, dx) < (0, 0)),
    key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
)  # earlier in raster order, the nearest first
_NEAREST, _NEAR, _FAR, _FARTHEST = 2, 6, 12, 24  # how many: as families, groups, codes, codes of the coarsest level
_SMALL_FAMILY = 512  # largest values of a family of small contexts
_CROSS = ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))
_AROUND = tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3))


@dataclass(frozen=True)
class Contexts:
    """The features from which the codes of one level are predicted."""

    level: int  # 0 is the coarsest
    symbols: tuple[int, ...]  # values per code of each level up to this one
    groups: tuple[tuple[int, int], ...]  # first and last level of each group, both included
    features: tuple[tuple[int, int, int], ...]  # (group, dy, dx)
    selecting: int  # the group whose value at the position selects the output weights, or -1

    def __post_init__(self) -> None:
        """Check the features. Raises DamagedFileError if a decoder could not know one, or it names no group."""
        sound = len(self.symbols) == self.level + 1 and -1 <= self.selecting < len(self.groups) > 0
        sound = sound and all(0 <= first <= last <= self.level for first, last in self.groups)
        sound = sound and all(0 <= group < len(self.groups) for group, _, _ in self.features)
        if not sound or (self.selecting >= 0 and self.groups[self.selecting][1] == self.level):
            raise DamagedFileError(f"contexts of level {self.level + 1} name levels or groups that are not there")
        for group, dy, dx in self.features:
            if max(abs(dy), abs(dx)) > FRAME or (self.groups[group][1] == self.level and (dy, dx) >= (0, 0)):
                raise DamagedFileError(f"a context of level {self.level + 1} lies at ({dy}, {dx}), which is not known")

    def values(self, group: int) -> int:
        """Return the number of values of a group, without the value of the outside."""
        first, last = self.groups[group]
        return math.prod(self.symbols[first : last + 1])

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first table row of each feature, and then of the place in the image."""
        return tuple(accumulate((self.values(group) + 1 for group, _, _ in self.features), initial=0))

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        return self.starts[-1] + PLACES * PLACES

    @cached_property
    def group_array(self) -> Integers:
        """The groups (G, 2), as kernels take them."""
        return np.array(self.groups, np.int64)

    @cached_property
    def feature_array(self) -> Integers:
        """Group, dy, dx and first row of each feature (F + 1, 4), as kernels take them; the last is the place."""
        rows = [(*feature, start) for feature, start in zip(self.features, self.starts, strict=False)]
        return np.array([*rows, (0, 0, 0, self.starts[-1])], np.int64)

    @property
    def sets(self) -> int:
        """The number of sets of output weights."""
        return 1 if self.selecting < 0 else self.values(self.selecting)


def _family_starts(symbols: Sequence[int], most: int) -> list[int]:
    """Return the first levels of families: consecutive levels whose codes together have at most so many values."""
    starts = [0]
    for level in range(1, len(symbols)):
        if math.prod(symbols[starts[-1] : level + 1]) > most:
            starts.append(level)
    return starts


def usual_contexts(level: int, symbols: Sequence[int], grids: Sequence[Grid]) -> Contexts:
    """Return the contexts of networks that are fitted, for levels with these grids.

    Consecutive levels are a family as long as their codes together have at most 4,096 values. Features are the family's
    value at the two nearest earlier codes, groups of 512 values at the next four, and single codes at six more
    (eighteen at the coarsest level); and of coarser levels groups of 512 values in the family and of 64 in others, at
    the nine positions around (25 for the next coarser group, if it has at most 64 values).
    """
    starts = _family_starts(symbols[: level + 1], _FAMILY)
    groups: list[tuple[int, int]] = []

    def group(last: int, most: int) -> int:
        """Return the index of the group of levels that ends with this one and has at most so many values."""
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


def small_contexts(level: int, symbols: Sequence[int]) -> Contexts:
    """Return contexts for an entropy model that a page downloads: some 15 kilobytes per level.

    Consecutive levels form a family as long as their codes together have at most 512 values. Features are groups of at
    most 64 values, or single codes: the level's own at the four nearest positions, the coarser levels of its family and
    the three families before it. The first two of these are seen at the positions beside and above too, if they have at
    most 64 values. The coarser levels of the family select the output weights.
    """
    starts = _family_starts(symbols[: level + 1], _SMALL_FAMILY)
    lasts = [level - 1] * (level > starts[-1]) + [start - 1 for start in starts[:0:-1][:3]]

    def group(last: int) -> tuple[int, int]:
        firsts = range(max(start for start in starts if start <= last), last)
        return next((first for first in firsts if math.prod(symbols[first : last + 1]) <= _WIDE), last), last

    groups = [group(last) for last in (level, *lasts)]
    features = [(0, *offset) for offset in _BEFORE[:4]]
    for index, (first, last) in enumerate(groups[1:], start=1):
        wide = index <= 2 and math.prod(symbols[first : last + 1]) <= _WIDE
        features += [(index, *offset) for offset in (_CROSS if wide else _CROSS[:1])]
    selecting = 1 if level > starts[-1] else -1
    return Contexts(level, tuple(symbols[: level + 1]), tuple(groups), tuple(features), selecting)


@dataclass(frozen=True)
class EntropyNetwork:
    """The network of one level."""

    contexts: Contexts  # from which it predicts
    table: NDArray[np.int8]  # (rows, hidden)
    bias: NDArray[np.int32]  # (hidden,)
    weights: NDArray[np.int16]  # (sets, symbols, hidden)
    offsets: NDArray[np.int32]  # (sets, symbols)
    shift: int  # bits of a score below a 64th of an octave

    def __post_init__(self) -> None:
        """Check the arrays. Raises DamagedFileError if shapes do not fit the contexts, or a sum could leave 32 bits."""
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
    """Return an upper bound of the absolute value of every score and intermediate sum."""
    starts = [*network.contexts.starts, network.contexts.rows]
    parts = [np.abs(network.table[a:b].astype(np.int64)).max(0) for a, b in pairwise(starts)]
    hidden = np.abs(network.bias.astype(np.int64)) + np.sum(parts, axis=0)
    sums = np.abs(network.offsets.astype(np.int64)) + np.abs(network.weights.astype(np.int64)) @ hidden
    return max(int(hidden.max(initial=0)), int(sums.max(initial=0)))
