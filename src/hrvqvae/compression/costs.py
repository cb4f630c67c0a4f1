"""What codes cost: their own bits under the integer models, and those that they change in the codes around them.

The state of an image is what the models make of its codes at every position: the sums before the ReLU, the set of
output weights, the values of the groups, and the bits of the code. It is computed once, and changed with the codes.

Shapes: N images, P positions of the grid that all levels lie on, L levels; M levels that have a model, H hidden units
and G groups of the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.contexts import FRAME, fill_maps, find_rows, find_set, put
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import Network, frequencies_of
from hrvqvae.utils.compiled import compiled

Integers = NDArray[np.int64]
Codes = NDArray[np.int32]
Floats = NDArray[np.float32]

EVERY = 1 << 30
"""Offsets: more than a model has."""
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


@dataclass(frozen=True)
class Models:
    """The models of all levels that have one, as the compiled functions take them.

    Attributes:
        layout: where the codes of an image lie.
        about: (M, 4) of those that are used: level, hidden units, shift, selecting group.
        arrays: for each kind of array a tuple with that of each model, used or not, since their number is compiled in:
            those of the network, its groups and features; the offsets at which features lie, the nearest first, where
            the features of each begin, and their numbers.
    """

    layout: Layout
    about: Integers
    arrays: Any

    @classmethod
    def of(cls, layout: Layout, networks: Sequence[Network | None]) -> Models:
        """Of the models of all levels, coarse first; those of finer levels than the layout has are not used."""
        about, arrays = list[tuple[int, ...]](), list[tuple[Any, ...]]()
        for network in networks:
            if network is None:
                continue
            contexts = network.contexts
            around: dict[tuple[int, int], list[int]] = {(0, 0): []}
            for number, (_, dy, dx) in enumerate(contexts.features):
                around.setdefault((dy, dx), []).append(number)
            around = dict(sorted(around.items(), key=lambda one: one[0][0] ** 2 + one[0][1] ** 2))  # the nearest first
            firsts = np.cumsum([0, *map(len, around.values())])
            members = [number for numbers in around.values() for number in numbers]
            if contexts.level < len(layout.symbols):
                about.append((contexts.level, len(network.bias), network.shift, contexts.selecting))
            weights = (network.table, network.bias, network.weights, network.offsets)
            arrays.append((
                *(np.array(one) for one in weights), contexts.group_array, contexts.feature_array,
                np.array(list(around), np.int64), firsts.astype(np.int64), np.array(members, np.int64),
            ))  # fmt: skip
        return cls(layout, np.array(about, np.int64).reshape(-1, 4), tuple(zip(*arrays, strict=True)))

    @property
    def groups(self) -> Sequence[Integers]:
        """The groups of each."""
        return self.arrays[4] if self.arrays else ()


@compiled(**_OPTIONS)
def _bits(hidden: Any, chosen: int, weights: Any, offsets: Any, shift: int, code: int, frequencies: Integers) -> float:
    """Bits of a code, from the sums of a position, which are overwritten."""
    total = frequencies_of(hidden, chosen, weights, offsets, shift, frequencies)
    return math.log2(total / frequencies[code])


@compiled(**_OPTIONS)
def begin(
    images: Codes, first: int, last: int, begins: Integers, grids: Integers, symbols: Integers, about: Integers,
    arrays: Any, state: Any,
) -> int:  # fmt: skip
    """Write what the models make of the codes of images[first:last]: the state of these images."""
    height, width = grids[0]
    tables, biases, all_weights, all_offsets, all_groups, all_features = arrays[:6]
    all_sums, all_sets, all_values, all_bits = state
    spare, frequencies = np.empty(all_sums.shape[3], np.int32), np.empty(symbols.max(), np.int64)
    for model in range(len(about)):
        level, hidden, shift, selecting = about[model]
        groups, features = all_groups[model], all_features[model]
        table, bias, weights, offsets = tables[model], biases[model], all_weights[model], all_offsets[model]
        maps = np.empty((len(groups), height + 2 * FRAME, width + 2 * FRAME), np.int32)
        rows = np.empty(len(features), np.int64)
        for image in range(first, last):
            codes, sums, sets = images[image], all_sums[image, model], all_sets[image, model]
            values, bits = all_values[image, model], all_bits[image, model]
            fill_maps(codes, begins, grids, symbols, groups, level, maps)
            for place in range(height * width):
                put(maps, groups, level, symbols[level], place // width, place % width, codes[begins[level] + place])
            for place in range(height * width):
                y, x = place // width, place % width
                find_rows(maps, groups, grids, level, features, y, x, rows)
                sets[place] = find_set(maps, groups, grids, level, selecting, y, x)
                for h in range(hidden):
                    sums[place, h] = bias[h]
                for row in rows:
                    for h in range(hidden):
                        sums[place, h] += np.int32(table[row, h])
                for group in range(len(groups)):
                    values[place, group] = maps[group, y + FRAME, x + FRAME]
                spare[:hidden] = sums[place, :hidden]
                bits[place] = _bits(
                    spare[:hidden], sets[place], weights, offsets, shift, codes[begins[level] + place],
                    frequencies[: symbols[level]],
                )  # fmt: skip
    return last - first


@compiled(**_OPTIONS)
def _value(candidate: Codes, first: int, last: int, symbols: Integers) -> int:
    """Of a group, from the codes (L,) of a position."""
    value = 0
    for level in range(first, last + 1):
        value = value * symbols[level] + candidate[level]
    return value


@compiled(**_OPTIONS)
def _replace(sums: Any, feature: Integers, table: Any, before: Integers, after: Integers) -> None:
    """Have the sums of a position hold the row of a feature whose group gets another value."""
    old, new = feature[3] + before[feature[0]], feature[3] + after[feature[0]]
    for h in range(len(sums)):
        sums[h] += np.int32(table[new, h]) - np.int32(table[old, h])


@compiled(**_OPTIONS)
def change(
    place: int, candidate: Codes, first: int, last: int, take: bool, codes: Codes, begins: Integers, grids: Integers,
    symbols: Integers, about: Integers, arrays: Any, sums: Any, sets: Any, values: Any, bits: Floats, spare: Any,
    after: Integers, frequencies: Integers,
) -> float:  # fmt: skip
    """-> bits that codes take more where a place gets a candidate (L,).

    Of each model those at its offsets first, ..., last - 1, of which the first is the place itself.

    Args:
        take: give it the candidate, which needs all offsets; otherwise nothing is changed.
    """
    height, width = grids[0]
    y, x = place // width, place % width
    tables, _, all_weights, all_offsets, all_groups, all_features, all_around, all_firsts, all_members = arrays
    more = 0.0
    for model in range(len(about)):
        level, hidden, shift, selecting = about[model]
        table, weights, offsets, groups = tables[model], all_weights[model], all_offsets[model], all_groups[model]
        features, around = all_features[model], all_around[model]
        firsts, members = all_firsts[model], all_members[model]
        for group in range(len(groups)):
            after[group] = _value(candidate, groups[group, 0], groups[group, 1], symbols)
        for number in range(first, min(last, len(around))):
            row, column = y - around[number, 0], x - around[number, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            other = row * width + column
            same = other != place
            for one in range(firsts[number], firsts[number + 1]):
                group = features[members[one], 0]
                same = same and after[group] == values[model, place, group]
            if same:
                continue
            for h in range(hidden):
                spare[h] = sums[model, other, h]
            for one in range(firsts[number], firsts[number + 1]):
                _replace(spare[:hidden], features[members[one]], table, values[model, place], after)
            code, chosen = codes[begins[level] + other], sets[model, other]
            if other == place:
                code = candidate[level]
                chosen = after[selecting] if selecting >= 0 else chosen
            if take:
                for h in range(hidden):
                    sums[model, other, h] = spare[h]
            found = _bits(spare[:hidden], chosen, weights, offsets, shift, code, frequencies[: symbols[level]])
            more += found - bits[model, other]
            if take:
                bits[model, other] = found
        if take:
            for group in range(len(groups)):
                values[model, place, group] = after[group]
            if selecting >= 0:
                sets[model, place] = after[selecting]
    if take:
        for level in range(len(candidate)):
            codes[begins[level] + place] = candidate[level]
    return more
