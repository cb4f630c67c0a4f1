"""What a code is predicted from: groups of levels, read at places around it.

A group is one or several levels in a row whose codes at a position are taken together as one number, so that it is the
path of a tree where all coarser levels are in it. Outside of the grid the group has a value of its own, the number of
its values. A feature is a group at an offset: at coarser levels all around, at the code's own level where it comes
earlier in raster order. Each value of a feature has a row in the level's table. One more feature is the place in the
image, in sixteenths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import DamagedFileError

Integers = NDArray[np.int64]
Maps = NDArray[np.int32]

FRAME = 4  # positions around a map that hold the outside; the largest offset
PLACES = 16  # parts of the height and of the width
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}

_TOGETHER = 512  # values that a group of several levels may have
_SELECTED = 4096  # values of a group times symbols, up to which it selects the output weights
_BEFORE = sorted(
    ((dy, dx) for dy in range(-3, 1) for dx in range(-3, 4) if (dy, dx) < (0, 0)),
    key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
)  # earlier in raster order, the nearest first
_NEAR, _FAR, _FARTHEST = 6, 12, 24  # of these: together with coarser levels, alone, and at the coarsest level
_AROUND = tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3))


@dataclass(frozen=True)
class Contexts:
    """What one level's codes are predicted from.

    Attributes:
        level: the level, 0 is the coarsest.
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
        sizes = [self.values(group) + 1 for group, _, _ in self.features]
        return tuple(sum(sizes[:number]) for number in range(len(sizes) + 1))

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


def usual_contexts(level: int, symbols: Sequence[int], alike: Sequence[bool]) -> Contexts:
    """The contexts that tables are learned for.

    Of the own level, the six nearest codes before the code together with coarser levels, and six more alone (eighteen
    at the coarsest level); of the coarser levels, taken together as far as that makes no more than 512 values, the 25
    positions around.

    Args:
        alike: whether each level's grid is that of the level before it.
    """
    groups: list[tuple[int, int]] = []

    def begins(last: int) -> int:
        first = last
        while first > 0 and alike[first] and math.prod(symbols[first - 1 : last + 1]) <= _TOGETHER:
            first -= 1
        return first

    def group(first: int, last: int) -> int:
        if (first, last) not in groups:
            groups.append((first, last))
        return groups.index((first, last))

    own, alone = group(begins(level), level), group(level, level)
    features = [(own, *offset) for offset in _BEFORE[:_NEAR]]
    features += [(alone, *offset) for offset in _BEFORE[_NEAR : _FAR if level else _FARTHEST]]
    last = level - 1
    while last >= 0:
        coarser = group(begins(last), last)
        features += [(coarser, *offset) for offset in _AROUND if last == level - 1 or max(map(abs, offset)) < 2]
        last = groups[coarser][0] - 1
    selecting = -1
    if level and math.prod(symbols[begins(level - 1) : level + 1]) <= _SELECTED:
        selecting = group(begins(level - 1), level - 1)
    return Contexts(level, tuple(symbols[: level + 1]), tuple(groups), tuple(features), selecting)


@compiled(**_OPTIONS)
def fill_maps(
    codes: Maps, begins: Integers, grids: Integers, symbols: Integers, groups: Integers, level: int, maps: Maps
) -> None:
    """Write the value of each group at every position of its grid, inside a frame of the value of the outside.

    Of groups that the level itself is in, the number of their coarser levels alone: `put` adds the code.

    Args:
        codes: of the coarser levels, (H_l, W_l) one after the other, from `begins[l]` on.
        grids: (H_l, W_l) of each level.
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


@compiled(**_OPTIONS)
def put(maps: Maps, groups: Integers, level: int, symbols: int, y: int, x: int, code: int) -> None:
    """Make a code of the level known."""
    for group in range(len(groups)):
        if groups[group, 1] == level:
            maps[group, y + FRAME, x + FRAME] = maps[group, y + FRAME, x + FRAME] * symbols + code


@compiled(**_OPTIONS)
def find_rows(
    maps: Maps, groups: Integers, grids: Integers, level: int, features: Integers, y: int, x: int, rows: Integers
) -> None:
    """Write the row of the table of each feature at a position, and of the place in the image.

    Args:
        features: (F + 1, 4): group, dy, dx, first row; of the last, which is the place, the first row alone.
        rows: (F + 1,), written to.
    """
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


@compiled(**_OPTIONS)
def find_set(maps: Maps, groups: Integers, grids: Integers, level: int, selecting: int, y: int, x: int) -> int:
    """The number of the set of output weights at a position."""
    if selecting < 0:
        return 0
    last = groups[selecting, 1]
    row, column = y * grids[last, 0] // grids[level, 0], x * grids[last, 1] // grids[level, 1]
    value: int = maps[selecting, row + FRAME, column + FRAME]
    return value
