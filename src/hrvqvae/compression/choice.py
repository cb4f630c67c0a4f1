"""Which of a few codes each position gets, by its error and by the bits that the integer models make of it.

A code costs bits itself, and it changes what the codes around it cost, in whose contexts it stands. Positions are gone
through one after the other. Each one takes, given what all others have, the candidate of the least

    error + lmbda * bits of all codes of the image

so that the sum over an image never grows (iterated conditional modes: Besag 1986). All levels lie on one grid.

The state of an image is what the models make of its codes at every position: the sums before the ReLU, and the bits of
the code. It is computed once, and changed with the codes.

What the codes around would cost takes nearly all of the time, so candidates are looked at in the order of their error
and their own bits, up to a margin. Every other strip of rows is gone through first, on all threads, then those between:
a code reaches less far than a strip, so that what is chosen does not depend on the number of threads.

Shapes: N images, P positions of the grid, K candidates, L levels, n leaves; M levels that have a model, H hidden units
of the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.kernels import count_frequencies, fill_maps, find_rows, find_set, put, sum_rows
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import FRAME, PLACES, Network
from hrvqvae.utils.compiled import compiled, in_parts

Integers = NDArray[np.int64]
Codes = NDArray[np.int32]
Floats = NDArray[np.float32]

_EVERY = 1 << 30  # offsets: more than a model has
_STAGES = (1, 9, _EVERY)  # offsets at which codes around are looked at, the nearest first
_MARGINS = (4.0, 2.0)  # bits that they may still save, before each stage
_STRIP = 32  # rows, more than a code and another that it changes can both reach


def _arrays_of(network: Network) -> tuple[NDArray[Any], ...]:
    """Those of the network; the offsets at which features lie, the nearest first; which of `members` are each's."""
    around: dict[tuple[int, int], list[int]] = {(0, 0): []}
    for number, (_, dy, dx) in enumerate(network.contexts.features):
        around.setdefault((dy, dx), []).append(number)
    around = dict(sorted(around.items(), key=lambda one: one[0][0] ** 2 + one[0][1] ** 2))
    firsts = np.cumsum([0, *map(len, around.values())]).astype(np.int64)
    members = np.concatenate([np.array(numbers, np.int64) for numbers in around.values()])
    return *network.arrays[:6], np.array(list(around), np.int64), firsts, members


@compiled()
def _model(number: int, models: Any) -> Any:
    """Level, symbols, hidden units, shift and selecting group of a model, and its arrays: those of `_arrays_of`."""
    about, begins, joined = models
    level, values, hidden, shift, selecting = about[number]
    first, last = begins[number], begins[number + 1]
    table = joined[0][first[0] : last[0]].reshape(-1, hidden)
    bias = joined[1][first[1] : last[1]]
    weights = joined[2][first[2] : last[2]].reshape(-1, values, hidden)
    offsets = joined[3][first[3] : last[3]].reshape(-1, values)
    groups = joined[4][first[4] : last[4]].reshape(-1, 2)
    features = joined[5][first[5] : last[5]].reshape(-1, 4)
    around = joined[6][first[6] : last[6]].reshape(-1, 2)
    firsts, members = joined[7][first[7] : last[7]], joined[8][first[8] : last[8]]
    arrays = table, bias, weights, offsets, groups, features, around, firsts, members
    return level, values, hidden, shift, selecting, arrays


@compiled()
def _bits(hidden: Any, chosen: int, weights: Any, offsets: Any, shift: int, code: int, frequencies: Integers) -> float:
    """Bits of a code, from the sums of a position, which are overwritten."""
    total = count_frequencies(hidden, len(hidden), chosen, weights, offsets, shift, frequencies, len(frequencies))
    return math.log2(total / frequencies[code])


@compiled()
def _begin(codes: Codes, first: int, last: int, window: Any, layout: Any, models: Any, state: Any) -> int:
    """Write what the models make of codes[first:last] (N, L * P): the state of these images."""
    begins, grids, symbols = layout
    height, width = grids[0]
    all_sums, all_bits = state
    spare, frequencies = np.empty(all_sums.shape[3], np.int32), np.empty(symbols.max(), np.int64)
    for model in range(len(models[0])):
        level, values, hidden, shift, selecting, arrays = _model(model, models)
        table, bias, weights, offsets, groups, features = arrays[:6]
        maps = np.empty((len(groups), height + 2 * FRAME, width + 2 * FRAME), np.int32)
        rows = np.empty(len(features), np.int64)
        for image in range(first, last):
            sums, bits = all_sums[image, model], all_bits[image, model]
            fill_maps(codes, image, begins, grids, symbols, groups, level, maps)
            for place in range(height * width):
                put(maps, groups, level, values, place // width, place % width, codes[image, begins[level] + place])
            for place in range(height * width):
                y, x = place // width, place % width
                find_rows(maps, groups, grids, level, features, y, x, rows)
                row, column = (y + window[0]) * PLACES // window[2], (x + window[1]) * PLACES // window[3]
                rows[len(rows) - 1] = features[len(rows) - 1, 3] + row * PLACES + column
                sum_rows(rows, table, bias, sums[place])
                for h in range(hidden):
                    spare[h] = sums[place, h]
                chosen = find_set(maps, groups, grids, level, selecting, y, x)
                bits[place] = _bits(
                    spare[:hidden], chosen, weights, offsets, shift, codes[image, begins[level] + place], frequencies[:values]
                )
    return last - first


@compiled()
def _value(codes: Codes, group: Integers, symbols: Integers) -> int:
    """Of a group (first, last), from the codes (L,) of a position."""
    value = 0
    for level in range(group[0], group[1] + 1):
        value = value * symbols[level] + codes[level]
    return value


@compiled()
def _change(
    place: int, candidate: Codes, first: int, last: int, take: bool, codes: Codes, layout: Any, models: Any,
    state: Any, spares: Any,
) -> float:  # fmt: skip
    """-> bits that codes of an image (L, P) take more where a place gets a candidate (L,).

    Of each model those at its offsets first, ..., last - 1, of which the first is the place itself.

    Args:
        take: give it the candidate, which needs all offsets; otherwise nothing is changed.
        state: of the image.
        spares: sums, values of groups before and after, and frequencies, overwritten.
    """
    _, grids, symbols = layout
    sums, bits = state
    spare, before, after, frequencies = spares
    height, width = grids[0]
    y, x = place // width, place % width
    more = 0.0
    for model in range(len(models[0])):
        level, values, hidden, shift, selecting, arrays = _model(model, models)
        table, _, weights, offsets, groups, features, around, firsts, members = arrays
        for group in range(len(groups)):
            before[group] = _value(codes[:, place], groups[group], symbols)
            after[group] = _value(candidate, groups[group], symbols)
        for number in range(first, min(last, len(around))):
            row, column = y - around[number, 0], x - around[number, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            other = row * width + column
            same = other != place
            for one in range(firsts[number], firsts[number + 1]):
                group = features[members[one], 0]
                same = same and after[group] == before[group]
            if same:
                continue
            for h in range(hidden):
                spare[h] = sums[model, other, h]
            for one in range(firsts[number], firsts[number + 1]):
                group, start = features[members[one], 0], features[members[one], 3]
                old, new = start + before[group], start + after[group]
                for h in range(hidden):
                    spare[h] += np.int32(table[new, h]) - np.int32(table[old, h])
            own = candidate if other == place else codes[:, other]
            chosen = _value(own, groups[selecting], symbols) if selecting >= 0 else 0
            if take:
                for h in range(hidden):
                    sums[model, other, h] = spare[h]
            found = _bits(spare[:hidden], chosen, weights, offsets, shift, own[level], frequencies[:values])
            more += found - bits[model, other]
            if take:
                bits[model, other] = found
    if take:
        codes[:, place] = candidate
    return more


@compiled()
def _own_bits(
    place: int, candidates: Codes, leaves: Codes, codes: Codes, layout: Any, models: Any, state: Any, spares: Any,
    found: Any,
) -> None:  # fmt: skip
    """Write the bits of each candidate's own codes (K,) at a place; those of the same coarser codes are coded alike."""
    spare, before, frequencies, totals = spares
    found[:] = 0
    for model in range(len(models[0])):
        level, values, hidden, shift, selecting, arrays = _model(model, models)
        table, _, weights, offsets, groups, features, _, firsts, members = arrays
        for group in range(len(groups)):
            before[group] = _value(codes[:, place], groups[group], layout[2])
        for one in range(len(candidates)):
            own, like = leaves[candidates[one]], 0
            while like < one:
                other, shared = leaves[candidates[like]], 0
                while shared < level and other[shared] == own[shared]:
                    shared += 1
                if shared == level:
                    break
                like += 1
            if like == one:
                spare[:hidden] = state[0][model, place, :hidden]
                for number in range(firsts[1]):  # at the place itself
                    group, start = features[members[number], 0], features[members[number], 3]
                    old, new = start + before[group], start + _value(own, groups[group], layout[2])
                    for h in range(hidden):
                        spare[h] += np.int32(table[new, h]) - np.int32(table[old, h])
                chosen = _value(own, groups[selecting], layout[2]) if selecting >= 0 else 0
                totals[one] = count_frequencies(
                    spare, hidden, chosen, weights, offsets, shift, frequencies[one], values
                )
            found[one] += math.log2(totals[like] / frequencies[like, own[level]])


@compiled()
def _settle(
    first: int, last: int, strips: Integers, places: Integers, images: Codes, numbers: Any, leaves: Codes,
    errors: Floats, chosen: Any, lmbdas: Floats, margins: Any, layout: Any, models: Any, state: Any,
) -> int:  # fmt: skip
    """Let places have their best candidates, in units first, ..., last - 1: the strips of an image, image by image.

    Args:
        strips: (S, 2), which of `places` each has.
    """
    all_sums, all_bits = state
    groups = len(models[2][4])  # of all models
    spares = (
        np.empty(all_sums.shape[3], np.int32), np.empty(groups, np.int64), np.empty(groups, np.int64),
        np.empty(layout[2].max(), np.int64),
    )  # fmt: skip
    own, bits = np.empty((2, numbers.shape[2]), np.float64)
    own_spares = spares[0], spares[1], np.empty((len(own), layout[2].max()), np.int64), np.empty(len(own), np.int64)
    for unit in range(first, last):
        image, strip = unit // len(strips), unit % len(strips)
        codes, lmbda = images[image], lmbdas[image]
        state_of = (all_sums[image], all_bits[image])
        for index in range(strips[strip, 0], strips[strip, 1]):
            place = places[index]
            now = chosen[image, place]
            bits[:] = 0
            if lmbda > 0:
                _own_bits(place, numbers[image, place], leaves, codes, layout, models, state_of, own_spares, bits)
            for one in range(len(own)):
                own[one] = errors[image, index, one] - errors[image, index, now] + lmbda * (bits[one] - bits[now])
            own[now] = np.inf
            best, least = now, 0.0
            for _ in range(len(own) - 1):
                one = int(own.argmin())
                cost = own[one]
                own[one] = np.inf
                if cost >= least + lmbda * margins[0]:
                    break
                leaf = leaves[numbers[image, place, one]]
                for stage in range(len(margins) if lmbda > 0 else 0):
                    if cost < least + lmbda * margins[stage]:
                        begin, end = _STAGES[stage], _STAGES[stage + 1]
                        cost += lmbda * _change(place, leaf, begin, end, False, codes, layout, models, state_of, spares)
                if cost < least:
                    best, least = one, cost
            if best != now:
                chosen[image, place] = best
                leaf = leaves[numbers[image, place, best]]
                _change(place, leaf, 0, _EVERY, True, codes, layout, models, state_of, spares)
    return last - first


class Choice:
    """Which of its candidates each position of images has, and the bits of their codes in the levels with a model.

    Attributes:
        chosen: (N, P), the number of each position's candidate, the first to begin with.
    """

    def __init__(
        self, layout: Layout, networks: Sequence[Network | None], leaves: Codes, numbers: Codes,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:  # fmt: skip
        """Begin with the first candidate of each position.

        Args:
            layout: of the levels that there are.
            networks: of these levels.
            leaves: (n, L), the codes of all levels of each leaf.
            numbers: (N, P, K), the leaves that are candidates.
            window: of tiles, the first row and column, and the grid of the whole image.
        """
        self._layout, self._leaves, self._numbers = layout, leaves, numbers
        self.chosen = np.zeros((len(numbers), numbers.shape[1]), np.int32)
        self._maps = np.ascontiguousarray(leaves[numbers[:, :, 0]].transpose(0, 2, 1))  # (N, L, P)
        used = [network for network in networks if network is not None]
        self._state: Any = None
        if not used:
            return
        about = np.array([
            (one.contexts.level, one.contexts.symbols[-1], len(one.bias), one.shift, one.contexts.selecting)
            for one in used
        ], np.int64)  # fmt: skip
        arrays = [_arrays_of(one) for one in used]
        begins = np.cumsum([[0] * len(arrays[0]), *([one.size for one in own] for own in arrays)], 0)
        joined = tuple(np.concatenate([one.ravel() for one in kind]) for kind in zip(*arrays, strict=True))
        self._models = ((layout.begins, layout.grids, layout.symbols), (about, begins, joined))
        shape = (len(numbers), len(used), numbers.shape[1])
        self._state = (np.zeros((*shape, int(about[:, 2].max())), np.int32), np.zeros(shape, np.float32))
        window = window or (0, 0, *layout.grids[0].tolist())
        begun = (window, *self._models, self._state)
        in_parts(len(numbers), lambda first, last: int(_begin(self.codes, first, last, *begun)))

    @property
    def codes(self) -> Codes:
        """Of what is chosen (N, all codes), level after level."""
        return self._maps.reshape(len(self._maps), -1)

    @property
    def bits(self) -> NDArray[np.float64]:
        """Of each image (N,)."""
        if self._state is None:
            return np.zeros(len(self.codes))
        bits: NDArray[np.float64] = self._state[1].sum((1, 2), dtype=np.float64)
        return bits

    @property
    def leaves(self) -> Codes:
        """The number of the leaf of each position (N, P)."""
        return np.take_along_axis(self._numbers, self.chosen[:, :, None], 2)[:, :, 0]

    def settle(self, places: Integers, errors: Floats, lmbdas: NDArray[np.floating[Any]]) -> None:
        """Let each of `places`, one after the other, have its best candidate.

        Args:
            places: P' numbers of positions in ascending order.
            errors: (N, P', K) of each candidate.
            lmbdas: (N,), of each image.
        """
        if self._state is None:
            self._take_least(places, errors)
            return
        width = int(self._layout.grids[0, 1])
        ends = np.searchsorted(places, width * np.arange(0, self.chosen.shape[1] // width + _STRIP, _STRIP))
        strips = np.stack([ends[:-1], ends[1:]], 1)
        lmbdas = lmbdas.astype(np.float32)
        for some in (strips[::2], strips[1::2]):  # which are independent of each other
            some = np.ascontiguousarray(some)

            def run(first: int, last: int, some: Integers = some) -> int:
                return int(_settle(
                    first, last, some, places, self._maps, self._numbers, self._leaves, errors, self.chosen, lmbdas,
                    np.array(_MARGINS), *self._models, self._state,
                ))  # fmt: skip

            in_parts(len(self.codes) * len(some), run)

    def _take_least(self, places: Integers, errors: Floats) -> None:
        """Without models: the candidate of the least error, an image's present one where none is less."""
        least = errors.argmin(-1)
        now = self.chosen[:, places]
        better = np.take_along_axis(errors, least[..., None], 2) < np.take_along_axis(errors, now[..., None], 2)
        self.chosen[:, places] = np.where(better[..., 0], least, now)
        self._maps[:, :, places] = self._leaves[self.leaves[:, places]].transpose(0, 2, 1)
