"""Which of a few codes each position gets, by its error and by the bits that the integer models make of it.

A code costs bits itself, and it changes what the codes around it cost, in whose contexts it stands. Positions are gone
through one after the other. Each one takes, given what all others have, the candidate of the least

    error + weight * bits of all codes of the image

so that the sum over an image never grows (iterated conditional modes: Besag 1986). All levels lie on one grid.

Shapes: N images, P positions of the grid, K candidates, L levels; M levels that have a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.codec.contexts import FRAME, fill_maps, find_rows, find_set, put
from hrvqvae.codec.levels import Layout
from hrvqvae.codec.network import Network, frequencies_of
from hrvqvae.jit.cache import compiled
from hrvqvae.jit.threads import in_parts

Integers = NDArray[np.int64]
Codes = NDArray[np.int32]
Floats = NDArray[np.float32]

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


@dataclass(frozen=True)
class Models:
    """The models of all levels that have one, as the compiled functions take them.

    Attributes:
        layout: where the codes of an image lie.
        about: (M, 4): level, hidden units, shift, selecting group.
        arrays: for each kind of array a tuple with that of each model: those of the network, its groups and features;
            the offsets at which features lie, (0, 0) first, where the features of each begin, and their numbers.
    """

    layout: Layout
    about: Integers
    arrays: Any

    @classmethod
    def of(cls, layout: Layout, networks: Sequence[Network | None]) -> Models:
        """Of the models of all levels, coarse first."""
        about, arrays = list[tuple[int, ...]](), list[tuple[Any, ...]]()
        for network in networks:
            if network is None:
                continue
            contexts = network.contexts
            around: dict[tuple[int, int], list[int]] = {(0, 0): []}
            for number, (_, dy, dx) in enumerate(contexts.features):
                around.setdefault((dy, dx), []).append(number)
            firsts = np.cumsum([0, *map(len, around.values())])
            members = [number for numbers in around.values() for number in numbers]
            about.append((contexts.level, len(network.bias), network.shift, contexts.selecting))
            weights = (network.table, network.bias, network.weights, network.offsets)
            arrays.append((
                *(np.array(one) for one in weights), contexts.group_array, contexts.feature_array,
                np.array(list(around), np.int64), firsts.astype(np.int64), np.array(members, np.int64),
            ))  # fmt: skip
        return cls(layout, np.array(about, np.int64).reshape(-1, 4), tuple(zip(*arrays, strict=True)))


@compiled(**_OPTIONS)
def _bits(hidden: Any, chosen: int, weights: Any, offsets: Any, shift: int, code: int, frequencies: Integers) -> float:
    """Bits of a code, from the sums of a position, which are overwritten."""
    total = frequencies_of(hidden, chosen, weights, offsets, shift, frequencies)
    return math.log2(total / frequencies[code])


@compiled(**_OPTIONS)
def _begin(
    codes: Codes, begins: Integers, grids: Integers, symbols: Integers, about: Integers, arrays: Any,
    sums: Any, sets: Integers, values: Integers, bits: Floats, spare: Any,
) -> None:  # fmt: skip
    """Write what the models make of codes (all levels): sums, sets of weights, values of the groups, bits."""
    height, width = grids[0]
    tables, biases, all_weights, all_offsets, all_groups, all_features = arrays[:6]
    for model in range(len(about)):
        level, hidden, shift, selecting = about[model]
        groups, features = all_groups[model], all_features[model]
        table, bias, weights, offsets = tables[model], biases[model], all_weights[model], all_offsets[model]
        maps = np.empty((len(groups), height + 2 * FRAME, width + 2 * FRAME), np.int32)
        rows, frequencies = np.empty(len(features), np.int64), np.empty(symbols[level], np.int64)
        fill_maps(codes, begins, grids, symbols, groups, level, maps)
        for place in range(height * width):
            put(maps, groups, level, symbols[level], place // width, place % width, codes[begins[level] + place])
        for place in range(height * width):
            y, x = place // width, place % width
            find_rows(maps, groups, grids, level, features, y, x, rows)
            sets[model, place] = find_set(maps, groups, grids, level, selecting, y, x)
            for h in range(hidden):
                sums[model, place, h] = bias[h]
            for row in rows:
                for h in range(hidden):
                    sums[model, place, h] += np.int32(table[row, h])
            for group in range(len(groups)):
                values[model, place, group] = maps[group, y + FRAME, x + FRAME]
            spare[:hidden] = sums[model, place, :hidden]
            code = codes[begins[level] + place]
            bits[model, place] = _bits(spare[:hidden], sets[model, place], weights, offsets, shift, code, frequencies)


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
def _try(
    place: int, candidate: Codes, codes: Codes, begins: Integers, grids: Integers, symbols: Integers, about: Integers,
    arrays: Any, sums: Any, sets: Integers, values: Integers, bits: Floats, spare: Any, after: Integers,
    frequencies: Integers, found: Floats,
) -> float:  # fmt: skip
    """-> bits that an image gets more by a candidate (L,) at a place; `found` (M, offsets) gets those of each code."""
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
        for number in range(len(around)):
            row, column = y - around[number, 0], x - around[number, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            other = row * width + column
            same = other != place
            for one in range(firsts[number], firsts[number + 1]):
                group = features[members[one], 0]
                same = same and after[group] == values[model, place, group]
            if same:
                found[model, number] = bits[model, other]
                continue
            for h in range(hidden):
                spare[h] = sums[model, other, h]
            for one in range(firsts[number], firsts[number + 1]):
                _replace(spare[:hidden], features[members[one]], table, values[model, place], after)
            code, chosen = codes[begins[level] + other], sets[model, other]
            if other == place:
                code = candidate[level]
                chosen = after[selecting] if selecting >= 0 else chosen
            found[model, number] = _bits(
                spare[:hidden], chosen, weights, offsets, shift, code, frequencies[: symbols[level]]
            )  # fmt: skip
            more += found[model, number] - bits[model, other]
    return more


@compiled(**_OPTIONS)
def _take(
    place: int, candidate: Codes, codes: Codes, begins: Integers, grids: Integers, symbols: Integers, about: Integers,
    arrays: Any, sums: Any, sets: Integers, values: Integers, bits: Floats, after: Integers, found: Floats,
) -> None:  # fmt: skip
    """Give a place its candidate (L,), for which `_try` wrote `found`."""
    height, width = grids[0]
    y, x = place // width, place % width
    tables, _, _, _, all_groups, all_features, all_around, all_firsts, all_members = arrays
    for model in range(len(about)):
        hidden, selecting = about[model, 1], about[model, 3]
        table, groups, features = tables[model], all_groups[model], all_features[model]
        around, firsts, members = all_around[model], all_firsts[model], all_members[model]
        for group in range(len(groups)):
            after[group] = _value(candidate, groups[group, 0], groups[group, 1], symbols)
        for number in range(len(around)):
            row, column = y - around[number, 0], x - around[number, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            other = row * width + column
            for one in range(firsts[number], firsts[number + 1]):
                _replace(sums[model, other, :hidden], features[members[one]], table, values[model, place], after)
            bits[model, other] = found[model, number]
        for group in range(len(groups)):
            values[model, place, group] = after[group]
        if selecting >= 0:
            sets[model, place] = after[selecting]
    for level in range(len(candidate)):
        codes[begins[level] + place] = candidate[level]


@compiled(**_OPTIONS)
def _choose(
    images: Codes, first: int, last: int, candidates: Codes, errors: Floats, places: Integers, weight: float,
    begins: Integers, grids: Integers, symbols: Integers, about: Integers, arrays: Any, sizes: Integers,
    chosen: Integers, totals: Floats,
) -> int:  # fmt: skip
    """`choose` for images[first:last]; sizes: most hidden units, groups and offsets of a model."""
    models, positions = len(about), candidates.shape[1]
    sums = np.empty((models, positions, sizes[0]), np.int32)
    sets, values = np.zeros((models, positions), np.int64), np.empty((models, positions, sizes[1]), np.int64)
    bits, spare = np.zeros((models, positions), np.float32), np.empty(sizes[0], np.int32)
    after, frequencies = np.empty(sizes[1], np.int64), np.empty(symbols.max(), np.int64)
    found, kept = np.zeros((models, sizes[2]), np.float32), np.zeros((models, sizes[2]), np.float32)
    for image in range(first, last):
        codes = images[image]
        _begin(codes, begins, grids, symbols, about, arrays, sums, sets, values, bits, spare)
        for place in places:
            now = chosen[image, place]
            best, least = now, 0.0
            for one in range(candidates.shape[2]):
                if one == now:
                    continue
                cost = float(errors[image, place, one] - errors[image, place, now])
                cost += weight * _try(
                    place, candidates[image, place, one], codes, begins, grids, symbols, about, arrays, sums, sets,
                    values, bits, spare, after, frequencies, found,
                )  # fmt: skip
                if cost < least:
                    best, least = one, cost
                    kept[:] = found
            if best != now:
                chosen[image, place] = best
                _take(
                    place, candidates[image, place, best], codes, begins, grids, symbols, about, arrays, sums, sets,
                    values, bits, after, kept,
                )  # fmt: skip
        totals[image] = bits.sum()
    return last - first


def choose(
    models: Models, images: Codes, candidates: Codes, errors: Floats, chosen: Integers, places: Integers, weight: float
) -> Floats:
    """Let each of `places`, one after the other, have its best candidate; -> bits of each image (N,) after that.

    Bits are those of the levels that have a model; the others take the same whatever is chosen. What a file has beside
    them (header, checks, ends of streams) is not counted.

    Args:
        images: (N, all codes), level after level; what is chosen is written to it.
        candidates: (N, P, K, L), codes of all levels.
        errors: (N, P, K) of each candidate.
        chosen: (N, P), which candidate each position has; written to.
        places: numbers of positions.
        weight: of a bit, in units of the errors.
    """
    totals = np.zeros(len(images), np.float32)
    if not len(models.about):
        rows = np.arange(len(images))[:, None]
        chosen[:, places] = errors[:, places].argmin(-1)
        for level in range(candidates.shape[-1]):
            images[:, models.layout.begins[level] + places] = candidates[rows, places, chosen[:, places], level]
        return totals
    sizes = np.array([
        models.about[:, 1].max(), max(map(len, models.arrays[4])), max(map(len, models.arrays[6]))
    ])  # fmt: skip
    layout = models.layout

    def run(first: int, last: int) -> int:
        return int(_choose(
            images, first, last, candidates, errors, places, float(weight), layout.begins, layout.grids,
            layout.symbols, models.about, models.arrays, sizes, chosen, totals,
        ))  # fmt: skip

    in_parts(len(images), run)
    return totals
