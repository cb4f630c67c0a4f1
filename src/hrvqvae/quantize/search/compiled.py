"""The search as loops compiled by numba, for a CPU, which the innermost loops of `vectors.py` serve.

All levels are searched in one pass over the vectors. A residual (D floats) and the m codewords of one codebook stay in
the innermost cache, nothing of size (N, m, D) exists, and only the paths are written. The work is N * L * m * D
subtractions and multiply-adds, with a beam N * (1 + (L - 1) * W) * m * D; m is filled up to a multiple of 8 and D to
one of 16. Distances are summed in the direct form sum((r - c)^2), which keeps its accuracy where codewords lie far from
the origin.

Compiled code is kept on disk (`utils/compiled.py`): the first process takes a second or three for each number of levels
and memory layout of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.search.vectors import (
    GROUP,
    LANES,
    ROWS,
    SIDE_BY_SIDE,
    key_of_nearest,
    meet,
    meet_eight,
    prefetch,
    subtract,
)  # fmt: skip
from hrvqvae.utils.compiled import compiled, in_parts
from hrvqvae.utils.errors import NonFiniteError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
ALONE = 1024  # vectors that are not worth a second thread
_TOGETHER, _AHEAD = 64, 4  # vectors that go down the tree together; how far ahead a codebook is asked for
_NEAR_VALUES = 2**14  # of a level whose codewords are in the innermost caches anyway
_BLOCK = 128  # vectors that a flat codebook is read once for
_LARGEST_KEY = np.int64(2**63 - 1)


@compiled(**OPTIONS)
def _greedy(latents: Floats, books: Any, size: int, paths: Integers, first: int, last: int) -> float:
    """Search latents[first:last] (N, D); books of each level are (m^l * G, W), as `_filled` gives them; -> sum of the
    squared residuals that are left.

    A few vectors go down together, so that the codebook of a later one can be on its way while one is searched.
    """
    dim, width = latents.shape[1], books[0].shape[1]
    filled = len(books[0])
    residual, path = np.zeros((_TOGETHER, width), np.float32), np.empty(_TOGETHER, np.int64)
    row, book_bytes = 4 * width, 4 * width * filled
    left = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            path[i] = 0
            for d in range(dim):
                residual[i, d] = latents[start + i, d]
        for level in range(len(books)):
            book = books[level]
            address, vector = np.int64(book.ctypes.data), np.int64(residual.ctypes.data)
            far = book.size > _NEAR_VALUES
            for i in range(count):
                if far and i + _AHEAD < count:
                    for line in range(0, book_bytes, 64):
                        prefetch(address + path[i + _AHEAD] * book_bytes + line)
                chosen = address + path[i] * book_bytes
                key = key_of_nearest(vector, chosen, width)
                for k in range(SIDE_BY_SIDE, filled, SIDE_BY_SIDE):
                    key = min(key, key_of_nearest(vector, chosen + k * row, width) + k)
                child = min(key & 0xFFFFFFFF, size - 1)  # a filled-up place where the latent is not finite
                path[i] = path[i] * size + child
                paths[level, start + i] = path[i]
                if level == len(books) - 1:
                    left += float(np.int32(key >> 32).view(np.float32))
                else:
                    subtract(vector, chosen + child * row, vector, width)
                vector += row
    return left


@compiled(**OPTIONS)
def _beam(
    latents: Floats, books: Any, size: int, paths: Integers, width: int, weight: np.float32, first: int, last: int
) -> float:
    """As `_greedy`, with a beam of `width` paths and the weight of coarser levels."""
    dim, wide, levels = latents.shape[1], books[0].shape[1], len(books)
    filled = len(books[0])
    row, book_bytes = 4 * wide, 4 * wide * filled
    book_at = np.empty(levels, np.int64)
    for level in range(levels):  # here, since taking an array out of a tuple counts references
        book_at[level] = np.int64(books[level].ctypes.data)
    residual = np.zeros((2, width, wide), np.float32)  # of the paths so far, and of the longer ones; so the next two
    path, before = np.zeros((2, width), np.int64), np.zeros((2, width), np.float32)
    distances, keys = np.zeros(width * filled, np.float32), np.zeros(width * filled, np.int64)
    residual_at, distances_at = np.int64(residual.ctypes.data), np.int64(distances.ctypes.data)
    keys_at = np.int64(keys.ctypes.data)
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
            for k in range(kept):
                key: Any = _LARGEST_KEY
                for place in range(count * filled):
                    key = min(key, keys[place])
                place = key & 0xFFFFFFFF
                keys[place] = _LARGEST_KEY
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
    return left


@compiled(**OPTIONS)
def _flat(latents: Floats, book: Floats, nearest: Integers, first: int, last: int) -> float:
    """As `_greedy`, for one level, by blocks of vectors that each codeword is read once for.

    book (K / `GROUP`, D, `GROUP`): codewords of a group side by side, infinity where there is none.
    """
    dim = latents.shape[1]
    vectors = np.zeros((_BLOCK, dim), np.float32)
    best, place = np.empty((_BLOCK, GROUP), np.float32), np.empty((_BLOCK, GROUP), np.int32)
    bits = best.view(np.int32)
    left = 0.0
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        vectors[:count] = latents[start : start + count]
        best[:], place[:] = np.inf, 0
        group = np.int64(book.ctypes.data)
        for number in range(len(book)):
            for i in range(0, count, ROWS):
                some, lowest = np.int64(vectors[i:].ctypes.data), np.int64(best[i:].ctypes.data)
                meet(some, group, dim, lowest, np.int64(place[i:].ctypes.data), number)
            group += 4 * dim * GROUP
        for i in range(count):
            key: Any = _LARGEST_KEY  # as of `key_of_nearest`
            for lane in range(GROUP):
                word = np.int64(place[i, lane]) * GROUP + lane
                key = min(key, (np.int64(bits[i, lane]) << 32) + word)
            nearest[start + i] = key & 0xFFFFFFFF
            left += float(np.int32(key >> 32).view(np.float32))
    return left


def _filled(codebooks: Tensor) -> Floats:
    """(books, m, D) filled up to multiples of 8 codewords, infinitely far away, and of 16 numbers, zero, in rows."""
    _, size, dim = codebooks.shape
    wide = pad(codebooks, (0, -dim % LANES)) if dim % LANES else codebooks  # `pad` copies
    many = pad(wide, (0, 0, 0, -size % SIDE_BY_SIDE), value=torch.inf) if size % SIDE_BY_SIDE else wide
    return many.flatten(0, 1).contiguous().numpy()


def _side_by_side(codebook: Tensor) -> Floats:
    """(K, D) as `_flat` takes it."""
    filled = pad(codebook, (0, 0, 0, -len(codebook) % GROUP), value=torch.inf)
    return filled.reshape(-1, GROUP, codebook.shape[1]).transpose(1, 2).contiguous().numpy()


def search_compiled(latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0) -> Tensor:
    """As `search`, for tensors on the CPU.

    Raises:
        NonFiniteError: a latent or a codeword that is met is NaN, infinite, or too large to be squared.
    """
    size, width, alone = codebooks[0].shape[1], min(width, len(codebooks[-1])), ALONE
    paths = torch.empty(len(codebooks), len(latents), dtype=torch.long)
    vectors, out = latents.detach().float().numpy(), paths.numpy()
    if len(codebooks) == 1:
        book = _side_by_side(codebooks[0][0].detach().float())
        alone = max(1, ALONE // len(book))
        run = partial(_flat, vectors, book, out[0])
    else:
        books = tuple(_filled(codebook.detach().float()) for codebook in codebooks)
        beam = () if width == 1 else (width, np.float32(coarse_weight))
        run = partial(_beam if beam else _greedy, vectors, books, size, out, *beam)
    left = sum(in_parts(len(latents), lambda first, last: float(run(first, last)), alone=alone))
    if not np.isfinite(left):  # the least distances are finite unless a latent or codeword is not; so is their sum
        require_finite(latents, codebooks)
        raise NonFiniteError("latents or codewords are too large for their distances to be squared in float32")
    return paths
