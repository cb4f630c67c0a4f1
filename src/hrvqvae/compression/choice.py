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

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.levels import Layout, compute_frequencies
from hrvqvae.compression.network import ZONES, EntropyNetwork
from hrvqvae.utils.compiled import compiled, in_parts

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
_LEVEL, _SYMBOLS, _SHIFT, _SELECTING, _OFFSETS, _ZONE_ROW = range(6)


class _Networks(NamedTuple):
    """The arrays of all networks, each padded to the largest (M, ...)."""

    numbers: Integers  # the level, its symbols, the shift, the selecting group, offsets, zone row
    table: Any
    bias: Any
    weights: Any
    biases_out: Any  # `EntropyNetwork.offsets`
    groups: Integers
    features: Integers  # group, dy, dx, first table row; sorted by distance
    firsts: Integers  # the first feature of each distinct offset (dy, dx), then their number
    around: Integers  # the offsets (dy, dx), nearest first; the first is the position itself


def _stack(networks: Sequence[EntropyNetwork]) -> _Networks:
    of_networks = []
    for network in networks:
        contexts = network.contexts
        table, bias, weights, biases_out, groups, features, selecting, shift = network.arrays
        offsets = sorted(
            {(0, 0), *((dy, dx) for _, dy, dx in contexts.features)},
            key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
        )
        ranks = [offsets.index((dy, dx)) for _, dy, dx in contexts.features]
        numbers = (
            contexts.level,
            contexts.symbols[-1],
            shift,
            selecting,
            len(offsets),
            contexts.first_rows[-1],
        )
        of_networks.append(
            (
                np.array(numbers, np.int64),
                table,
                bias,
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


@compiled(inline="always")
def _compute_value(codes: CodeArray, position: int, group: Integers, symbols: Integers) -> int:
    """Return the value of a group at a position, from codes (L, P)."""
    value = 0
    for level in range(group[0], group[1] + 1):
        value = value * symbols[level] + codes[level, position]
    return value


@compiled(inline="always")
def _count_bits(
    codes: CodeArray,
    position: int,
    symbols: Integers,
    networks: Any,
    network: int,
    hidden: Any,
    frequencies: Integers,
) -> float:
    """Return the bits of a code of codes (L, P), and spoil `hidden`, the units before the ReLU."""
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
    begin: int,
    end: int,
    images: CodeArray,
    window: Any,
    grid: Any,
    symbols: Integers,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Write the state of images[begin:end], codes (N, L, P); see `Choice` for `window`."""
    hidden, frequencies = work
    height, width = grid
    top, left, rows, columns = window
    for image in range(begin, end):
        codes = images[image]
        for network in range(len(networks.numbers)):
            table = networks.table[network]
            for position in range(height * width):
                y = position // width
                x = position % width
                zone = (y + top) * ZONES // rows * ZONES + (x + left) * ZONES // columns
                row = networks.numbers[network, _ZONE_ROW] + zone
                for h in range(len(hidden)):
                    hidden[h] = networks.bias[network, h] + np.int32(table[row, h])
                num_offsets = networks.numbers[network, _OFFSETS]
                for feature in range(networks.firsts[network, num_offsets]):
                    group, dy, dx, row = networks.features[network, feature]
                    levels = networks.groups[network, group]
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        neighbour = position + dy * width + dx
                        row += _compute_value(codes, neighbour, levels, symbols)
                    else:
                        outside = 1
                        for level in range(levels[0], levels[1] + 1):
                            outside *= symbols[level]
                        row += outside
                    for h in range(len(hidden)):
                        hidden[h] += np.int32(table[row, h])
                for h in range(len(hidden)):
                    state[0][image, network, position, h] = hidden[h]
                state[1][image, network, position] = _count_bits(
                    codes, position, symbols, networks, network, hidden, frequencies
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
    for network in range(len(networks.numbers)):
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
    errors: Floats,
    lmbdas: Floats,
    margins: Any,
    grid: Any,
    symbols: Integers,
    networks: Any,
    state: Any,
    work: Any,
) -> int:
    """Give positions their best options. Unit i of the work is strip i % S of image i // S.

    `strips` (S, 2) are ranges of indices into `positions`; `images` are codes (N, L, P).
    """
    costs = work[4]
    for unit in range(begin_unit, end_unit):
        image = unit // len(strips)
        strip = unit % len(strips)
        lmbda = lmbdas[image]
        image_state = (grid, symbols, networks, state[0][image], state[1][image], work)
        for index in range(strips[strip, 0], strips[strip, 1]):
            position = positions[index]
            options = all_options[image, index]
            for option in range(len(costs)):
                own_bits = _evaluate_option(
                    position,
                    options,
                    option,
                    _FIRST,
                    _AROUND,
                    _ESTIMATE,
                    images[image],
                    *image_state,
                )
                costs[option] = errors[image, index, option] + lmbda * own_bits

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
        self._grid = tuple(layout.grids[0].tolist())
        self._networks = _stack(networks)
        self._symbols = layout.symbols
        shape = (len(codes), len(networks), codes.shape[2])
        units = self._networks.bias.shape[1]
        self._state = (np.zeros((*shape, units), np.int32), np.zeros(shape, np.float32))
        window = window or (0, 0, *self._grid)

        def compute_state(begin: int, end: int) -> None:
            _compute_state(begin, end, codes, window, *self._arguments(), self._buffers()[:2])

        in_parts(len(codes), compute_state)

    def _arguments(self) -> tuple[Any, ...]:
        return self._grid, self._symbols, self._networks, self._state

    def _buffers(self, count: int = 0) -> tuple[NDArray[Any], ...]:
        """Return a thread's hidden units, frequencies, values of groups before and after, and costs
        of `count` options.
        """
        groups = self._networks.groups.shape[1]
        return (
            np.empty(self._state[0].shape[-1], np.int32),
            np.empty(self._symbols.max(), np.int64),
            np.empty(groups, np.int64),
            np.empty(groups, np.int64),
            np.empty(count, np.float64),
        )

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
        # the positions of each strip of rows, as a range of indices
        height, width = self._grid
        edges = width * np.arange(0, height + _STRIP_ROWS, _STRIP_ROWS)
        ends = np.searchsorted(positions, edges)
        strips = np.stack([ends[:-1], ends[1:]], 1)
        work = (positions, self.codes, options, errors, lmbdas, np.array(_MARGINS))

        # the strips of one half are independent of each other
        for half in (strips[::2].copy(), strips[1::2].copy()):

            def update_units(begin: int, end: int, half: Integers = half) -> None:
                _update(
                    begin, end, half, *work, *self._arguments(), self._buffers(options.shape[3])
                )

            in_parts(len(self.codes) * len(half), update_units)
