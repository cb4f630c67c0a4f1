"""The search with a beam as a loop compiled by numba: same signature and same answers as `beam.search_beam`.

The work is N * (1 + (L - 1) * W) * m * D subtractions and multiply-adds, m and D filled up as in `compiled.py`, and
keeping the W best of W * m costs at each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.quantize.search.compiled import ALONE, OPTIONS, Floats, Integers, filled_up, require_finite_sum
from hrvqvae.quantize.search.reference import TreeSearch
from hrvqvae.quantize.search.vectors import LANES, SIDE_BY_SIDE, meet_eight, next_key, subtract, take
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.threads import in_parts

_LEAST_KEY = np.int64(-(2**63))


@compiled(**OPTIONS)
def _beam(
    latents: Floats, books: Any, first: int, last: int, size: int, width: int, weight: np.float32, paths: Integers,
    quantized: Floats,
) -> float:  # fmt: skip
    """Search latents[first:last] (N, D); books and size as `compiled._tree` takes them; -> sum of the squared residuals
    that are left.
    """
    dim, wide, levels = latents.shape[1], books[0].shape[1], len(books)
    filled = len(books[0])
    groups, row, book_bytes = filled // SIDE_BY_SIDE, 4 * wide, 4 * wide * filled
    book_at = np.empty(levels, np.int64)
    for level in range(levels):  # here, since taking an array out of a tuple counts references
        book_at[level] = np.int64(books[level].ctypes.data)
    residual = np.zeros((2, width, wide), np.float32)  # of the paths so far, and of the longer ones; so the next two
    path, before = np.zeros((2, width), np.int64), np.zeros((2, width), np.float32)
    distances, keys = np.zeros(width * filled, np.float32), np.zeros(width * filled, np.int64)
    total = np.zeros(wide, np.float32)
    residual_at, total_at = np.int64(residual.ctypes.data), np.int64(total.ctypes.data)
    distances_at, keys_at = np.int64(distances.ctypes.data), np.int64(keys.ctypes.data)
    left = 0.0
    for i in range(first, last):
        now = 0
        for d in range(dim):
            residual[0, 0, d] = latents[i, d]
        path[0, 0], before[0, 0], count = 0, np.float32(0), 1
        for level in range(levels):
            book, then = book_at[level], 1 - now
            vector, next_vector = residual_at + now * width * row, residual_at + then * width * row
            for w in range(count):
                group = book + path[now, w] * book_bytes
                for place in range(w * filled, (w + 1) * filled, SIDE_BY_SIDE):
                    meet_eight(
                        vector + w * row, group, wide, before[now, w], place,
                        distances_at + 4 * place, keys_at + 8 * place,
                    )  # fmt: skip
                    group += row * SIDE_BY_SIDE
            finest = level == levels - 1
            kept = 1 if finest else min(width, count * size)
            key = _LEAST_KEY
            for k in range(kept):
                key = next_key(keys_at, count * groups, key)
                place = key & 0xFFFFFFFF
                w = place // filled
                child = min(place - w * filled, size - 1)  # a filled-up place where the latent is not finite
                path[then, k] = path[now, w] * size + child
                if finest:
                    left += float(distances[place])
                else:
                    before[then, k] = weight * distances[place] + before[now, w]
                    codeword = book + path[now, w] * book_bytes + child * row
                    subtract(vector + w * row, codeword, next_vector + k * row, wide)
            count, now = kept, then
        leaf = path[now, 0]
        for level in range(levels - 1, -1, -1):
            paths[level, i] = leaf
            leaf //= size
        total[:] = 0.0
        for level in range(levels):
            parent = paths[level, i] // size
            codeword = book_at[level] + parent * book_bytes + (paths[level, i] - parent * size) * row
            take(residual_at, total_at, codeword, wide // LANES)
        for d in range(dim):
            quantized[i, d] = total[d]
    return left


def search_beam_compiled(latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float) -> TreeSearch:
    """As `beam.search_beam`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent or a codeword that is met is NaN, infinite, or too large to be squared.
    """
    count, dim = latents.shape
    size = codebooks[0].shape[1]
    books = tuple(filled_up(codebook.detach()).flatten(0, 1).numpy() for codebook in codebooks)
    vectors, weight = latents.detach().numpy(), np.float32(coarse_weight)
    paths, quantized = torch.empty(len(books), count, dtype=torch.long), torch.empty(count, dim)
    out = paths.numpy(), quantized.numpy()

    def search(first: int, last: int) -> float:
        return float(_beam(vectors, books, first, last, size, width, weight, *out))

    require_finite_sum(sum(in_parts(count, search, alone=ALONE)), latents, codebooks)
    return TreeSearch(paths, quantized)
