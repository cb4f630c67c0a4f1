"""Fit an entropy model: train the network of each level on codes of training images in floats, then round it.

Each code updates the weights that predicted it, down the gradient of its bits. Updates by single codes learn far more
per code than batches do, since a code uses few rows of the table. The result depends on the codes alone.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import MOST_SYMBOLS, EntropyModel
from hrvqvae.compression.kernels import fill_maps, find_rows, find_set, put
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import (
    FRAME,
    STEPS,
    Contexts,
    EntropyNetwork,
    small_contexts,
    usual_contexts,
)
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Parameters = tuple[Floats, Floats, Floats, Floats]
"""Table, bias, weights and offsets of an `EntropyNetwork` in floats, with scores in nats."""

_VISITED = 64  # codes of an image before the next image
_HIDDEN = ((2048, 64), (8192, 48), (math.inf, 32))  # (rows of the table at most, hidden units)
_SMALL_HIDDEN = 16
_RATE, _LAST_RATE = 0.02, 0.0002  # learning rate at the start and at the end, falling exponentially
_LARGEST_ENTRY, _LARGEST_WEIGHT = 31, 127  # after rounding: finer steps save 0.05% of codes, for a file 60% larger
_STATES = 8  # states that are compared on held-out images
_MOST_HELD_OUT = 1000
_WORK, _LEAST_CODES, _PASSES = 1e11, 4_000_000, 12  # multiply-adds; updates at least; passes over all codes at most


@compiled(fastmath=True)
def _learn(
    images: Any, order: Integers, places: Integers, begins: Integers, grids: Integers, symbols: Integers,
    groups: Integers, level: int, features: Integers, selecting: int, maps: Any, table: Floats, bias: Floats,
    weights: Floats, offsets: Floats, rate: float, fading: float,
) -> float:  # fmt: skip
    """Learn from codes of images (N, codes of all levels) and return the bits that they took.

    Args:
        order: images to learn from, at the positions `places` (len(order), V).
        rate: the learning rate, which falls by the factor `fading` on the way; at 0 nothing is learned.
    """
    size, values = len(bias), symbols[level]
    width = grids[level, 1]
    rows = np.empty(len(features), np.int64)
    sums, back = np.empty(size, np.float32), np.empty(size, np.float32)
    scores = np.empty(values, np.float32)
    bits = 0.0
    for turn in range(len(order)):
        image = order[turn]
        fill_maps(images, image, begins, grids, symbols, groups, level, maps)
        for y in range(grids[level, 0]):
            for x in range(width):
                put(maps, groups, level, values, y, x, images[image, begins[level] + y * width + x])
        speed = np.float32(rate * fading ** (turn / len(order)))
        for place in places[turn]:
            y, x = place // width, place % width
            code = images[image, begins[level] + place]
            find_rows(maps, groups, grids, level, features, y, x, rows)
            chosen = find_set(maps, groups, grids, level, selecting, y, x)
            for h in range(size):
                sums[h] = bias[h]
                back[h] = 0
            for row in rows:
                for h in range(size):
                    sums[h] += table[row, h]
            for h in range(size):
                sums[h] = max(sums[h], np.float32(0))
            best = np.float32(-1e30)
            for k in range(values):
                score = offsets[chosen, k]
                for h in range(size):
                    score += weights[chosen, k, h] * sums[h]
                scores[k] = score
                best = max(best, score)
            total = np.float32(0)
            for k in range(values):
                scores[k] = math.exp(scores[k] - best)
                total += scores[k]
            bits -= math.log(scores[code] / total)
            if speed == 0:
                continue
            for k in range(values):
                error = scores[k] / total - np.float32(1 if k == code else 0)
                step = speed * error
                offsets[chosen, k] -= step
                for h in range(size):
                    back[h] += error * weights[chosen, k, h]
                    weights[chosen, k, h] -= step * sums[h]
            for h in range(size):
                if sums[h] <= 0:
                    back[h] = 0
                bias[h] -= speed * back[h]
            for row in rows:
                for h in range(size):
                    table[row, h] -= speed * back[h]
    return bits / math.log(2.0)


def _rounded(parameters: Parameters, contexts: Contexts) -> EntropyNetwork:
    """Return the network in integers. Each hidden unit has its own scale, by which its output weights are divided."""
    table, bias, weights, offsets = parameters
    scale = _LARGEST_ENTRY / np.maximum(np.abs(table).max(0), 1e-6).astype(np.float64)
    whole = np.rint(bias * scale).astype(np.int32)
    unit = STEPS / math.log(2)
    scaled, nats = weights / scale * unit, offsets.astype(np.float64) * unit
    hidden = np.abs(whole) + float(_LARGEST_ENTRY) * (len(contexts.features) + 1)
    largest = float((np.abs(scaled) @ hidden + np.abs(nats)).max()) + 1
    fine = max(0, math.floor(math.log2(_LARGEST_WEIGHT / np.abs(scaled).max())))
    shift = min(24, math.floor(math.log2(2**29 / largest)), fine)
    return EntropyNetwork(
        contexts, np.rint(table * scale).astype(np.int8), whole, np.rint(scaled * 2.0**shift).astype(np.int16),
        np.rint(nats * 2.0**shift).astype(np.int32), shift,
    )  # fmt: skip


def learn_level(
    levels: Sequence[NDArray[Any]], symbols: Sequence[int], effort: float = 1.0, copies: int = 1, small: bool = False
) -> tuple[EntropyNetwork, float]:
    """Fit the network of the finest of several levels.

    A twentieth of the images is held out, at most 1,000. The network is the state that codes them best.

    Args:
        levels: codes (N, H_l, W_l) of the level and of all coarser ones, coarse first.
        symbols: values per code of each level.
        effort: factor of the number of updates.
        copies: how many copies of the images follow one another; only the first copy is held out.
        small: whether to keep the network to a few kilobytes.

    Returns:
        The network, and the bits per code of held-out images.
    """
    level, count = len(levels) - 1, len(levels[0]) // copies
    if count < 2:
        raise InputError(f"an entropy model is fitted to at least 2 images; there are {count}")
    grids = [(level_codes.shape[1], level_codes.shape[2]) for level_codes in levels]
    contexts = small_contexts(level, symbols) if small else usual_contexts(level, symbols, grids)
    layout = Layout.of(grids, symbols[: level + 1])
    kind = np.min_scalar_type(max(symbols))
    images = np.concatenate([level_codes.reshape(count * copies, -1) for level_codes in levels], 1).astype(kind)
    random = np.random.default_rng([0, level])
    hidden = _SMALL_HIDDEN if small else next(units for rows, units in _HIDDEN if contexts.rows <= rows)
    parameters: Parameters = (  # small and random; every symbol is as likely
        random.normal(0, 0.02, (contexts.rows, hidden)).astype(np.float32),
        np.full(hidden, 0.1, np.float32),
        random.normal(0, 0.1, (contexts.sets, symbols[level], hidden)).astype(np.float32),
        np.zeros((contexts.sets, symbols[level]), np.float32),
    )
    features, groups = contexts.feature_array, contexts.group_array
    maps = np.zeros((len(groups), *(side + 2 * FRAME for side in layout.grids.max(0))), np.int32)
    fading = (_LAST_RATE / _RATE) ** (1 / _STATES)

    def learn(order: Integers, places: Integers, rate: float) -> float:
        return float(_learn(
            images, order, places, layout.begins, layout.grids, layout.symbols, groups, level, features,
            contexts.selecting, maps, *parameters, rate, fading,
        ))  # fmt: skip

    held_out, others = np.split(random.permutation(count), [max(1, min(count // 20, _MOST_HELD_OUT))])
    others = np.concatenate([others + count * copy for copy in range(copies)])
    cells = grids[level][0] * grids[level][1]
    everywhere = np.tile(np.arange(cells), (len(held_out), 1))
    visits = min(cells, _VISITED)
    cost = hidden * (2 * len(features) + 3 * symbols[level])
    codes = effort * min(max(_WORK / cost, _LEAST_CODES), _PASSES * cells * len(others))
    turns = max(1, int(codes / visits / _STATES))
    best, best_bits = copy.deepcopy(parameters), math.log2(symbols[level]) * everywhere.size
    for state in range(_STATES):
        order = others[random.integers(0, len(others), turns)]
        places = random.integers(0, cells, (turns, visits))
        learn(order, places, _RATE * fading**state)
        bits = learn(held_out, everywhere, 0.0)
        if bits < best_bits:
            best, best_bits = copy.deepcopy(parameters), bits
    return _rounded(best, contexts), best_bits / everywhere.size


def fit(
    bare: EntropyModel, levels: Sequence[NDArray[Any]], effort: float = 1.0,
    say: Callable[[str], None] = print, copies: int = 1, small: bool = False,
) -> EntropyModel:  # fmt: skip
    """Return the bare entropy model with networks fitted to codes (N, H_l, W_l); `say` gets a line per level."""
    networks = list[EntropyNetwork | None]()
    for level, values in enumerate(bare.symbols):
        if values > MOST_SYMBOLS:
            say(f"level {level + 1} has {values} symbols, more than {MOST_SYMBOLS}: coded in log2 {values} bits a code")
            networks.append(None)
            continue
        network, bits = learn_level(levels[: level + 1], bare.symbols[: level + 1], effort, copies, small)
        say(f"level {level + 1}: {bits:.3f} bits a code on held-out images, of {math.log2(values):.3f}")
        networks.append(network)
    return dataclasses.replace(bare, networks=tuple(networks))
