"""Choose codes per position among a few options, by error and bits.

A code costs bits, and as a context it changes the bits of the codes around. Positions are visited
one after the other. With all other codes fixed, a position takes the option with the least

    error + lmbda * bits of all codes of the image

or keeps its codes. Hence the sum over an image never grows (iterated conditional modes: Besag
1986). All levels lie on one grid.

The state holds, per image, network and position, the hidden units before the ReLU and the bits of
the code. To compute the bits of the codes around takes most of the time. So options are tried in
the order of error + lmbda * their own bits. The bits around are added in two stages, and an option
that is too far above the best is dropped before a stage. Threads work on strips of rows: first on
every other strip, then on the strips between. A change reaches less far than a strip, so the choice
does not depend on the number of threads.

Shapes: N images, P positions, K options, L levels; M networks, H hidden units of the largest.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.levels import (
    Layout,
    compute_frequencies,
    compute_hidden,
    fill_maps,
    kernel_arguments,
)
from hrvqvae.compression.network import EntropyNetwork
from hrvqvae.utils.compiled import compiled, in_parts, inlined

Integers = NDArray[np.int64]
CodeArray = NDArray[np.int32]
Floats = NDArray[np.float32]

_STAGES = (1, 9, 1 << 30)  # the first stage takes the nearest offsets, 1 to 8, the second the rest
_MARGINS = (4.0, 2.0)  # bits above the best at which an option is dropped before each stage
_STRIP_ROWS = 32  # per strip; the largest offset reaches 4 rows
# numba compiles once more for Python literals
_FIRST = np.int64(0)  # offset 0 is the position itself
_AROUND = np.int64(1)
_ESTIMATE = np.False_
_APPLY = np.True_

# columns of `_Networks.numbers`
_LEVEL, _SYMBOLS, _SHIFT, _SELECTING, _OFFSETS = range(5)


class _Networks(NamedTuple):
    """The arrays of all networks, each padded to the largest (M, ...)."""

    numbers: Integers  # the level, its symbols, the shift, the selecting group, offsets
    table: Any
    weights: Any
    biases_out: Any  # `EntropyNetwork.offsets`
    groups: Integers
    features: Integers  # group, dy, dx, first table row; sorted by distance
    firsts: Integers  # the first feature of each offset in `around`, then the number of features
    around: Integers  # the offsets (dy, dx), nearest first; the first is the position itself


def _stack(networks: Sequence[EntropyNetwork]) -> _Networks:
    of_networks = []
    for network in networks:
        contexts = network.contexts
        table, _, weights, biases_out, groups, features, selecting, shift = network.arrays

        # the distinct offsets of the features, nearest first; the features are sorted likewise
        offsets = sorted(
            {(0, 0), *((dy, dx) for _, dy, dx in contexts.features)},
            key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
        )
        ranks = [offsets.index((dy, dx)) for _, dy, dx in contexts.features]
        numbers = [contexts.level, contexts.symbols[-1], shift, selecting, len(offsets)]
        of_networks.append(
            (
                np.array(numbers, np.int64),
                table,
                weights,
                biases_out,
                groups,
                features[np.argsort(ranks, kind="stable")],
                np.searchsorted(np.sort(ranks), range(len(offsets) + 1)),
                np.array(offsets, np.int64),
            )
        )
    stacks = []
    for arrays in zip(*of_networks, strict=True):
        shape = np.max([array.shape for array in arrays], 0)
        stack = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for index, array in enumerate(arrays):
            stack[index][tuple(map(slice, array.shape))] = array
        stacks.append(stack)
    return _Networks(*stacks)


@inlined
def _compute_value(codes: CodeArray, position: int, group: Integers, symbols: Integers) -> int:
    """Return the value of a group at a position, from codes (L, P)."""
    value = 0
    for level in range(group[0], group[1] + 1):
        value = value * symbols[level] + codes[level, position]
    return value


@inlined
def _count_bits(
    codes: CodeArray,
    position: int,
    symbols: Integers,
    networks: Any,
    network: int,
    hidden: Any,
    frequencies: Integers,
) -> float:
    """Return the bits of a network's code at a position of codes (L, P). `hidden`, before the ReLU,
    is overwritten.
    """
    level, num_symbols, shift, selecting = networks.numbers[network, :4]
    weight_set = 0
    if selecting >= 0:
        group = networks.groups[network, selecting]
        weight_set = _compute_value(codes, position, group, symbols)
    total = compute_frequencies(
        hidden,
        weight_set,
        networks.weights[network],
        networks.biases_out[network],
        shift,
        frequencies,
        num_symbols,
    )
    return math.log2(total / frequencies[codes[level, position]])


@compiled()
def _compute_state(
    images: CodeArray,
    begin: int,
    end: int,
    level: int,
    layout: Any,
    network: Any,
    work: Any,
    sums: Any,
    bits: Any,
) -> int:
    """Write the sums and bits of one network for images[begin:end] (N, codes of all levels). See
    `levels.py` for the arguments.
    """
    begins, grids, symbols = layout
    _, _, weights, offsets, groups, _, _, shift = network
    _, maps, _, hidden, frequencies = work
    width = grids[level, 1]
    for image in range(begin, end):
        codes = images[image, begins[level] :]
        fill_maps(images, image, begins, grids, symbols, groups, level + 1, maps)
        for position in range(grids[level, 0] * width):
            y = position // width
            x = position % width
            weight_set = compute_hidden(level, layout, network, work, y, x)
            for h in range(len(hidden)):
                sums[image, position, h] = hidden[h]
            total = compute_frequencies(
                hidden, weight_set, weights, offsets, shift, frequencies, symbols[level]
            )
            bits[image, position] = math.log2(total / frequencies[codes[position]])
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
    grid: Any,
    symbols: Integers,
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
    hidden, frequencies, before, after, _ = work
    height, width = grid
    growth = 0.0

    # networks of levels that are coarser than the first change keep their bits
    changed_level = 0
    while codes[changed_level, position] == options[changed_level, option] and (
        changed_level < len(codes) - 1
    ):
        changed_level += 1
    for network in range(len(networks.numbers)):
        if networks.numbers[network, _LEVEL] < changed_level:
            continue
        table = networks.table[network]
        for group in range(len(before)):
            levels = networks.groups[network, group]
            before[group] = _compute_value(codes, position, levels, symbols)
            after[group] = _compute_value(options, option, levels, symbols)
        for offset in range(begin, min(end, networks.numbers[network, _OFFSETS])):
            # the position that sees this one at the offset
            y = position // width - networks.around[network, offset, 0]
            x = position % width - networks.around[network, offset, 1]
            if not (0 <= y < height and 0 <= x < width):
                continue
            affected = y * width + x
            changed = affected == position
            for h in range(len(hidden)):
                hidden[h] = sums[network, affected, h]
            for feature in range(
                networks.firsts[network, offset], networks.firsts[network, offset + 1]
            ):
                group = networks.features[network, feature, 0]
                if before[group] != after[group]:
                    changed = True
                    start = networks.features[network, feature, 3]
                    for h in range(len(hidden)):
                        hidden[h] += np.int32(table[start + after[group], h])
                        hidden[h] -= np.int32(table[start + before[group], h])
            if not changed:
                continue
            if apply:
                for h in range(len(hidden)):
                    sums[network, affected, h] = hidden[h]
            source = options if affected == position else codes
            index = option if affected == position else affected
            new_bits = _count_bits(source, index, symbols, networks, network, hidden, frequencies)
            growth += new_bits - bits[network, affected]
            if apply:
                bits[network, affected] = new_bits
    if apply:
        for level in range(len(codes)):
            codes[level, position] = options[level, option]
    return growth


@compiled()
def _update(
    begin_unit: int,
    end_unit: int,
    strips: Integers,
    positions: Integers,
    images: CodeArray,
    all_options: CodeArray,
    changes: Floats,
    lmbdas: Floats,
    margins: Any,
    grid: Any,
    symbols: Integers,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Give positions their best options. Unit i is strip i % S of image i // S.

    `strips` (S, 2) are ranges of indices into `positions`; `images` are codes (N, L, P).
    """
    sums, bits = state
    costs = work[4]
    for unit in range(begin_unit, end_unit):
        image = unit // len(strips)
        strip = unit % len(strips)
        lmbda = lmbdas[image]
        image_state = (grid, symbols, networks, sums[image], bits[image], work)
        for index in range(strips[strip, 0], strips[strip, 1]):
            position = positions[index]
            options = all_options[image, index]

            # an option that can't come within the first margin is not evaluated: it saves at most
            # the bits of the position's codes
            most_bits = margins[0]
            for network in range(len(networks.numbers)):
                most_bits += bits[image, network, position]
            for option in range(len(costs)):
                costs[option] = changes[image, index, option]
                if costs[option] < lmbda * most_bits:
                    costs[option] += lmbda * _evaluate_option(
                        position,
                        options,
                        option,
                        _FIRST,
                        _AROUND,
                        _ESTIMATE,
                        images[image],
                        *image_state,
                    )

            # try the options in the order of their costs without the codes around
            best = -1
            least = 0.0
            for _ in range(len(costs)):
                option = int(np.argmin(costs))
                cost = costs[option]
                costs[option] = np.inf
                for stage in range(len(margins)):
                    if cost < least + lmbda * margins[stage]:
                        cost += lmbda * _evaluate_option(
                            position,
                            options,
                            option,
                            _STAGES[stage],
                            _STAGES[stage + 1],
                            _ESTIMATE,
                            images[image],
                            *image_state,
                        )
                if cost < least:
                    best = option
                    least = cost
            if best >= 0:
                _evaluate_option(
                    position,
                    options,
                    best,
                    _FIRST,
                    _STAGES[len(margins)],
                    _APPLY,
                    images[image],
                    *image_state,
                )
    return end_unit - begin_unit


class Choice:
    """The codes of images (N, L, P), and their bits."""

    def __init__(
        self, layout: Layout, networks: Sequence[EntropyNetwork], codes: CodeArray
    ) -> None:
        """Compute the state of the codes (N, L, P), which `update` changes in place.

        Args:
            layout: Grids of the levels, all of one size.
            networks: At most one per level, coarse first.
            codes: Contiguous.
        """
        self.codes = codes
        self._grid = tuple(layout.grids[0].tolist())
        self._networks = _stack(networks)
        self._symbols = layout.symbols
        shape = (len(codes), len(networks), codes.shape[2])
        units = self._networks.table.shape[2]
        self._state = (np.zeros((*shape, units), np.int32), np.zeros(shape, np.float32))
        images = codes.reshape(len(codes), -1)
        for index, network in enumerate(networks):
            level = network.contexts.level
            parts = [array[:, index] for array in self._state]

            def compute_state(begin: int, end: int) -> None:
                arguments = kernel_arguments(layout, level, network)  # noqa: B023
                _compute_state(images, begin, end, *arguments, *parts)  # noqa: B023

            in_parts(len(codes), compute_state)

    def _arguments(self, num_options: int) -> tuple[Any, ...]:
        """Return the last arguments of `_update`, with the buffers of a thread: hidden units,
        frequencies, values of groups before and after, and costs.
        """
        groups = self._networks.groups.shape[1]
        work = (
            np.empty(self._state[0].shape[-1], np.int32),
            np.empty(self._symbols.max(), np.int64),
            np.empty(groups, np.int64),
            np.empty(groups, np.int64),
            np.empty(num_options, np.float64),
        )
        return self._grid, self._symbols, self._networks, self._state, work

    @property
    def bits(self) -> NDArray[np.float64]:
        """Bits of the codes of each image (N,)."""
        return self._state[1].sum((1, 2), dtype=np.float64)

    def update(
        self, positions: Integers, options: CodeArray, changes: Floats, lmbdas: Floats
    ) -> None:
        """Choose the best options of P' positions (ascending).

        Args:
            positions: (P',) indices of positions.
            options: (N, P', L, K) codes of all levels.
            changes: (N, P', K) change of the error with each option.
            lmbdas: (N,) weight of a bit.
        """
        # the positions of each strip of rows, as a range of indices
        height, width = self._grid
        edges = width * np.arange(0, height + _STRIP_ROWS, _STRIP_ROWS)
        ends = np.searchsorted(positions, edges)
        strips = np.stack([ends[:-1], ends[1:]], 1)
        inputs = (positions, self.codes, options, changes, lmbdas, np.array(_MARGINS))

        # the strips of one half are independent of each other
        for half in (strips[::2].copy(), strips[1::2].copy()):

            def update_units(begin: int, end: int, half: Integers = half) -> None:
                _update(begin, end, half, *inputs, *self._arguments(options.shape[3]))

            in_parts(len(self.codes) * len(half), update_units)
