"""The searches as loops compiled by numba: same signatures and same answers as the plain ones in `reference.py`.

Tree: all levels in one pass over the vectors. A residual (D floats) and the m codewords of one codebook stay in the
innermost cache, nothing of size (N, m, D) exists, the input is not copied, and only the paths and the sum are written.
Codebooks that lie in memory are asked for a few vectors ahead. The work is N * L * m * D subtractions and
multiply-adds, m filled up to a multiple of 8 and D to one of 16. Distances are summed in the direct form
sum((r - c)^2), which keeps its accuracy where codewords lie far from the origin.

Flat: the same distances, 32 codewords against a block of vectors at a time, so that both stay in cache; they lie side
by side in a copy of the codebook that each call makes.

The innermost loops are those of `vectors.py`.

Compiled code is kept on disk (`jit/cache.py`), so only the first process pays: about a second for each number of
levels and memory layout of the latents, some three for the flat search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.quantize.search.reference import TreeSearch, require_finite
from hrvqvae.quantize.search.vectors import GROUP, LANES, ROWS, SIDE_BY_SIDE, key_of_nearest, meet, prefetch, take
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import NonFiniteError
from hrvqvae.utils.threads import in_parts

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
ALONE = 1024  # vectors that are not worth a second thread
_TOGETHER, _AHEAD = 64, 4  # vectors that go down the tree together; how far ahead a codebook is asked for
_NEAR_VALUES = 2**14  # of a level whose codewords are in the innermost caches anyway
_BLOCK = 128  # vectors that a flat codebook is read once for
_LARGEST_KEY = np.int64(2**63 - 1)


@compiled(**OPTIONS)
def _tree(latents: Floats, books: Any, first: int, last: int, size: int, paths: Integers, quantized: Floats) -> float:
    """Search latents[first:last] (N, D); books of each level, (m^l * G, W), are filled up to groups of eight codewords
    a codebook and to whole vectors of sixteen numbers; -> sum of the squared residuals that are left.

    A few vectors go down together, so that the codebook of a later one can be on its way while one is searched.
    """
    dim, width = latents.shape[1], books[0].shape[1]
    filled = -(-size // SIDE_BY_SIDE) * SIDE_BY_SIDE
    residual, total = np.zeros((_TOGETHER, width), np.float32), np.empty((_TOGETHER, width), np.float32)
    path = np.empty(_TOGETHER, np.int64)
    group_bytes, book_bytes = 4 * width * SIDE_BY_SIDE, 4 * width * filled
    left = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            path[i] = 0
            for d in range(dim):
                residual[i, d] = latents[start + i, d]
        total[:] = 0.0
        for level in range(len(books)):
            book = books[level]
            address = np.int64(book.ctypes.data)
            vector, sum_ = np.int64(residual.ctypes.data), np.int64(total.ctypes.data)
            far = book.size > _NEAR_VALUES
            for i in range(count):
                if far and i + _AHEAD < count:
                    for line in range(0, book_bytes, 64):
                        prefetch(address + path[i + _AHEAD] * book_bytes + line)
                group = address + path[i] * book_bytes
                key = key_of_nearest(vector, group, width)
                for k in range(SIDE_BY_SIDE, filled, SIDE_BY_SIDE):
                    group += group_bytes
                    key = min(key, key_of_nearest(vector, group, width) + k)
                child = min(key & 0xFFFFFFFF, size - 1)  # a filled-up place where the latent is not finite
                take(vector, sum_, address + path[i] * book_bytes + 4 * width * child, width // LANES)
                path[i] = path[i] * size + child
                paths[level, start + i] = path[i]
                vector += 4 * width
                sum_ += 4 * width
                if level == len(books) - 1:
                    left += float(np.int32(key >> 32).view(np.float32))
        for i in range(count):
            for d in range(dim):
                quantized[start + i, d] = total[i, d]
    return left


@compiled(**OPTIONS)
def _flat(latents: Floats, book: Floats, first: int, last: int, nearest: Integers) -> float:
    """Search latents[first:last] (N, D); book (K / `GROUP`, D, `GROUP`), codewords of a group side by side, infinity
    where there is none; -> sum of the squared distances of the nearest.

    A group in cache meets all vectors of a block, so that the codebook is read once a block.
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


def filled_up(codebooks: Tensor) -> Tensor:
    """(books, m, D) filled up to multiples of 8 codewords, infinitely far away, and of 16 numbers, zero."""
    _, size, dim = codebooks.shape
    wide = pad(codebooks, (0, -dim % LANES)) if dim % LANES else codebooks
    many = pad(wide, (0, 0, 0, -size % SIDE_BY_SIDE), value=torch.inf) if size % SIDE_BY_SIDE else wide
    return many.contiguous()


def search_tree_compiled(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `reference.search_tree`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent or a codeword that is met is NaN, infinite, or too large to be squared.
    """
    count, dim = latents.shape
    books = tuple(filled_up(codebook.detach()).flatten(0, 1).numpy() for codebook in codebooks)
    vectors, size = latents.detach().numpy(), codebooks[0].shape[1]
    paths, quantized = torch.empty(len(books), count, dtype=torch.long), torch.empty(count, dim)
    out = paths.numpy(), quantized.numpy()
    left = sum(in_parts(count, lambda first, last: float(_tree(vectors, books, first, last, size, *out)), alone=ALONE))
    require_finite_sum(left, latents, codebooks)
    return TreeSearch(paths, quantized)


def search_flat_compiled(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `reference.search_flat`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent or the codewords are NaN, infinite, or too large to be squared.
    """
    missing, dim = -len(codebook) % GROUP, codebook.shape[1]
    filled = pad(codebook.detach(), (0, 0, 0, missing), value=torch.inf) if missing else codebook.detach()
    book = filled.reshape(-1, GROUP, dim).transpose(1, 2).contiguous().numpy()
    vectors = latents.detach().numpy()
    nearest = torch.empty(len(latents), dtype=torch.long)
    out = nearest.numpy()
    alone = max(1, ALONE // len(book))
    left = sum(in_parts(len(latents), lambda first, last: float(_flat(vectors, book, first, last, out)), alone=alone))
    require_finite_sum(left, latents, [codebook])
    return nearest


def require_finite_sum(left: float, latents: Tensor, codebooks: Sequence[Tensor]) -> None:
    """Raises NonFiniteError: the least distances are finite unless a latent or codeword is not; so is their sum."""
    if not np.isfinite(left):
        require_finite(latents, codebooks)
        raise NonFiniteError("latents or codewords are too large for their distances to be squared in float32")
