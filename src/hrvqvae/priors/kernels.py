"""Compiled functions of both cached samplers: products, normalization, attention, and the draw of a
code.

Features are 2-D arrays with one row per image. Each function is called with one signature and
assigns elements in loops, because a second signature or the assignment of a slice takes longer to
compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.utils.compiled import compiled

Floats = NDArray[np.float32]

FAST: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}}
INTERNAL: dict[str, Any] = {
    "no_cpython_wrapper": True
}  # for functions that only compiled functions call
NO_CODE = -1  # the result of `draw` if there is no distribution
FIRST = np.int64(0)  # index of the first row; a literal 0 would compile a second signature
_EPSILON = 1e-5  # torch's default for layer normalization


@compiled(**FAST, **INTERNAL)
def add_product(vector: Floats, matrix: Floats, out: Floats) -> None:
    """Add vector (n,) @ matrix (n, m) to out (m,), four rows of the matrix at a time.

    This takes 10% less time than `add_products` with a single row.
    """
    rows, columns = matrix.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        a = vector[i]
        b = vector[i + 1]
        c = vector[i + 2]
        d = vector[i + 3]
        for j in range(columns):
            out[j] += (
                a * matrix[i, j]
                + b * matrix[i + 1, j]
                + c * matrix[i + 2, j]
                + d * matrix[i + 3, j]
            )
    for i in range(whole, rows):
        a = vector[i]
        for j in range(columns):
            out[j] += a * matrix[i, j]


@compiled(**FAST, **INTERNAL)
def add_products(vectors: Floats, matrix: Floats, out: Floats, begin: int) -> None:
    """Add vectors (R, n) @ matrix (n, m) to out[begin:] (., m), four rows of the matrix at a
    time.
    """
    count, (rows, columns) = len(vectors), matrix.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        for r in range(count):
            a = vectors[r, i]
            b = vectors[r, i + 1]
            c = vectors[r, i + 2]
            d = vectors[r, i + 3]
            for j in range(columns):
                out[begin + r, j] += (
                    a * matrix[i, j]
                    + b * matrix[i + 1, j]
                    + c * matrix[i + 2, j]
                    + d * matrix[i + 3, j]
                )
    for i in range(whole, rows):
        for r in range(count):
            a = vectors[r, i]
            for j in range(columns):
                out[begin + r, j] += a * matrix[i, j]


@compiled(**FAST, inline="always")
def copy_rows(values: Floats, out: Floats) -> None:
    """Write values (m,) to every row of out (R, m)."""
    for r in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[r, j] = values[j]


@compiled(**FAST, inline="always")
def add_rows(values: Floats, out: Floats) -> None:
    """Add values (m,) to every row of out (R, m)."""
    for r in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[r, j] += values[j]


@compiled(**FAST, **INTERNAL)
def normalize(features: Floats, norm: Floats, out: Floats) -> None:
    """Write the layer normalization of each row of features (R, C) to out (R, C); norm (2, C) holds
    weight and bias.
    """
    hidden = features.shape[1]
    for r in range(len(features)):
        mean: Any = np.float32(0.0)
        for c in range(hidden):
            mean += features[r, c]
        mean /= np.float32(hidden)
        variance: Any = np.float32(0.0)
        for c in range(hidden):
            variance += (features[r, c] - mean) * (features[r, c] - mean)
        scale = np.float32(1.0) / np.sqrt(variance / np.float32(hidden) + np.float32(_EPSILON))
        for c in range(hidden):
            out[r, c] = (features[r, c] - mean) * scale * norm[0, c] + norm[1, c]


@compiled(**FAST, **INTERNAL)
def attend(
    projected: Floats,
    row: int,
    position: int,
    heads: int,
    keys: Floats,
    values: Floats,
    attended: Floats,
    scores: Floats,
) -> None:
    """Write the output of attention to attended[row] (C,); `position` attends to positions
    0..position.

    A row of projected (R, 3C) holds query, key and value of `position`, which are added to keys and
    values (C, H * W).
    """
    hidden = attended.shape[1]
    for c in range(hidden):
        keys[c, position] = projected[row, hidden + c]
        values[c, position] = projected[row, 2 * hidden + c]
    width = hidden // heads
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    num_keys = position + 1
    for head in range(heads):
        begin = head * width
        for j in range(num_keys):
            scores[j] = 0.0
        for c in range(begin, begin + width):
            query = projected[row, c] * scale
            for j in range(num_keys):
                scores[j] += query * keys[c, j]
        largest: Any = np.float32(-np.inf)
        for j in range(num_keys):
            largest = max(largest, scores[j])
        total: Any = np.float32(0.0)
        for j in range(num_keys):
            scores[j] = np.exp(scores[j] - largest)
            total += scores[j]
        for c in range(begin, begin + width):
            summed: Any = np.float32(0.0)
            for j in range(num_keys):
                summed += scores[j] * values[c, j]
            attended[row, c] = summed / total


@compiled(**INTERNAL)
def _sort_codes(weights: NDArray[np.float64], count: int, order: NDArray[np.int64]) -> int:
    """Sort the codes 0..count - 1 by descending weight, then by code; return the row of `order`
    that holds them.

    This is a merge sort between the two rows of `order` (2, m), because numba's sort takes 1.5 s to
    compile.
    """
    for k in range(count):
        order[0, k] = k
    row = 0
    length = 1
    while length < count:
        for start in range(0, count, 2 * length):
            left = start
            right = min(start + length, count)
            middle = right
            stop = min(start + 2 * length, count)
            for k in range(start, stop):
                take_left = right == stop
                if left < middle and right < stop:
                    take_left = weights[order[row, left]] >= weights[order[row, right]]
                if take_left:
                    order[1 - row, k] = order[row, left]
                    left += 1
                else:
                    order[1 - row, k] = order[row, right]
                    right += 1
        row = 1 - row
        length = 2 * length
    return row


def allocate_workspace(symbols: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the arrays that `draw` overwrites, for up to `symbols` symbols."""
    return np.empty(symbols, np.float64), np.empty((2, symbols), np.int64)


@compiled()
def draw(
    logits: Floats,
    symbols: int,
    uniform: float,
    temperature: float,
    top_k: int,
    top_p: float,
    work: Any,
) -> int:
    """Return the code at which the cumulative distribution exceeds `uniform`, a draw from [0, 1),
    in float64.

    Temperature, top-k and top-p are as in `sampling.SamplingParams`; of equally likely codes, top-k
    and top-p prefer the smaller. Logits are (symbols,) or longer; `allocate_workspace` returns
    `work`. Return `NO_CODE` if a logit is NaN or +inf, or all logits are -inf.
    """
    weights, order = work
    largest: Any = -np.inf
    for k in range(symbols):
        weights[k] = logits[k] / temperature
        largest = max(largest, weights[k])
    total = 0.0
    for k in range(symbols):
        weights[k] = np.exp(weights[k] - largest)
        total += weights[k]
    if np.isnan(total):
        return NO_CODE
    if 0 < top_k < symbols or top_p < 1:
        row = _sort_codes(weights, symbols, order)
        kept = symbols if top_k == 0 else min(top_k, symbols)
        mass = 0.0
        for rank in range(kept):
            mass += weights[order[row, rank]]
        if top_p < 1:
            reached = 0.0
            rank = 0
            while rank < kept and reached < top_p * mass:
                reached += weights[order[row, rank]]
                rank += 1
            kept = max(rank, 1)
        for rank in range(kept, symbols):
            weights[order[row, rank]] = 0.0
    total = 0.0
    for k in range(symbols):
        total += weights[k]
    target = uniform * total
    below = 0.0
    last = 0
    for k in range(symbols):
        if weights[k] > 0:
            below += weights[k]
            last = k
            if below > target:
                return k
    return last


def stack(tensors: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Floats:
    """Return tensors of the same shape, stacked in an array; the shape is only needed if there are
    no tensors.
    """
    stacked = torch.stack(list(tensors)) if len(tensors) else torch.empty(0, *shape)
    return stacked.contiguous().numpy()
