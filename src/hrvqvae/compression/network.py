"""The model of one level in integers: rows of a table are added up, and give the frequency of every symbol.

    hidden[h] = max(0, bias[h] + sum over the features f of table[row of f][h])
    score[k]  = offsets[s][k] + sum over h of weights[s][k][h] * hidden[h]            (s: the set that is selected)
    t[k]      = (max of score - score[k]) >> shift                                    (in 64ths of an octave)
    frequency[k] = 1 + floor(2^16 * 2^(-t[k] / 64)), by a table of 64 powers

Nothing here is a float, and no sum leaves 32 bits: `Network` checks that when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.contexts import Contexts
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import DamagedFileError

Integers = NDArray[np.int64]

STEPS = 64  # of a score, in which it falls by an octave
TOP = 16  # bits of the largest frequency
POWERS: Integers = np.array([round(2 ** (TOP - step / STEPS)) for step in range(STEPS)], np.int64)
_LARGEST = 2**31 - 1
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


@dataclass(frozen=True)
class Network:
    """The model of one level.

    Attributes:
        contexts: what it looks at.
        table: (rows, hidden) int8.
        bias: (hidden,) int32.
        weights: (sets, symbols, hidden) int16.
        offsets: (sets, symbols) int32.
        shift: bits of a score below a 64th of an octave.
    """

    contexts: Contexts
    table: NDArray[np.int8]
    bias: NDArray[np.int32]
    weights: NDArray[np.int16]
    offsets: NDArray[np.int32]
    shift: int

    def __post_init__(self) -> None:
        """Raises DamagedFileError where shapes are not those of the contexts, or a sum could leave 32 bits."""
        contexts, hidden = self.contexts, len(self.bias)
        symbols = contexts.symbols[-1]
        shapes = (self.table.shape, self.weights.shape, self.offsets.shape)
        if shapes != ((contexts.rows, hidden), (contexts.sets, symbols, hidden), (contexts.sets, symbols)):
            raise DamagedFileError(f"the model of level {contexts.level + 1} has not the shape of its contexts")
        if not 0 <= self.shift < 31 or largest_score(self) > _LARGEST // 2:
            raise DamagedFileError(f"scores of level {contexts.level + 1} do not fit 32 bits")


def largest_score(network: Network) -> int:
    """What the absolute value of a score, or of a sum on the way to it, can't exceed."""
    starts = [*network.contexts.starts, network.contexts.rows]
    parts = [np.abs(network.table[a:b].astype(np.int64)).max(0) for a, b in pairwise(starts)]
    hidden = np.abs(network.bias.astype(np.int64)) + np.sum(parts, axis=0)
    sums = np.abs(network.offsets.astype(np.int64)) + np.abs(network.weights.astype(np.int64)) @ hidden
    return max(int(hidden.max(initial=0)), int(sums.max(initial=0)))


@compiled(**_OPTIONS)
def find_frequencies(
    rows: Integers, chosen: int, table: Any, bias: Any, weights: Any, offsets: Any, shift: int, hidden: Any,
    frequencies: Integers,
) -> int:  # fmt: skip
    """Write the frequency of every symbol; -> their sum.

    Args:
        rows: of the table, one for each feature.
        chosen: the set of output weights.
        hidden: (hidden,) int32, overwritten.
        frequencies: (symbols,), written to.
    """
    for h in range(len(bias)):
        hidden[h] = bias[h]
    for row in rows:
        for h in range(len(bias)):
            hidden[h] += np.int32(table[row, h])
    total: int = frequencies_of(hidden, chosen, weights, offsets, shift, frequencies)
    return total


@compiled(inline="always", **_OPTIONS)  # a call would cost a twentieth of a code's time
def frequencies_of(hidden: Any, chosen: int, weights: Any, offsets: Any, shift: int, frequencies: Integers) -> int:
    """As `find_frequencies`, from the sums of bias and rows, which are overwritten with what the ReLU leaves."""
    size, symbols = len(hidden), len(frequencies)
    for h in range(size):
        hidden[h] = max(hidden[h], np.int32(0))
    best = np.int64(-(2**31))
    for k in range(symbols):
        score = np.int32(offsets[chosen, k])
        for h in range(size):
            score += np.int32(weights[chosen, k, h]) * hidden[h]
        frequencies[k] = score
        best = max(best, np.int64(score))
    total = 0
    for k in range(symbols):
        below = (best - frequencies[k]) >> shift
        octaves = below // STEPS
        frequencies[k] = 1 + ((POWERS[below % STEPS] >> octaves) if octaves <= TOP else 0)
        total += frequencies[k]
    return total
