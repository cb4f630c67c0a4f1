"""Choose the codes of each position among a few candidates, by their error and by their bits.

A code costs bits itself, and it is in the contexts of the codes around it. Positions are visited one after the other.
Given the codes of all others, each position takes the candidate of the least

    error + lmbda * bits of all codes of the image

so that the sum over an image never grows (iterated conditional modes: Besag 1986). All levels lie on one grid.

The state of an image is the networks' sums before the ReLU and the bits of the code at every position. It changes with
the codes. Most of the time goes into the bits of the codes around, so candidates are tried in the order of their error
and their own bits, up to a margin. Every other strip of rows is visited first, on all threads, then the strips between.
A code reaches less far than a strip, so the choice does not depend on the number of threads.

Shapes: N images, P positions, K candidates, L levels, n leaves; M levels that have a network, H most hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.kernels import count_frequencies, fill_maps, find_rows, find_set, put, sum_rows
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import FRAME, PLACES, EntropyNetwork
from hrvqvae.utils.compiled import compiled, in_parts

Integers = NDArray[np.int64]
CodeArray = NDArray[np.int32]
Floats = NDArray[np.float32]

_STAGES = (1, 9, 1 << 30)  # offsets at which codes around are looked at, the nearest first
_MARGINS = (4.0, 2.0)  # bits by which a candidate may still fall, before each stage
_STRIP = 32  # rows, more than a code and another that it changes can both reach
_FIRST, _TRY, _TAKE = np.int64(0), np.False_, np.True_  # no literals, which would be signatures of their own


def _stack_networks(networks: Sequence[EntropyNetwork]) -> tuple[NDArray[Any], ...]:
    """Return the networks as the kernels take them, each array padded and stacked: (M, ...).

    The arrays are the numbers of each network (level, symbols, hidden units, shift, selecting group, groups, features,
    offsets); table, bias, weights, offsets, groups and features; the offsets (dy, dx) of the features, the nearest
    first; where the members of each offset begin; and the members, indices of features.
    """
    networks_arrays = []
    for network in networks:
        contexts = network.contexts
        by_offset: dict[tuple[int, int], list[int]] = {(0, 0): []}
        for feature, (_, dy, dx) in enumerate(contexts.features):
            by_offset.setdefault((dy, dx), []).append(feature)
        by_offset = dict(sorted(by_offset.items(), key=lambda item: item[0][0] ** 2 + item[0][1] ** 2))
        numbers = (
            contexts.level, contexts.symbols[-1], len(network.bias), network.shift, contexts.selecting,
            len(contexts.groups), len(contexts.features) + 1, len(by_offset),
        )  # fmt: skip
        networks_arrays.append((
            np.array(numbers, np.int64), *network.arrays[:6], np.array(list(by_offset), np.int64),
            np.cumsum([0, *map(len, by_offset.values())]).astype(np.int64),
            np.array([feature for features in by_offset.values() for feature in features], np.int64),
        ))  # fmt: skip
    stacks = []
    for arrays in zip(*networks_arrays, strict=True):
        stack = np.zeros((len(arrays), *np.max([array.shape for array in arrays], 0)), arrays[0].dtype)
        for index, array in enumerate(arrays):
            stack[index][tuple(map(slice, array.shape))] = array
        stacks.append(stack)
    return tuple(stacks)


@compiled(inline="always")
def _value_of(codes: CodeArray, place: int, groups: Integers, group: int, symbols: Integers) -> int:
    """Return the value of a group from codes (L, P) at a place."""
    value = 0
    for level in range(groups[group, 0], groups[group, 1] + 1):
        value = value * symbols[level] + codes[level, place]
    return value


@compiled(inline="always")
def _replace_row(sums: Any, table: Any, old: int, new: int, hidden: int) -> None:
    """Replace a table row by another in the sums before the ReLU."""
    for h in range(hidden):
        sums[h] += np.int32(table[new, h]) - np.int32(table[old, h])


@compiled()
def _begin(
    codes: CodeArray, first: int, last: int, window: Any, layout: Any, models: Any, state: Any, work: Any
) -> int:
    """Write what the networks make of codes[first:last] (N, L * P): the state of these images.

    Args:
        window: first row and column of the grid, and rows and columns of the image's grid.
        work: maps, rows, sums and frequencies, overwritten.
    """
    begins, grids, symbols = layout
    about, tables, biases, all_weights, all_offsets, all_groups, all_features = models[:7]
    all_sums, all_bits = state
    all_maps, all_rows, sums, frequencies = work
    height, width = grids[0, 0], grids[0, 1]
    for model in range(len(about)):
        level, values, hidden, shift, selecting = about[model, :5]
        maps, groups = all_maps[: about[model, 5]], all_groups[model, : about[model, 5]]
        rows, features = all_rows[: about[model, 6]], all_features[model, : about[model, 6]]
        table, bias, weights, offsets = tables[model], biases[model, :hidden], all_weights[model], all_offsets[model]
        for image in range(first, last):
            fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
            for place in range(height * width):
                put(maps, groups, level, values, place // width, place % width, codes[image, begins[level] + place])
            for place in range(height * width):
                y, x = place // width, place % width
                find_rows(maps, groups, grids, level, features, y, x, rows)
                row, column = (y + window[0]) * PLACES // window[2], (x + window[1]) * PLACES // window[3]
                rows[len(rows) - 1] = features[len(rows) - 1, 3] + row * PLACES + column
                sum_rows(rows, table, bias, sums)
                for h in range(hidden):
                    all_sums[image, model, place, h] = sums[h]
                chosen = find_set(maps, groups, grids, level, selecting, y, x)
                total = count_frequencies(sums, hidden, chosen, weights, offsets, shift, frequencies, values)
                all_bits[image, model, place] = math.log2(total / frequencies[codes[image, begins[level] + place]])
    return last - first


@compiled()
def _change(
    place: int, leaves: CodeArray, leaf: int, first: int, last: int, take: bool, codes: CodeArray, layout: Any,
    models: Any, sums: Any, bits: Any, work: Any,
) -> float:  # fmt: skip
    """Return by how many bits the codes of an image (L, P) grow if a place gets the codes of a leaf of `leaves` (L, n).

    Args:
        first: the first of the offsets of each network to look at, up to `last` - 1; 0 is the place itself.
        take: give the place these codes, which needs all offsets; otherwise nothing is changed.
        work: sums, values of the groups before and after, and frequencies, overwritten.
    """
    _, grids, symbols = layout
    about, tables, _, all_weights, all_offsets, all_groups, all_features, all_around, all_firsts, all_members = models
    new_sums, before, after, frequencies = work
    height, width = grids[0, 0], grids[0, 1]
    y, x = place // width, place % width
    growth = 0.0
    for model in range(len(about)):
        level, values, hidden, shift, selecting = about[model, :5]
        table, weights, offsets, groups = tables[model], all_weights[model], all_offsets[model], all_groups[model]
        features, around, firsts, members = (
            all_features[model], all_around[model], all_firsts[model], all_members[model],
        )  # fmt: skip
        for group in range(about[model, 5]):
            before[group] = _value_of(codes, place, groups, group, symbols)
            after[group] = _value_of(leaves, leaf, groups, group, symbols)
        for offset in range(first, min(last, about[model, 7])):
            row, column = y - around[offset, 0], x - around[offset, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            other = row * width + column
            same = other != place
            for member in range(firsts[offset], firsts[offset + 1]):
                group = features[members[member], 0]
                same = same and after[group] == before[group]
            if same:
                continue
            for h in range(hidden):
                new_sums[h] = sums[model, other, h]
            for member in range(firsts[offset], firsts[offset + 1]):
                group, start = features[members[member], 0], features[members[member], 3]
                _replace_row(new_sums, table, start + before[group], start + after[group], hidden)
            if take:
                for h in range(hidden):
                    sums[model, other, h] = new_sums[h]
            chosen, code = 0, leaves[level, leaf]
            if other == place:
                if selecting >= 0:
                    chosen = after[selecting]
            else:
                code = codes[level, other]
                if selecting >= 0:
                    chosen = _value_of(codes, other, groups, selecting, symbols)
            total = count_frequencies(new_sums, hidden, chosen, weights, offsets, shift, frequencies, values)
            new_bits = math.log2(total / frequencies[code])
            growth += new_bits - bits[model, other]
            if take:
                bits[model, other] = new_bits
    if take:
        for level in range(len(codes)):
            codes[level, place] = leaves[level, leaf]
    return growth


@compiled(inline="always")
def _count_own_bits(
    place: int, candidates: CodeArray, leaves: CodeArray, codes: CodeArray, layout: Any, models: Any, sums: Any,
    work: Any, bits: Any,
) -> None:  # fmt: skip
    """Write the bits of the candidates (K,) at a place to `bits`; those of equal coarser codes share frequencies."""
    symbols = layout[2]
    about, tables, _, all_weights, all_offsets, all_groups, all_features, _, all_firsts, all_members = models
    new_sums, before, frequencies, totals = work
    for candidate in range(len(candidates)):
        bits[candidate] = 0.0
    for model in range(len(about)):
        level, values, hidden, shift, selecting = about[model, :5]
        table, groups, features, members = tables[model], all_groups[model], all_features[model], all_members[model]
        weights, offsets = all_weights[model], all_offsets[model]
        for group in range(about[model, 5]):
            before[group] = _value_of(codes, place, groups, group, symbols)
        for candidate in range(len(candidates)):
            leaf, like, alike = candidates[candidate], 0, False
            while like < candidate and not alike:
                alike = True
                for coarser in range(level):
                    alike = alike and leaves[coarser, candidates[like]] == leaves[coarser, leaf]
                like += 0 if alike else 1
            if like == candidate:
                for h in range(hidden):
                    new_sums[h] = sums[model, place, h]
                for member in range(all_firsts[model, 1]):  # at the place itself
                    group, start = features[members[member], 0], features[members[member], 3]
                    after = _value_of(leaves, leaf, groups, group, symbols)
                    _replace_row(new_sums, table, start + before[group], start + after, hidden)
                chosen = 0
                if selecting >= 0:
                    chosen = _value_of(leaves, leaf, groups, selecting, symbols)
                totals[candidate] = count_frequencies(
                    new_sums, hidden, chosen, weights, offsets, shift, frequencies[candidate], values
                )
            bits[candidate] += math.log2(totals[like] / frequencies[like, leaves[level, leaf]])


@compiled()
def _settle(
    first: int, last: int, strips: Integers, places: Integers, images: CodeArray, candidates: CodeArray,
    leaves: CodeArray, errors: Floats, chosen: CodeArray, lmbdas: Floats, margins: Any, layout: Any, models: Any,
    state: Any, work: Any,
) -> int:  # fmt: skip
    """Give places their best candidates, in the units first, ..., last - 1: the strips of an image, image by image.

    Args:
        strips: (S, 2), the range of `places` of each.
        images: codes (N, L, P).
        work: costs and bits (K,), and the arrays of `_change` and `_count_own_bits`, overwritten.
    """
    costs, bits, change_work, bits_work = work
    count = len(costs)
    for unit in range(first, last):
        image, strip = unit // len(strips), unit % len(strips)
        codes, lmbda = images[image], lmbdas[image]
        sums, image_bits = state[0][image], state[1][image]
        for index in range(strips[strip, 0], strips[strip, 1]):
            place = places[index]
            now = chosen[image, place]
            for k in range(count):
                bits[k] = 0.0
            if lmbda > 0:
                _count_own_bits(place, candidates[image, place], leaves, codes, layout, models, sums, bits_work, bits)
            for k in range(count):
                costs[k] = errors[image, index, k] - errors[image, index, now] + lmbda * (bits[k] - bits[now])
            costs[now] = np.inf
            best, least = now, 0.0
            for _ in range(count - 1):
                k = 0
                for other in range(1, count):
                    if costs[other] < costs[k]:
                        k = other
                cost = costs[k]
                costs[k] = np.inf
                if cost >= least + lmbda * margins[0]:
                    break
                leaf = candidates[image, place, k]
                for stage in range(len(margins) if lmbda > 0 else 0):
                    if cost < least + lmbda * margins[stage]:
                        begin, end = _STAGES[stage], _STAGES[stage + 1]
                        cost += lmbda * _change(
                            place, leaves, leaf, begin, end, _TRY, codes, layout, models, sums, image_bits,
                            change_work,
                        )  # fmt: skip
                if cost < least:
                    best, least = k, cost
            if best != now:
                chosen[image, place] = best
                leaf = candidates[image, place, best]
                _change(
                    place, leaves, leaf, _FIRST, _STAGES[2], _TAKE, codes, layout, models, sums, image_bits, change_work
                )
    return last - first


class Choice:
    """The chosen candidate of each position of images (N, P), and the bits of their codes in levels with a network."""

    def __init__(
        self, layout: Layout, networks: Sequence[EntropyNetwork | None], leaves: CodeArray, candidates: CodeArray,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:  # fmt: skip
        """Begin with the first candidate of each position.

        Args:
            leaves: (n, L), the codes of all levels of each leaf.
            candidates: (N, P, K), indices of leaves.
            window: of tiles, the first row and column, and the grid of the whole image.
        """
        self._layout, self._leaves, self._candidates = layout, leaves, candidates
        self.chosen = np.zeros((len(candidates), candidates.shape[1]), np.int32)
        self._maps = np.ascontiguousarray(leaves[candidates[:, :, 0]].transpose(0, 2, 1))  # (N, L, P)
        used = [network for network in networks if network is not None]
        self._state: Any = None
        if not used:
            return
        models = _stack_networks(used)
        self._models = ((layout.begins, layout.grids, layout.symbols), models)
        units, groups, features = models[2].shape[1], models[5].shape[1], models[6].shape[1]
        self._sizes = units, groups, int(layout.symbols.max())
        shape = (len(candidates), len(used), candidates.shape[1])
        self._state = (np.zeros((*shape, units), np.int32), np.zeros(shape, np.float32))
        window = window or (0, 0, *layout.grids[0].tolist())
        height, width = layout.grids[0] + 2 * FRAME

        def begin(first: int, last: int) -> None:
            work = (
                np.empty((groups, height, width), np.int32), np.empty(features, np.int64), np.empty(units, np.int32),
                np.empty(self._sizes[2], np.int64),
            )  # fmt: skip
            _begin(self.codes, first, last, window, *self._models, self._state, work)

        in_parts(len(candidates), begin)

    @property
    def codes(self) -> CodeArray:
        """The chosen codes (N, codes of all levels), level after level."""
        return self._maps.reshape(len(self._maps), -1)

    @property
    def bits(self) -> NDArray[np.float64]:
        """Bits of the codes of each image (N,)."""
        if self._state is None:
            return np.zeros(len(self.codes))
        bits: NDArray[np.float64] = self._state[1].sum((1, 2), dtype=np.float64)
        return bits

    @property
    def leaves(self) -> CodeArray:
        """The index of the chosen leaf of each position (N, P)."""
        return np.take_along_axis(self._candidates, self.chosen[:, :, None], 2)[:, :, 0]

    def settle(self, places: Integers, errors: Floats, lmbdas: NDArray[np.floating[Any]]) -> None:
        """Give each of P' places, in ascending order, its best candidate by errors (N, P', K) and lambdas (N,)."""
        if self._state is None:  # take the candidate of the least error, the present one where none is less
            now, least = self.chosen[:, places], errors.argmin(-1)
            better = np.take_along_axis(errors, least[..., None], 2) < np.take_along_axis(errors, now[..., None], 2)
            self.chosen[:, places] = np.where(better[..., 0], least, now)
            self._maps[:, :, places] = self._leaves[self.leaves[:, places]].transpose(0, 2, 1)
            return
        width, count = int(self._layout.grids[0, 1]), self._candidates.shape[2]
        ends = np.searchsorted(places, width * np.arange(0, self.chosen.shape[1] // width + _STRIP, _STRIP))
        strips = np.stack([ends[:-1], ends[1:]], 1)
        leaves, lmbdas = np.ascontiguousarray(self._leaves.T), lmbdas.astype(np.float32)
        units, groups, symbols = self._sizes

        def settle(first: int, last: int) -> None:
            sums, before, after = np.empty(units, np.int32), *np.empty((2, groups), np.int64)
            frequencies, totals = np.empty((count, symbols), np.int64), np.empty(count, np.int64)
            work = (
                *np.empty((2, count), np.float64), (sums, before, after, np.empty(symbols, np.int64)),
                (sums, before, frequencies, totals),
            )  # fmt: skip
            _settle(
                first, last, half, places, self._maps, self._candidates, leaves, errors, self.chosen, lmbdas,
                np.array(_MARGINS), *self._models, self._state, work,
            )  # fmt: skip

        for half in (strips[::2].copy(), strips[1::2].copy()):  # of which strips are independent of each other
            in_parts(len(self.codes) * len(half), settle)
