"""The integer network of one level, which turns the codes around a position into the frequencies of
the next code.

A group is one or several consecutive levels, whose codes at a position form one number; or the
number of levels at a position before it stops; or the quality of the file. A feature
is a group at an offset. For coarser levels the offset points anywhere nearby; for the level itself
it points to an earlier position in raster order. docs/format.md defines how frequencies follow from
the features.

To keep tables small, levels are divided into families, and no group has levels of two families. A
family is a run of levels with at most 4,096 values together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import Grid, Levels

Integers = NDArray[np.int64]

# in place of a group's first level: the number of levels at a position up to the last level, and
# the quality of the file
DEPTH = -1
QUALITY = -2
NUM_QUALITIES = 8
FRAME = 4  # width in positions of the frame of a map, which is also the largest offset
ZONES = 16  # per height and per width; the zone of a position is a feature
STEPS_PER_OCTAVE = 64  # of a score; an octave halves the frequency
FREQUENCY_BITS = 16  # the largest frequency is 2^16 + 1
POWERS: Integers = np.array(
    [round(2 ** (FREQUENCY_BITS - step / STEPS_PER_OCTAVE)) for step in range(STEPS_PER_OCTAVE)],
    np.int64,
)

# most values of a family, of a group, and of a group of another family than the level's
_FAMILY_VALUES = 4096
_GROUP_VALUES = 512
_SMALL_GROUP_VALUES = 64
_EARLIER_OFFSETS = sorted(
    (offset for offset in product(range(-3, 1), range(-3, 4)) if offset < (0, 0)),
    key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
)  # nearest first
_AROUND_OFFSETS = tuple(product(range(-2, 3), range(-2, 3)))


@dataclass(frozen=True)
class Contexts:
    """The features from which the codes of one level are predicted, or its flags."""

    symbols: tuple[int, ...]  # values per code of the coarser levels, then of this level
    groups: tuple[tuple[int, int], ...]  # first and last level of each group, both included
    features: tuple[tuple[int, int, int], ...]  # (group, dy, dx)
    selecting: int  # the group whose value at the position selects the output weights, or -1
    of_flags: bool = False  # whether flags are predicted, which tell where a position stops

    def __post_init__(self) -> None:
        """Check that each feature exists, is near and is decoded before the code or the flag.
        Raises ValueError.
        """
        level = len(self.symbols) - 1
        last_levels = [last for _, last in self.groups]
        is_sound = all(QUALITY <= first <= last <= level for first, last in self.groups)
        is_sound &= min(last_levels, default=0) >= 0
        is_sound &= 0 < len(self.groups) > self.selecting >= -1
        if self.of_flags:  # the codes of the level come after its flags
            is_sound &= all(first < 0 or last < level for first, last in self.groups)

        # the selecting group is seen at the position itself
        places = [*self.features]
        if self.selecting >= 0:
            places.append((self.selecting, 0, 0))
        for group, dy, dx in places:
            is_sound = is_sound and 0 <= group < len(last_levels)
            is_sound = is_sound and max(abs(dy), abs(dx)) <= FRAME
            is_sound = is_sound and (last_levels[group] < level or (dy, dx) < (0, 0))
        if not is_sound:
            raise ValueError(f"the contexts of level {level + 1} are not sound")

    def count_values(self, group: int) -> int:
        """Return the number of values of a group. Positions outside the grid have one more."""
        first, last = self.groups[group]
        if first == QUALITY:
            return NUM_QUALITIES
        return last + 2 if first == DEPTH else math.prod(self.symbols[first : last + 1])

    @property
    def num_symbols(self) -> int:
        """The number of values of what is predicted."""
        return 2 if self.of_flags else self.symbols[-1]

    @cached_property
    def arrays(self) -> tuple[Integers, Integers, int]:
        """First level, last level and number of values of each group (G, 3); group, dy, dx and
        first table row of each feature, and of the zones at the end (F + 1, 4); the selecting
        group.
        """
        features = []
        first_row = 0
        for group, dy, dx in self.features:
            features.append((group, dy, dx, first_row))
            first_row += self.count_values(group) + 1
        features.append((0, 0, 0, first_row))  # the zones
        values = map(self.count_values, range(len(self.groups)))
        groups = [(*group, count) for group, count in zip(self.groups, values, strict=True)]
        return np.array(groups, np.int64), np.array(features, np.int64), self.selecting

    @property
    def rows(self) -> int:
        """The number of rows of the table, of which the zones have the last."""
        first_zone_row = int(self.arrays[1][-1, 3])
        return first_zone_row + ZONES * ZONES

    @property
    def sets(self) -> int:
        """The number of sets of output weights, one per value of the selecting group."""
        return 1 if self.selecting < 0 else self.count_values(self.selecting)


def _find_families(symbols: Sequence[int]) -> list[int]:
    """Divide levels into families, and return the first level of each family."""
    starts = [0]
    for level in range(1, len(symbols)):
        if math.prod(symbols[starts[-1] : level + 1]) > _FAMILY_VALUES:
            starts.append(level)
    return starts


def find_parts(symbols: Sequence[int]) -> list[Levels]:
    """Return the families of levels, which are the parts of a file."""
    ends = pairwise([*_find_families(symbols), len(symbols)])
    return [range(start, stop) for start, stop in ends]


def _find_group(
    last: int, symbols: Sequence[int], starts: Sequence[int], grids: Sequence[Grid], most: int
) -> tuple[int, int]:
    """Return the longest group that ends at a level, in one family and grid, of at most `most`
    values; at least the level alone.
    """
    family = max(start for start in starts if start <= last)
    first = last
    while (
        first > family
        and grids[first - 1] == grids[last]
        and math.prod(symbols[first - 1 : last + 1]) <= most
    ):
        first -= 1
    return first, last


def usual_contexts(level: int, symbols: Sequence[int], grids: Sequence[Grid]) -> Contexts:
    """Return the usual contexts of a level.

    Earlier positions are seen in the group that ends at the level. At the two nearest positions it
    has up to 4,096 values, and at the next four up to 512. At the next six it is the level alone,
    at the coarsest level also at twelve more.

    Coarser levels are divided into groups, of up to 512 values in the level's own family and of up
    to 64 in others. Each group is seen at the position and its eight neighbours. If the group next
    to the level has at most 64 values, it is seen up to two positions away. It selects the output
    weights if it is of the level's family and its values times the symbols are at most 4,096.
    """
    starts = _find_families(symbols[: level + 1])
    limits = [_FAMILY_VALUES] * 2 + [_GROUP_VALUES] * 4 + [1] * (6 if level else 18)
    placed = [  # groups, each with its offset (dy, dx)
        (_find_group(level, symbols, starts, grids, most), offset)
        for most, offset in zip(limits, _EARLIER_OFFSETS, strict=False)
    ]

    # groups of coarser levels, from the next coarser one on
    last = level - 1
    selecting = None
    while last >= 0:
        is_same_family = last >= starts[-1]
        most = _GROUP_VALUES if is_same_family else _SMALL_GROUP_VALUES
        group = _find_group(last, symbols, starts, grids, most)
        values = math.prod(symbols[group[0] : last + 1])
        is_next = last == level - 1
        reach = 2 if is_next and values <= _SMALL_GROUP_VALUES else 1
        placed += [(group, offset) for offset in _AROUND_OFFSETS if max(map(abs, offset)) <= reach]
        if is_next and is_same_family and values * symbols[level] <= _FAMILY_VALUES:
            selecting = group
        last = group[0] - 1
    groups = list(dict.fromkeys(group for group, _ in placed))
    features = tuple((groups.index(group), dy, dx) for group, (dy, dx) in placed)
    selected = -1 if selecting is None else groups.index(selecting)
    return Contexts(tuple(symbols[: level + 1]), tuple(groups), features, selected)


def usual_stop_contexts(level: int, symbols: Sequence[int], grids: Sequence[Grid]) -> Contexts:
    """Return the usual contexts of a level's flags, on grids of one size.

    The number of levels is seen at the twelve nearest earlier positions, and without this level at
    the twelve nearest later ones. Codes of coarser levels are seen at the position, in groups of up
    to 512 values in the next level's family and of up to 64 in others. The quality selects the
    output weights.
    """
    starts = _find_families(symbols[:level])
    placed = [((DEPTH, level), offset) for offset in _EARLIER_OFFSETS[:12]]
    placed += [((DEPTH, level - 1), (-dy, -dx)) for dy, dx in _EARLIER_OFFSETS[:12]]
    last = level - 1
    while last >= 0:
        most = _GROUP_VALUES if last >= starts[-1] else _SMALL_GROUP_VALUES
        group = _find_group(last, symbols, starts, grids, most)
        placed.append((group, (0, 0)))
        last = group[0] - 1
    groups = [*dict.fromkeys(group for group, _ in placed), (QUALITY, 0)]
    features = tuple((groups.index(group), dy, dx) for group, (dy, dx) in placed)
    return Contexts(tuple(symbols[: level + 1]), tuple(groups), features, len(groups) - 1, True)


@dataclass(frozen=True)
class EntropyNetwork:
    """The network of one level, with its weights."""

    contexts: Contexts
    table: NDArray[np.int8]  # (rows, hidden)
    bias: NDArray[np.int32]  # (hidden,)
    weights: NDArray[np.int16]  # (sets, symbols, hidden)
    offsets: NDArray[np.int32]  # (sets, symbols)
    shift: int  # fractional bits of a score, whose unit is 1/64 of an octave

    @property
    def arrays(self) -> tuple[Any, ...]:
        """Table, bias, weights, offsets, groups, features, selecting group and shift, for
        kernels.
        """
        contexts = self.contexts.arrays
        return self.table, self.bias, self.weights, self.offsets, *contexts, self.shift


ABSENT: tuple[Any, ...] = (
    np.zeros((0, 0), np.int8),
    np.zeros(0, np.int32),
    np.zeros((0, 0, 0), np.int16),
    np.zeros((0, 0), np.int32),
    np.zeros((0, 3), np.int64),
    np.zeros((0, 4), np.int64),
    -1,
    0,
)
"""The `arrays` of a level without a network."""
