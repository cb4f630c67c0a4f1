"""Fit an entropy model: train a float network per level on the codes of images, then round the
network to integers.

Training is gradient descent on the bits, with one update per code. Each feature of a code uses one
row of the table (network.py), so one update per batch would learn far less. Equal codes give equal
networks: the seed is fixed, and one thread trains.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import MOST_SYMBOLS, EntropyModel
from hrvqvae.compression.levels import Layout, compute_scores, fill_maps, find_rows, is_coded
from hrvqvae.compression.network import (
    FRAME,
    STEPS_PER_OCTAVE,
    Contexts,
    EntropyNetwork,
    usual_contexts,
    usual_stop_contexts,
)
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Parameters = tuple[Floats, Floats, Floats, Floats]
"""Table, bias, weights and offsets as floats, with scores in nats."""

_POSITIONS_PER_IMAGE = 64  # that are visited before the next image is drawn
_HIDDEN = ((2048, 64), (8192, 48), (math.inf, 32))  # (largest number of table rows, hidden units)
_HIDDEN_OF_FLAGS = 16
# learning rate at the start and at the end, with exponential decay between them
_FIRST_RATE = 0.02
_LAST_RATE = 0.0002
# the table and the weights become integers of at most these magnitudes; with 127 in the table,
# files of codes are 0.05% smaller, and the file of the networks is 60% larger
_LARGEST_ENTRY = 31
_LARGEST_WEIGHT = 127
_LARGEST_SCORE = 1 << 29  # half of what `EntropyNetwork` admits, since rounding adds to it
_LARGEST_SHIFT = 24
_EVALUATIONS = 8  # on the held-out images; the best state is kept
_MOST_HELD_OUT = 1000
_MULTIPLY_ADDS = 1e11  # budget per level
_LEAST_UPDATES = 4_000_000  # even if they take more than the budget
_MOST_PASSES = 12  # over all codes; limits the updates of small data sets


@compiled(fastmath=True)
def _train(
    codes: Any,
    qualities: Integers,
    order: Integers,
    positions: Integers,
    level: int,
    layout: Any,
    contexts: Any,
    is_flag: bool,
    maps: Any,
    parameters: Any,
    rate: float,
    decay: float,
) -> float:
    """Train `parameters` in place, and return the bits of the visited codes before their updates.

    Args:
        codes: (N, codes of all levels).
        qualities: (N,), of the files.
        order: The images that are visited, in order.
        positions: (len(order), n) positions that are visited in each of them.
        level: The level whose codes or flags are predicted.
        layout: `Layout.arrays`.
        contexts: `Contexts.arrays`.
        is_flag: Whether flags are predicted (levels.py).
        maps: A buffer.
        parameters: The network.
        rate: The first learning rate; with 0 nothing is updated.
        decay: The last learning rate is `rate * decay`.
    """
    begins, grids, _ = layout
    groups, features, selecting = contexts
    table, bias, weights, offsets = parameters
    num_hidden = len(bias)
    num_symbols = len(offsets[0])
    width = grids[level, 1]
    num_positions = grids[level, 0] * width
    rows = np.empty(len(features), np.int64)
    hidden = np.empty(num_hidden, np.float32)
    gradient = np.empty(num_hidden, np.float32)
    scores = np.empty(num_symbols, np.float32)
    nats = 0.0
    for index in range(len(order)):
        row_codes = codes[order[index]]
        # The maps include the codes of the level itself. Its features see earlier positions only.
        fill_maps(row_codes, layout, groups, level + 1, qualities[order[index]], maps)
        step_size = np.float32(rate * decay ** (index / len(order)))
        for position in positions[index]:
            y = position // width
            x = position % width
            place = begins[level] + position
            if not is_coded(row_codes, place, num_positions, is_flag):
                continue
            code = row_codes[place]
            if is_flag:
                code = 1 if code < 0 else 0
            weight_set = find_rows(maps, groups, grids, level, features, selecting, y, x, rows)
            compute_scores(rows, weight_set, parameters, hidden, scores)
            largest = scores[0]
            for score in scores:
                largest = max(largest, score)
            total = np.float32(0)  # from here on, scores are exp(score - largest)
            for k in range(num_symbols):
                scores[k] = math.exp(scores[k] - largest)
                total += scores[k]
            nats -= math.log(scores[code] / total)
            if step_size == 0:
                continue
            for h in range(num_hidden):
                gradient[h] = 0
            for k in range(num_symbols):
                error = scores[k] / total - np.float32(1 if k == code else 0)
                step = step_size * error
                offsets[weight_set, k] -= step
                for h in range(num_hidden):
                    gradient[h] += error * weights[weight_set, k, h]
                    weights[weight_set, k, h] -= step * hidden[h]
            for h in range(num_hidden):
                if hidden[h] <= 0:
                    gradient[h] = 0
                bias[h] -= step_size * gradient[h]
            for row in rows:
                for h in range(num_hidden):
                    table[row, h] -= step_size * gradient[h]
    return nats / math.log(2.0)


def _round_parameters(parameters: Parameters, contexts: Contexts) -> EntropyNetwork:
    """Return the network in integers. Each hidden unit is scaled up, and its output weights are
    scaled down.
    """
    table, bias, weights, offsets = parameters
    scale = _LARGEST_ENTRY / np.maximum(np.abs(table).max(0), 1e-6).astype(np.float64)
    rounded_bias = np.rint(bias * scale).astype(np.int32)
    steps_per_nat = STEPS_PER_OCTAVE / math.log(2)
    scaled_weights = weights / scale * steps_per_nat
    scaled_offsets = offsets.astype(np.float64) * steps_per_nat

    # the largest shift with which scores fit 32 bits and weights stay within their limit; without a
    # shift weights may be larger, since 16 bits hold them
    num_rows = len(contexts.features) + 1  # that a code adds: a row per feature, and its zone's
    largest_hidden = np.abs(rounded_bias) + float(_LARGEST_ENTRY) * num_rows
    largest_score = (np.abs(scaled_weights) @ largest_hidden + np.abs(scaled_offsets)).max() + 1.0
    weight_shift = max(0, math.floor(math.log2(_LARGEST_WEIGHT / np.abs(scaled_weights).max())))
    score_shift = math.floor(math.log2(_LARGEST_SCORE / largest_score))
    shift = min(_LARGEST_SHIFT, score_shift, weight_shift)
    return EntropyNetwork(
        contexts,
        np.rint(table * scale).astype(np.int8),
        rounded_bias,
        np.rint(scaled_weights * 2.0**shift).astype(np.int16),
        np.rint(scaled_offsets * 2.0**shift).astype(np.int32),
        shift,
    )


def learn_level(
    levels: Sequence[NDArray[Any]],
    symbols: Sequence[int],
    duration: float = 1.0,
    copies: int = 1,
    qualities: Integers | None = None,
) -> tuple[EntropyNetwork, float]:
    """Fit the network of the finest of several levels: of its codes, or of its flags.

    A twentieth of the images, at most 1,000, is held out. Of all evaluated states the one with the
    fewest bits on held-out images is kept.

    Args:
        levels: codes (N, H_l, W_l) of the level and of all coarser ones, coarse first.
        symbols: values per code of each of these levels.
        duration: multiplies the number of updates.
        copies: variants per image, for example mirrored: all images in the first variant, then all
            in the next. A held-out image is evaluated in its first variant, and none of its
            variants is trained on.
        qualities: of each image's file (N,), to fit the network of the flags; codes are -1 where a
            position has stopped.

    Returns the network, and the bits per position of held-out images before rounding.
    """
    level = len(levels) - 1
    num_images = len(levels[0]) // copies
    if num_images < 2:
        raise InputError(f"an entropy model is fitted to at least 2 images; there are {num_images}")
    grids = [(level_codes.shape[1], level_codes.shape[2]) for level_codes in levels]
    is_flag = qualities is not None
    find_contexts = usual_stop_contexts if is_flag else usual_contexts
    contexts = find_contexts(level, symbols, grids)
    if qualities is None:
        qualities = np.zeros(num_images * copies, np.int64)
    layout = Layout(grids, symbols)
    flat = [level_codes.reshape(num_images * copies, -1) for level_codes in levels]
    codes = np.concatenate(flat, 1).astype(np.min_scalar_type(-max(symbols)))

    # with small random numbers, all symbols are about equally likely
    rng = np.random.default_rng([0, level])
    hidden = next(units for rows, units in _HIDDEN if contexts.rows <= rows)
    if is_flag:
        hidden = _HIDDEN_OF_FLAGS
    num_symbols = contexts.num_symbols
    shape = contexts.sets, num_symbols, hidden
    parameters: Parameters = (
        rng.normal(0, 0.02, (contexts.rows, hidden)).astype(np.float32),
        np.full(hidden, 0.1, np.float32),
        rng.normal(0, 0.1, shape).astype(np.float32),
        np.zeros(shape[:2], np.float32),
    )
    sides = layout.grids.max(0) + 2 * FRAME
    maps = np.zeros((len(contexts.groups), *sides), np.int32)
    decay = (_LAST_RATE / _FIRST_RATE) ** (1 / _EVALUATIONS)  # from an evaluation to the next

    def train(order: Integers, positions: Integers, rate: float) -> float:
        arrays = layout.arrays, contexts.arrays, is_flag, maps, parameters
        return float(_train(codes, qualities, order, positions, level, *arrays, rate, decay))

    # held-out images, and the variants of the others
    num_held_out = max(1, min(num_images // 20, _MOST_HELD_OUT))
    shuffled = rng.permutation(num_images)
    held_out = shuffled[:num_held_out]
    others = np.concatenate(
        [shuffled[num_held_out:] + num_images * variant for variant in range(copies)]
    )
    num_positions = grids[level][0] * grids[level][1]
    all_positions = np.tile(np.arange(num_positions), (num_held_out, 1))

    # per hidden unit, each row is added and updated; each symbol takes a score, a gradient and an
    # update of its weight
    visited_positions = min(num_positions, _POSITIONS_PER_IMAGE)
    cost_per_update = hidden * (2 * (len(contexts.features) + 1) + 3 * num_symbols)
    num_updates = duration * min(
        max(_MULTIPLY_ADDS / cost_per_update, _LEAST_UPDATES),
        _MOST_PASSES * num_positions * len(others),
    )
    # images visited before each evaluation
    num_visits = max(1, int(num_updates / visited_positions / _EVALUATIONS))

    # the first network is kept if no state has fewer bits than equally likely symbols
    best = copy.deepcopy(parameters)
    best_bits = math.log2(num_symbols) * all_positions.size
    for evaluation in range(_EVALUATIONS):
        order = others[rng.integers(0, len(others), num_visits)]
        positions = rng.integers(0, num_positions, (num_visits, visited_positions))
        train(order, positions, _FIRST_RATE * decay**evaluation)
        bits = train(held_out, all_positions, 0.0)
        if bits < best_bits:
            best = copy.deepcopy(parameters)
            best_bits = bits
    return _round_parameters(best, contexts), best_bits / all_positions.size


def fit_stops(
    entropy_model: EntropyModel,
    levels: Sequence[NDArray[Any]],
    qualities: Integers,
    duration: float = 1.0,
    say: Callable[[str], None] = print,
) -> EntropyModel:
    """Return an entropy model with networks of flags, fitted to codes (N, H, W) per level that are
    -1 where positions have stopped, and to the quality of each image (N,).
    """
    stops: list[EntropyNetwork | None] = [None]
    for level in range(1, len(levels)):
        known = levels[: level + 1]
        symbols = entropy_model.symbols[: level + 1]
        network, bits = learn_level(known, symbols, duration, qualities=qualities)
        say(f"level {level + 1}: {bits:.3f} bits per position tell where it stops")
        stops.append(network)
    return entropy_model.with_stops(tuple(stops))


def fit(
    bare: EntropyModel,
    levels: Sequence[NDArray[Any]],
    duration: float = 1.0,
    say: Callable[[str], None] = print,
    copies: int = 1,
) -> EntropyModel:
    """Return the entropy model `bare` with networks fitted to codes (N, H_l, W_l) per level.

    `say` is called with a line of text per level; other arguments are as for `learn_level`.
    """
    networks = list[EntropyNetwork | None]()
    for level, count in enumerate(bare.symbols):
        if count > MOST_SYMBOLS:
            say(
                f"level {level + 1} has {count} symbols, more than {MOST_SYMBOLS}: coded in log2"
                f" {count} bits a code"
            )
            networks.append(None)
            continue
        known = levels[: level + 1]
        network, bits = learn_level(known, bare.symbols[: level + 1], duration, copies)
        say(
            f"level {level + 1}: {bits:.3f} bits per code on held-out images; without a network"
            f" {math.log2(count):.3f}"
        )
        networks.append(network)
    return dataclasses.replace(bare, networks=tuple(networks))
