"""Choose codes per position among a few options, by error and bits.

A code costs bits, and as a context it changes the bits of the codes around. Positions are visited
one after the other. With all other codes fixed, a position takes the option with the least

    error + lmbda * bits of all codes of the image

or keeps its codes. Hence the sum over an image never grows (iterated conditional modes: Besag
1986). All levels lie on one grid.

The state holds, per image, network and position, the hidden units before the ReLU and the bits of
the code. To compute the bits of the codes around takes most of the time. So options are tried in
the order of error + lmbda * their own bits, up to a margin above the best. Threads work on strips
of rows: first on every other strip, then on the strips between. A change reaches less far than a
strip, so the choice does not depend on the number of threads.

Shapes: N images, P positions, K options, L levels; M networks, H hidden units of the largest.
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
# bits per stage; an option this far above the best is dropped before the stage
_MARGINS = (4.0, 2.0)
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
def _evaluate_option(
    position: int,
    options: CodeArray,
    option: int,
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
    """Return how many more bits the codes of an image (L, P) take with an option (L, K) of a
    position.

    Only the offsets `begin` to `end - 1` of each network are evaluated. With `apply`, the position
    gets the option and the state is updated; this needs all offsets. Otherwise nothing changes.
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
            after[group] = _compute_value(options, option, groups, group, symbols)
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
            code = options[level, option]
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
            codes[level, position] = options[level, option]
    return growth


@compiled(inline="always")
def _count_own_bits(
    position: int,
    options: CodeArray,
    codes: CodeArray,
    layout: Any,
    networks: Any,
    sums: Any,
    work: Any,
    bits: Any,
) -> None:
    """Write the bits of each option's own codes to `bits` (K,).

    Options with equal coarser codes share their frequencies.
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
    count = options.shape[1]
    bits[:count] = 0.0
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
        for option in range(count):
            # find the first option with the same coarser codes
            twin = 0
            equal = False
            while twin < option and not equal:
                equal = True
                for coarser in range(level):
                    equal = equal and options[coarser, twin] == options[coarser, option]
                twin += 0 if equal else 1
            if twin == option:
                for h in range(num_hidden):
                    new_sums[h] = sums[network, position, h]
                for member in range(all_firsts[network, 1]):  # at the position itself
                    group = features[members[member], 0]
                    start = features[members[member], 3]
                    after = _compute_value(options, option, groups, group, symbols)
                    _replace_row(new_sums, table, start + before[group], start + after, num_hidden)
                weight_set = 0
                if selecting >= 0:
                    weight_set = _compute_value(options, option, groups, selecting, symbols)
                totals[option] = compute_frequencies(
                    new_sums,
                    num_hidden,
                    weight_set,
                    weights,
                    offsets,
                    shift,
                    frequencies[option],
                    num_symbols,
                )
            bits[option] += math.log2(totals[twin] / frequencies[twin, options[level, option]])


@compiled()
def _update(
    begin_unit: int,
    end_unit: int,
    strips: Integers,
    positions: Integers,
    images: CodeArray,
    all_options: CodeArray,
    errors: Floats,
    lmbdas: Floats,
    margins: Any,
    layout: Any,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Give positions their best options. Unit i of the work is strip i % S of image i // S.

    `strips` (S, 2) are ranges of indices into `positions`; `images` are codes (N, L, P).
    """
    costs, bits, option_work, bits_work = work
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
            options = all_options[image, index]
            _count_own_bits(position, options, codes, layout, networks, sums, bits_work, bits)
            own_bits = 0.0
            for network in range(len(image_bits)):
                own_bits += image_bits[network, position]
            for option in range(count):
                costs[option] = errors[image, index, option] + lmbda * (bits[option] - own_bits)

            # try the options in the order of their costs without the codes around
            best = -1
            least = 0.0
            for _ in range(count):
                option = int(np.argmin(costs))
                cost = costs[option]
                costs[option] = np.inf
                if cost >= least + lmbda * margins[0]:
                    break
                for stage in range(len(margins)):
                    if cost < least + lmbda * margins[stage]:
                        cost += lmbda * _evaluate_option(
                            position,
                            options,
                            option,
                            _STAGES[stage],
                            _STAGES[stage + 1],
                            _ESTIMATE,
                            codes,
                            layout,
                            networks,
                            sums,
                            image_bits,
                            option_work,
                        )
                if cost < least:
                    best = option
                    least = cost

            if best >= 0:
                _evaluate_option(
                    position,
                    options,
                    best,
                    _FIRST_OFFSET,
                    _STAGES[2],
                    _APPLY,
                    codes,
                    layout,
                    networks,
                    sums,
                    image_bits,
                    option_work,
                )
    return end_unit - begin_unit


class Choice:
    """The codes of images (N, L, P), and their bits."""

    def __init__(
        self,
        layout: Layout,
        networks: Sequence[EntropyNetwork],
        codes: CodeArray,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Compute the state of the codes (N, L, P), which `update` changes in place.

        Args:
            layout: Grids of the levels, all of one size.
            networks: One per level.
            codes: Contiguous.
            window: For a tile of an image: the tile's first row and column, and the rows and
                columns of the whole grid.
        """
        self.codes = codes
        self._layout = layout
        stacks = _stack_networks(networks)
        self._arguments = layout.arrays, stacks
        units = stacks[2].shape[1]
        groups = stacks[5].shape[1]
        features = stacks[6].shape[1]
        self._buffer_sizes = units, groups, int(layout.symbols.max())
        shape = (len(codes), len(networks), codes.shape[2])
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
            flat_codes = codes.reshape(len(codes), -1)
            _compute_state(flat_codes, begin, end, window, *self._arguments, self._state, work)

        in_parts(len(codes), compute_state)

    @property
    def bits(self) -> NDArray[np.float64]:
        """Bits of the codes of each image (N,)."""
        bits: NDArray[np.float64] = self._state[1].sum((1, 2), dtype=np.float64)
        return bits

    def update(
        self, positions: Integers, options: CodeArray, errors: Floats, lmbdas: Floats
    ) -> None:
        """Choose the best options of P' positions (ascending).

        Args:
            positions: (P',) indices of positions.
            options: (N, P', L, K) codes of all levels.
            errors: (N, P', K) change of the error with each option.
            lmbdas: (N,) weight of a bit.
        """
        width = int(self._layout.grids[0, 1])
        count = options.shape[3]
        num_strips = -(-self.codes.shape[2] // (width * _STRIP_ROWS))
        ends = np.searchsorted(positions, width * _STRIP_ROWS * np.arange(num_strips + 1))
        strips = np.stack([ends[:-1], ends[1:]], 1)
        units, groups, symbols = self._buffer_sizes

        def update_units(begin: int, end: int) -> None:
            sums = np.empty(units, np.int32)
            before = np.empty(groups, np.int64)
            after = np.empty(groups, np.int64)
            frequencies = np.empty((count, symbols), np.int64)
            totals = np.empty(count, np.int64)
            work = (
                np.empty(count, np.float64),
                np.empty(count, np.float64),
                (sums, before, after, np.empty(symbols, np.int64)),
                (sums, before, frequencies, totals),
            )
            _update(
                begin,
                end,
                half,
                positions,
                self.codes,
                options,
                errors,
                lmbdas,
                np.array(_MARGINS),
                *self._arguments,
                self._state,
                work,
            )

        # the strips of one half are independent of each other
        for half in (strips[::2].copy(), strips[1::2].copy()):
            in_parts(len(self.codes) * len(half), update_units)
