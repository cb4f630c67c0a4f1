"""Choose a leaf per position among a few candidates, by error and bits.

A code costs bits, and as a context it changes the bits of the codes around. Positions are visited
one after the other. With all other codes fixed, a position takes the candidate with the least

    error + lmbda * bits of all codes of the image

Hence the sum over an image never grows (iterated conditional modes: Besag 1986). All levels lie on
one grid.

The state holds, per image, network and position, the hidden units before the ReLU and the bits of
the code. To compute the bits of the codes around takes most of the time. So candidates are tried in
the order of error + lmbda * their own bits, up to a margin above the best. Threads work on strips
of rows: first on every other strip, then on the strips between. A change reaches less far than a
strip, so the choice does not depend on the number of threads.

Shapes: N images, P positions, K candidates, L levels, n leaves; M networks, H hidden units of the
    largest network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.levels import Layout, compute_frequencies, fill_maps, find_rows, sum_rows
from hrvqvae.compression.network import FRAME, ZONES, EntropyNetwork
from hrvqvae.utils.compiled import compiled, in_parts

Integers = NDArray[np.int64]
CodeArray = NDArray[np.int32]
Floats = NDArray[np.float32]

_STAGES = (1, 9, 1 << 30)  # the first stage takes the nearest offsets, 1 to 8, the second the rest
_MARGINS = (
    4.0,
    2.0,
)  # bits per stage; a candidate this far above the best is dropped before the stage
_STRIP_ROWS = 32  # per strip; more than twice the largest offset
# numba compiles once more for Python literals
_FIRST_OFFSET = np.int64(0)
_ESTIMATE = np.False_
_APPLY = np.True_


def _stack_networks(networks: Sequence[EntropyNetwork]) -> tuple[NDArray[Any], ...]:
    """Return the arrays of all networks, each padded and stacked (M, ...).

    They are 8 numbers per network; table, bias, weights, offsets, groups and features of
    `EntropyNetwork.arrays`; the distinct offsets (dy, dx) of the features, nearest first (offset 0
    is the position itself); where each offset begins among the members; and the members: the
    indices of the features, sorted by offset.
    """
    networks_arrays = []
    for network in networks:
        contexts = network.contexts
        by_offset: dict[tuple[int, int], list[int]] = {(0, 0): []}
        for feature, (_, dy, dx) in enumerate(contexts.features):
            by_offset.setdefault((dy, dx), []).append(feature)
        by_offset = dict(
            sorted(by_offset.items(), key=lambda item: item[0][0] ** 2 + item[0][1] ** 2)
        )
        numbers = (
            contexts.level,
            contexts.symbols[-1],
            len(network.bias),
            network.shift,
            contexts.selecting,
            len(contexts.groups),
            len(contexts.features) + 1,
            len(by_offset),
        )
        networks_arrays.append(
            (
                np.array(numbers, np.int64),
                *network.arrays[:6],
                np.array(list(by_offset), np.int64),
                np.cumsum([0, *map(len, by_offset.values())]).astype(np.int64),
                np.array(
                    [feature for features in by_offset.values() for feature in features], np.int64
                ),
            )
        )
    stacks = []
    for arrays in zip(*networks_arrays, strict=True):
        stack = np.zeros(
            (len(arrays), *np.max([array.shape for array in arrays], 0)), arrays[0].dtype
        )
        for index, array in enumerate(arrays):
            stack[index][tuple(map(slice, array.shape))] = array
        stacks.append(stack)
    return tuple(stacks)


@compiled(inline="always")
def _compute_value(
    codes: CodeArray, position: int, groups: Integers, group: int, symbols: Integers
) -> int:
    """Return the value of a group at a position, from codes (L, P)."""
    value = 0
    for level in range(groups[group, 0], groups[group, 1] + 1):
        value = value * symbols[level] + codes[level, position]
    return value


@compiled(inline="always")
def _replace_row(sums: Any, table: Any, old: int, new: int, num_hidden: int) -> None:
    """Replace the table row `old` by `new` in the hidden units before the ReLU."""
    for h in range(num_hidden):
        sums[h] += np.int32(table[new, h]) - np.int32(table[old, h])


@compiled()
def _compute_state(
    codes: CodeArray,
    begin: int,
    end: int,
    window: Any,
    layout: Any,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Write the state of the images with codes[begin:end] (N, L * P); see `Choice` for `window`."""
    begins, grids, symbols = layout
    numbers, tables, biases, all_weights, all_offsets, all_groups, all_features = networks[:7]
    all_sums, all_bits = state
    all_maps, all_rows, sums, frequencies = work
    height = grids[0, 0]
    width = grids[0, 1]
    for network in range(len(numbers)):
        level, num_symbols, num_hidden, shift, selecting = numbers[network, :5]
        maps = all_maps[: numbers[network, 5]]
        groups = all_groups[network, : numbers[network, 5]]
        rows = all_rows[: numbers[network, 6]]
        features = all_features[network, : numbers[network, 6]]
        table = tables[network]
        bias = biases[network, :num_hidden]
        weights = all_weights[network]
        offsets = all_offsets[network]
        for image in range(begin, end):
            fill_maps(codes, image, begins, grids, symbols, groups, level + 1, maps)
            for position in range(height * width):
                y = position // width
                x = position % width
                weight_set = find_rows(maps, groups, grids, level, features, selecting, y, x, rows)
                zone_row = (y + window[0]) * ZONES // window[2]
                zone_column = (x + window[1]) * ZONES // window[3]
                rows[len(rows) - 1] = features[len(rows) - 1, 3] + zone_row * ZONES + zone_column
                sum_rows(rows, table, bias, sums)
                for h in range(num_hidden):
                    all_sums[image, network, position, h] = sums[h]
                total = compute_frequencies(
                    sums, num_hidden, weight_set, weights, offsets, shift, frequencies, num_symbols
                )
                all_bits[image, network, position] = math.log2(
                    total / frequencies[codes[image, begins[level] + position]]
                )
    return end - begin


@compiled()
def _evaluate_leaf(
    position: int,
    leaves: CodeArray,
    leaf: int,
    begin: int,
    end: int,
    apply: bool,
    codes: CodeArray,
    layout: Any,
    networks: Any,
    sums: Any,
    bits: Any,
    work: Any,
) -> float:
    """Return how many more bits the codes of an image (L, P) take if a position gets a leaf of
    `leaves` (L, n).

    Only the offsets `begin` to `end - 1` of each network are evaluated. With `apply`, the position
    gets the leaf and the state is updated; this needs all offsets. Otherwise nothing changes.
    """
    _, grids, symbols = layout
    (
        numbers,
        tables,
        _,
        all_weights,
        all_offsets,
        all_groups,
        all_features,
        all_around,
        all_firsts,
        all_members,
    ) = networks
    new_sums, before, after, frequencies = work
    height = grids[0, 0]
    width = grids[0, 1]
    y = position // width
    x = position % width
    growth = 0.0
    for network in range(len(numbers)):
        level, num_symbols, num_hidden, shift, selecting = numbers[network, :5]
        table = tables[network]
        groups = all_groups[network]
        weights = all_weights[network]
        offsets = all_offsets[network]
        features = all_features[network]
        around = all_around[network]
        firsts = all_firsts[network]
        members = all_members[network]
        for group in range(numbers[network, 5]):
            before[group] = _compute_value(codes, position, groups, group, symbols)
            after[group] = _compute_value(leaves, leaf, groups, group, symbols)
        for offset in range(begin, min(end, numbers[network, 7])):
            row = y - around[offset, 0]
            column = x - around[offset, 1]
            if row < 0 or column < 0 or row >= height or column >= width:
                continue
            affected = row * width + column
            unchanged = affected != position
            for member in range(firsts[offset], firsts[offset + 1]):
                group = features[members[member], 0]
                unchanged = unchanged and after[group] == before[group]
            if unchanged:
                continue
            for h in range(num_hidden):
                new_sums[h] = sums[network, affected, h]
            for member in range(firsts[offset], firsts[offset + 1]):
                group = features[members[member], 0]
                start = features[members[member], 3]
                _replace_row(
                    new_sums, table, start + before[group], start + after[group], num_hidden
                )
            if apply:
                for h in range(num_hidden):
                    sums[network, affected, h] = new_sums[h]
            weight_set = 0
            code = leaves[level, leaf]
            if affected == position:
                if selecting >= 0:
                    weight_set = after[selecting]
            else:
                code = codes[level, affected]
                if selecting >= 0:
                    weight_set = _compute_value(codes, affected, groups, selecting, symbols)
            total = compute_frequencies(
                new_sums, num_hidden, weight_set, weights, offsets, shift, frequencies, num_symbols
            )
            new_bits = math.log2(total / frequencies[code])
            growth += new_bits - bits[network, affected]
            if apply:
                bits[network, affected] = new_bits
    if apply:
        for level in range(len(codes)):
            codes[level, position] = leaves[level, leaf]
    return growth


@compiled(inline="always")
def _count_own_bits(
    position: int,
    candidates: CodeArray,
    leaves: CodeArray,
    codes: CodeArray,
    layout: Any,
    networks: Any,
    sums: Any,
    work: Any,
    bits: Any,
) -> None:
    """Write the bits of each candidate's own codes to `bits` (K,); equal coarser codes share their
    frequencies.
    """
    symbols = layout[2]
    (
        numbers,
        tables,
        _,
        all_weights,
        all_offsets,
        all_groups,
        all_features,
        _,
        all_firsts,
        all_members,
    ) = networks
    new_sums, before, frequencies, totals = work
    for candidate in range(len(candidates)):
        bits[candidate] = 0.0
    for network in range(len(numbers)):
        level, num_symbols, num_hidden, shift, selecting = numbers[network, :5]
        table = tables[network]
        groups = all_groups[network]
        features = all_features[network]
        members = all_members[network]
        weights = all_weights[network]
        offsets = all_offsets[network]
        for group in range(numbers[network, 5]):
            before[group] = _compute_value(codes, position, groups, group, symbols)
        for candidate in range(len(candidates)):
            leaf = candidates[candidate]
            twin = 0
            equal = False
            while (
                twin < candidate and not equal
            ):  # find the first candidate with the same coarser codes
                equal = True
                for coarser in range(level):
                    equal = equal and leaves[coarser, candidates[twin]] == leaves[coarser, leaf]
                twin += 0 if equal else 1
            if twin == candidate:
                for h in range(num_hidden):
                    new_sums[h] = sums[network, position, h]
                for member in range(all_firsts[network, 1]):  # at the position itself
                    group = features[members[member], 0]
                    start = features[members[member], 3]
                    after = _compute_value(leaves, leaf, groups, group, symbols)
                    _replace_row(new_sums, table, start + before[group], start + after, num_hidden)
                weight_set = 0
                if selecting >= 0:
                    weight_set = _compute_value(leaves, leaf, groups, selecting, symbols)
                totals[candidate] = compute_frequencies(
                    new_sums,
                    num_hidden,
                    weight_set,
                    weights,
                    offsets,
                    shift,
                    frequencies[candidate],
                    num_symbols,
                )
            bits[candidate] += math.log2(totals[twin] / frequencies[twin, leaves[level, leaf]])


@compiled()
def _update(
    begin_unit: int,
    end_unit: int,
    strips: Integers,
    positions: Integers,
    images: CodeArray,
    candidates: CodeArray,
    leaves: CodeArray,
    errors: Floats,
    chosen: CodeArray,
    lmbdas: Floats,
    margins: Any,
    layout: Any,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Give positions their best candidates. Unit i of the work is strip i % S of image i // S.

    `strips` (S, 2) are ranges of indices into `positions`; `images` are codes (N, L, P).
    """
    costs, bits, leaf_work, bits_work = work
    count = len(costs)
    for unit in range(begin_unit, end_unit):
        image = unit // len(strips)
        strip = unit % len(strips)
        codes = images[image]
        lmbda = lmbdas[image]
        sums = state[0][image]
        image_bits = state[1][image]
        for index in range(strips[strip, 0], strips[strip, 1]):
            position = positions[index]
            current = chosen[image, position]
            for k in range(count):
                bits[k] = 0.0
            if lmbda > 0:
                _count_own_bits(
                    position,
                    candidates[image, position],
                    leaves,
                    codes,
                    layout,
                    networks,
                    sums,
                    bits_work,
                    bits,
                )
            for k in range(count):
                costs[k] = (
                    errors[image, index, k]
                    - errors[image, index, current]
                    + lmbda * (bits[k] - bits[current])
                )
            costs[current] = np.inf
            best = current
            least = 0.0
            for _ in range(count - 1):
                k = 0
                for other in range(1, count):
                    if costs[other] < costs[k]:
                        k = other
                cost = costs[k]
                costs[k] = np.inf
                if cost >= least + lmbda * margins[0]:
                    break
                leaf = candidates[image, position, k]
                for stage in range(len(margins) if lmbda > 0 else 0):
                    if cost < least + lmbda * margins[stage]:
                        begin = _STAGES[stage]
                        end = _STAGES[stage + 1]
                        cost += lmbda * _evaluate_leaf(
                            position,
                            leaves,
                            leaf,
                            begin,
                            end,
                            _ESTIMATE,
                            codes,
                            layout,
                            networks,
                            sums,
                            image_bits,
                            leaf_work,
                        )
                if cost < least:
                    best = k
                    least = cost
            if best != current:
                chosen[image, position] = best
                leaf = candidates[image, position, best]
                _evaluate_leaf(
                    position,
                    leaves,
                    leaf,
                    _FIRST_OFFSET,
                    _STAGES[2],
                    _APPLY,
                    codes,
                    layout,
                    networks,
                    sums,
                    image_bits,
                    leaf_work,
                )
    return end_unit - begin_unit


class Choice:
    """The chosen candidate of each position (N, P), and the bits of the chosen codes."""

    def __init__(
        self,
        layout: Layout,
        networks: Sequence[EntropyNetwork | None],
        leaves: CodeArray,
        candidates: CodeArray,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Choose the first candidate of each position. `candidates` (N, P, K) are indices of
        `leaves` (n, L).

        Args:
            layout: Grids of the levels, all of one size.
            networks: One per level; a level with None takes no bits.
            window: For a tile of an image: the tile's first row and column, and the rows and
                columns of the whole grid.
        """
        self._layout = layout
        self._leaves = leaves
        self._candidates = candidates
        self.chosen = np.zeros((len(candidates), candidates.shape[1]), np.int32)
        self._codes = np.ascontiguousarray(
            leaves[candidates[:, :, 0]].transpose(0, 2, 1)
        )  # (N, L, P)
        present = [network for network in networks if network is not None]
        self._state: Any = None
        if not present:
            return
        stacks = _stack_networks(present)
        self._arguments = layout.arrays, stacks
        units = stacks[2].shape[1]
        groups = stacks[5].shape[1]
        features = stacks[6].shape[1]
        self._buffer_sizes = units, groups, int(layout.symbols.max())
        shape = (len(candidates), len(present), candidates.shape[1])
        self._state = (np.zeros((*shape, units), np.int32), np.zeros(shape, np.float32))
        window = window or (0, 0, *layout.grids[0].tolist())
        height, width = layout.grids[0] + 2 * FRAME

        def compute_state(begin: int, end: int) -> None:
            work = (
                np.empty((groups, height, width), np.int32),
                np.empty(features, np.int64),
                np.empty(units, np.int32),
                np.empty(self._buffer_sizes[2], np.int64),
            )
            _compute_state(self.codes, begin, end, window, *self._arguments, self._state, work)

        in_parts(len(candidates), compute_state)

    @property
    def codes(self) -> CodeArray:
        """The chosen codes (N, codes of all levels), level after level."""
        return self._codes.reshape(len(self._codes), -1)

    @property
    def bits(self) -> NDArray[np.float64]:
        """Bits of the chosen codes of each image (N,), without levels that have no network."""
        if self._state is None:
            return np.zeros(len(self.codes))
        bits: NDArray[np.float64] = self._state[1].sum((1, 2), dtype=np.float64)
        return bits

    @property
    def leaves(self) -> CodeArray:
        """The index of the chosen leaf of each position (N, P)."""
        return np.take_along_axis(self._candidates, self.chosen[:, :, None], 2)[:, :, 0]

    def update(
        self, positions: Integers, errors: Floats, lmbdas: NDArray[np.floating[Any]]
    ) -> None:
        """Choose the best candidates of P' positions (ascending), by errors (N, P', K) and lambdas
        (N,).
        """
        if self._state is None:  # by error alone; the current candidate wins a tie
            current = self.chosen[:, positions]
            least = errors.argmin(-1)
            better = np.take_along_axis(errors, least[..., None], 2) < np.take_along_axis(
                errors, current[..., None], 2
            )
            self.chosen[:, positions] = np.where(better[..., 0], least, current)
            self._codes[:, :, positions] = self._leaves[self.leaves[:, positions]].transpose(
                0, 2, 1
            )
            return
        width = int(self._layout.grids[0, 1])
        count = self._candidates.shape[2]
        ends = np.searchsorted(
            positions,
            width * np.arange(0, self.chosen.shape[1] // width + _STRIP_ROWS, _STRIP_ROWS),
        )
        strips = np.stack([ends[:-1], ends[1:]], 1)
        leaves = np.ascontiguousarray(self._leaves.T)
        lmbdas = lmbdas.astype(np.float32)
        units, groups, symbols = self._buffer_sizes

        def update_units(begin: int, end: int) -> None:
            sums, before, after = np.empty(units, np.int32), *np.empty((2, groups), np.int64)
            frequencies = np.empty((count, symbols), np.int64)
            totals = np.empty(count, np.int64)
            work = (
                *np.empty((2, count), np.float64),
                (sums, before, after, np.empty(symbols, np.int64)),
                (sums, before, frequencies, totals),
            )
            _update(
                begin,
                end,
                half,
                positions,
                self._codes,
                self._candidates,
                leaves,
                errors,
                self.chosen,
                lmbdas,
                np.array(_MARGINS),
                *self._arguments,
                self._state,
                work,
            )

        for half in (
            strips[::2].copy(),
            strips[1::2].copy(),
        ):  # the strips of one half are independent of each other
            in_parts(len(self.codes) * len(half), update_units)
