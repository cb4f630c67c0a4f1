"""The search as loops that numba compiles, for a CPU, around the innermost loops of `vectors.py`.

One pass over the vectors searches all levels. A residual (D floats) and the m codewords of one
codebook stay in the innermost cache, no array has the size (N, m, D), and only the indices are
written. The work is N * L * m * D subtractions and multiply-adds, or N * (1 + (L - 1) * beam) * m *
D with a beam. Distances are sums of (r - c)^2, which are accurate far from the origin.

The functions `_search_*` search latents[first:last] (N, D) and return the sum of the final squared
residuals. They write indices (L, N) and overwrite the arrays in `work`. They take codebooks by
address, so that one compilation fits
every number of levels:

    books    (L,), addresses of the codebooks of each level, (num_books, G, W) floats: m and D
    padded to G and W
    shapes   (L, 3), m, G and num_books of each level
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.search import vectors as simd
from hrvqvae.quantize.search.vectors import GROUP, LANES, ROWS, SIDE_BY_SIDE
from hrvqvae.utils.compiled import compiled, in_parts
from hrvqvae.utils.errors import NonFiniteError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ONE_THREAD_UP_TO = 1024  # vectors
# vectors that descend together: the codebook of a later one is fetched while another is searched
_TOGETHER = 64
_AHEAD = 4  # vectors between the fetch of a codebook and its use
_NEAR_BYTES = 2**16  # levels up to this size stay in the innermost caches and need no fetch ahead
_BLOCK = 128  # vectors that share one pass over a flat codebook
_LARGEST_KEY = np.int64(2**63 - 1)


@compiled()
def _book_below(index: int, num_books: int) -> int:
    """Return the codebook of a level below the codeword `index` of the coarser level."""
    return index if index < num_books else index % num_books


@compiled()
def _search_greedy(
    latents: Floats,
    books: Integers,
    shapes: Integers,
    indices: Integers,
    work: Any,
    first: int,
    last: int,
) -> float:
    """Take the nearest child at each level. Work: residuals (`_TOGETHER`, W), zero from D on, and
    their indices.
    """
    residual, index = work
    width = residual.shape[1]
    # bytes
    row = 4 * width
    squares = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            index[i] = 0
            for d in range(latents.shape[1]):
                residual[i, d] = latents[start + i, d]
        for level in range(len(books)):
            address = books[level]
            residual_at = np.int64(residual.ctypes.data)
            size = shapes[level, 0]
            padded = shapes[level, 1]
            num_books = shapes[level, 2]
            book_bytes = row * padded
            far = num_books > 1 and num_books * book_bytes > _NEAR_BYTES
            for i in range(count):
                index[i] = _book_below(index[i], num_books)
            for i in range(count):
                if far and i + _AHEAD < count:
                    for line in range(0, book_bytes, 64):
                        simd.prefetch(address + index[i + _AHEAD] * book_bytes + line)
                codebook = address + index[i] * book_bytes
                key = simd.key_of_nearest(residual_at, codebook, width)
                for k in range(SIDE_BY_SIDE, padded, SIDE_BY_SIDE):
                    key = min(key, simd.key_of_nearest(residual_at, codebook + k * row, width) + k)
                child = min(
                    key & 0xFFFFFFFF, size - 1
                )  # padding is nearest if the latent is not finite
                index[i] = index[i] * size + child
                indices[level, start + i] = index[i]
                if level == len(books) - 1:
                    squares += float(np.int32(key >> 32).view(np.float32))
                else:
                    simd.subtract(residual_at, codebook + child * row, residual_at, width)
                residual_at += row
    return squares


@compiled()
def _search_beam(
    latents: Floats,
    books: Integers,
    shapes: Integers,
    indices: Integers,
    work: Any,
    beam: int,
    weight: np.float32,
    first: int,
    last: int,
) -> float:
    """Keep the `beam` branches of least cost at each level; `weight` is the weight of the coarser
    levels.

    Work: residuals (2, beam, W), zero from D on, and costs (2, beam) of the branches before and
    after a level; their indices (L + 1, beam), zero at first; the branches (L, beam) that they come
    from; distances and keys (beam * G,).
    """
    residual, cost, index, parent, distances, keys = work
    levels = len(books)
    width = residual.shape[2]
    # bytes
    row = 4 * width
    squares = 0.0
    residual_at = np.int64(residual.ctypes.data)
    distances_at = np.int64(distances.ctypes.data)
    keys_at = np.int64(keys.ctypes.data)
    for i in range(first, last):
        old = 0
        for d in range(latents.shape[1]):
            residual[0, 0, d] = latents[i, d]
        cost[0, 0], count = np.float32(0), 1
        for level in range(levels):
            address = books[level]
            new = 1 - old
            finest = level == levels - 1
            size = shapes[level, 0]
            padded = shapes[level, 1]
            book_bytes = row * shapes[level, 1]
            old_at = residual_at + old * beam * row
            new_at = residual_at + new * beam * row
            for branch in range(count):
                book = _book_below(index[level, branch], shapes[level, 2])
                codewords = address + book * book_bytes
                vector = old_at + branch * row
                for place in range(branch * padded, (branch + 1) * padded, SIDE_BY_SIDE):
                    simd.measure_eight(
                        vector, codewords, width, cost[old, branch], place, distances_at, keys_at
                    )
                    codewords += row * SIDE_BY_SIDE
            kept = 1 if finest else min(beam, count * size)
            for k in range(kept):
                key: Any = _LARGEST_KEY
                for place in range(count * padded):
                    key = min(key, keys[place])
                place = key & 0xFFFFFFFF
                keys[place] = _LARGEST_KEY
                branch = place // padded
                child = min(
                    place - branch * padded, size - 1
                )  # padding is nearest if the latent is not finite
                book = _book_below(index[level, branch], shapes[level, 2])
                index[level + 1, k], parent[level, k] = book * size + child, branch
                if finest:
                    squares += float(distances[place])
                else:
                    cost[new, k] = weight * distances[place] + cost[old, branch]
                    codeword = address + book * book_bytes + child * row
                    simd.subtract(old_at + branch * row, codeword, new_at + k * row, width)
            count = kept
            old = new
        branch = 0
        for level in range(levels - 1, -1, -1):
            indices[level, i] = index[level + 1, branch]
            branch = parent[level, branch]
    return squares


@compiled()
def _search_flat(
    latents: Floats, book: Floats, nearest: Integers, work: Any, first: int, last: int
) -> float:
    """Write the nearest codewords (N,) of one level, in blocks of vectors that read each codeword
    once.

    `book` (K / `GROUP`, D, `GROUP`) has the codewords of a group side by side, infinity in the
    padding. Work: vectors (`_BLOCK`, D); for each lane of a group, the least distance and the group
    that has it (`_BLOCK`, `GROUP`).
    """
    dim = latents.shape[1]
    squares = 0.0
    vectors, least, groups = work
    vectors_at = np.int64(vectors.ctypes.data)
    least_at = np.int64(least.ctypes.data)
    groups_at = np.int64(groups.ctypes.data)
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        for i in range(count):
            for d in range(dim):
                vectors[i, d] = latents[start + i, d]
        for i in range(_BLOCK):
            for lane in range(GROUP):
                least[i, lane], groups[i, lane] = np.inf, 0
        codewords = np.int64(book.ctypes.data)
        for group in range(len(book)):
            for i in range(0, count, ROWS):
                lane = 4 * GROUP * i
                simd.update_nearest(
                    vectors_at + 4 * dim * i,
                    codewords,
                    dim,
                    least_at + lane,
                    groups_at + lane,
                    group,
                )
            codewords += 4 * dim * GROUP
        for i in range(count):
            key: Any = _LARGEST_KEY  # distance and codeword, as in `key_of_nearest`
            for lane in range(GROUP):
                distance = np.int64(np.float32(least[i, lane]).view(np.int32))
                key = min(key, (distance << 32) + np.int64(groups[i, lane]) * GROUP + lane)
            nearest[start + i] = key & 0xFFFFFFFF
            squares += float(np.int32(key >> 32).view(np.float32))
    return squares


def search_compiled(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int = 1,
    coarse_weight: float = 0.0,
) -> Tensor:
    """Search as `search`, for tensors on the CPU.

    Raises NonFiniteError if a latent or a compared codeword is NaN, infinite, or too large to be
    squared.
    """
    beam = min(width, math.prod(book.shape[1] for book in codebooks[:-1]))
    levels = len(codebooks)
    indices = torch.empty(levels, len(latents), dtype=torch.long, device="cpu")
    vectors = latents.detach().float().contiguous().numpy()
    out = indices.numpy()
    one_thread_up_to = ONE_THREAD_UP_TO
    if levels == 1:
        codewords = pad(
            codebooks[0][0].detach().float(),
            (0, 0, 0, -codebooks[0].shape[1] % GROUP),
            value=torch.inf,
        )
        book = codewords.reshape(-1, GROUP, codewords.shape[1]).transpose(1, 2).contiguous().numpy()
        one_thread_up_to = max(1, one_thread_up_to // len(book))
    else:
        padded = list[Tensor]()  # keeps the codebooks at the addresses in `books` alive
        shapes = np.zeros((levels, 3), np.int64)
        for shape, codebook in zip(shapes, codebooks, strict=True):
            (num_books, size, dim), rows = codebook.shape, codebook.detach().float()
            rows = (
                pad(rows, (0, -dim % LANES)) if dim % LANES else rows
            )  # `pad` copies even if nothing is missing
            rows = (
                pad(rows, (0, 0, 0, -size % SIDE_BY_SIDE), value=torch.inf)
                if size % SIDE_BY_SIDE
                else rows
            )
            padded.append(rows.contiguous())
            shape[:] = size, rows.shape[1], num_books
        books = np.array([rows.data_ptr() for rows in padded])
        padded_dim = padded[0].shape[2]

    def run(first: int, last: int) -> float:
        if levels == 1:
            least = np.empty((_BLOCK, GROUP), np.float32)
            least_groups = np.empty((_BLOCK, GROUP), np.int32)
            work: tuple[Any, ...] = (
                np.zeros((_BLOCK, vectors.shape[1]), np.float32),
                least,
                least_groups,
            )
            return float(_search_flat(vectors, book, out[0], work, first, last))
        if beam == 1:
            work = np.zeros((_TOGETHER, padded_dim), np.float32), np.empty(_TOGETHER, np.int64)
            return float(_search_greedy(vectors, books, shapes, out, work, first, last))
        candidates = beam * int(shapes[:, 1].max())
        branches = np.zeros((2, beam, padded_dim), np.float32), np.zeros((2, beam), np.float32)
        paths = np.zeros((levels + 1, beam), np.int64), np.zeros((levels, beam), np.int64)
        work = *branches, *paths, np.empty(candidates, np.float32), np.empty(candidates, np.int64)
        weight = np.float32(coarse_weight)
        return float(_search_beam(vectors, books, shapes, out, work, beam, weight, first, last))

    squares = sum(in_parts(len(latents), run, one_thread_up_to=one_thread_up_to))
    if not np.isfinite(
        squares
    ):  # least distances are finite if all latents and codewords are, and are not too large
        require_finite(latents, codebooks)
        raise NonFiniteError(
            "latents or codewords are too large for their distances to be squared in float32"
        )
    return indices
