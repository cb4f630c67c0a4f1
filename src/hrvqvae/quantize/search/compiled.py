"""The search as loops that numba compiles, for a CPU, around the innermost loops of `vectors.py`.

One pass over the vectors searches all levels. A residual (D floats) and the m codewords of one codebook stay in the
innermost cache, no array has the size (N, m, D), and only the indices are written. The work is N * L * m * D
subtractions and multiply-adds, or N * (1 + (L - 1) * beam) * m * D with a beam. m is padded to a multiple of 8, and D
to a multiple of 16. Distances are sums of (r - c)^2, which are accurate far from the origin.

The kernels take addresses of codebooks, so that one signature fits every number of levels, and work arrays.
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

ONE_THREAD_UP_TO = 1024  # vectors
_TOGETHER, _AHEAD = 64, 4  # vectors that descend together; vectors between a prefetch and its use
_NEAR_BYTES = 2**16  # levels up to this size stay in the innermost caches and need no prefetch
_BLOCK = 128  # vectors that share one pass over a flat codebook
_LARGEST_KEY = np.int64(2**63 - 1)


@compiled()
def _book_below(index: int, linked: int, start: int, tables: Integers) -> int:
    """Return the codebook of a level, with its columns of `shapes`, below the codeword `index` of the coarser level."""
    index *= min(1, linked)
    return tables[start + index] if start >= 0 else index


@compiled()
def _search_greedy(
    latents: Floats, books: Integers, shapes: Integers, tables: Integers, indices: Integers, work: Any,
    first: int, last: int,
) -> float:  # fmt: skip
    """Search latents[first:last] (N, D), and return the sum of the final squared residuals.

    Several vectors descend together, so that the codebook of a later vector is fetched while another is searched.

    Args:
        books: addresses of the codebooks of each level, (num_books, G, W) floats.
        shapes: (L, 4), m, G and num_books of each level, with 0 in place of 1 for num_books; then where its table
            starts in `tables`, or -1.
        tables: tables of all levels, one after the other.
        indices: (L, N), written to.
        work: residuals (`_TOGETHER`, W), zero from D on, and indices (`_TOGETHER`,), overwritten.
    """
    residual, index = work
    width = residual.shape[1]
    row = 4 * width
    left = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            index[i] = 0
            for d in range(latents.shape[1]):
                residual[i, d] = latents[start + i, d]
        for level in range(len(books)):
            address, vector = books[level], np.int64(residual.ctypes.data)
            size, padded, num_books = shapes[level, 0], shapes[level, 1], shapes[level, 2]
            book_bytes = row * padded
            for i in range(count):
                index[i] = _book_below(index[i], shapes[level, 2], shapes[level, 3], tables)
            for i in range(count):
                if num_books * book_bytes > _NEAR_BYTES and i + _AHEAD < count:
                    for line in range(0, book_bytes, 64):
                        prefetch(address + index[i + _AHEAD] * book_bytes + line)
                codebook = address + index[i] * book_bytes
                key = key_of_nearest(vector, codebook, width)
                for k in range(SIDE_BY_SIDE, padded, SIDE_BY_SIDE):
                    key = min(key, key_of_nearest(vector, codebook + k * row, width) + k)
                child = min(key & 0xFFFFFFFF, size - 1)  # of the padding where the latent is not finite
                index[i] = index[i] * size + child
                indices[level, start + i] = index[i]
                if level == len(books) - 1:
                    left += float(np.int32(key >> 32).view(np.float32))
                else:
                    subtract(vector, codebook + child * row, vector, width)
                vector += row
    return left


@compiled()
def _search_beam(
    latents: Floats, books: Integers, shapes: Integers, tables: Integers, indices: Integers, work: Any, beam: int,
    weight: np.float32, first: int, last: int,
) -> float:  # fmt: skip
    """Search as `_search_greedy`, with a beam and the weight of the distances at coarser levels.

    Args:
        work: arrays to overwrite: residuals (2, beam, W) and costs (2, beam) of the branches before and after a level;
            their indices (L + 1, beam), zero at first, and the positions of their parents (L, beam); distances and
            keys of all candidates (beam * G,).
    """
    residual, before, index, parent, distances, keys = work
    levels, width = len(books), residual.shape[2]
    row = 4 * width
    residual_at, distances_at = np.int64(residual.ctypes.data), np.int64(distances.ctypes.data)
    keys_at = np.int64(keys.ctypes.data)
    left = 0.0
    for i in range(first, last):
        now = 0
        for d in range(latents.shape[1]):
            residual[0, 0, d] = latents[i, d]
        before[0, 0], count = np.float32(0), 1
        for level in range(levels):
            book, then = books[level], 1 - now
            size, padded, book_bytes = shapes[level, 0], shapes[level, 1], row * shapes[level, 1]
            vector, next_vector = residual_at + now * beam * row, residual_at + then * beam * row
            for w in range(count):
                codebook = book + _book_below(index[level, w], shapes[level, 2], shapes[level, 3], tables) * book_bytes
                for place in range(w * padded, (w + 1) * padded, SIDE_BY_SIDE):
                    meet_eight(
                        vector + w * row, codebook, width, before[now, w], place,
                        distances_at + 4 * place, keys_at + 8 * place,
                    )  # fmt: skip
                    codebook += row * SIDE_BY_SIDE
            finest = level == levels - 1
            kept = 1 if finest else min(beam, count * size)
            for k in range(kept):
                key: Any = _LARGEST_KEY
                for place in range(count * padded):
                    key = min(key, keys[place])
                place = key & 0xFFFFFFFF
                keys[place] = _LARGEST_KEY
                w = place // padded
                child = min(place - w * padded, size - 1)  # of the padding where the latent is not finite
                above = _book_below(index[level, w], shapes[level, 2], shapes[level, 3], tables)
                index[level + 1, k], parent[level, k] = above * size + child, w
                if finest:
                    left += float(distances[place])
                else:
                    before[then, k] = weight * distances[place] + before[now, w]
                    codeword = book + above * book_bytes + child * row
                    subtract(vector + w * row, codeword, next_vector + k * row, width)
            count, now = kept, then
        place = 0
        for level in range(levels - 1, -1, -1):
            indices[level, i] = index[level + 1, place]
            place = parent[level, place]
    return left


@compiled()
def _search_flat(latents: Floats, book: Floats, nearest: Integers, work: Any, first: int, last: int) -> float:
    """Search one level as `_search_greedy` does, in blocks of vectors that read each codeword once.

    Args:
        book: (K / `GROUP`, D, `GROUP`), codewords of a group side by side, infinity in the padding.
        nearest: (N,), written to.
        work: vectors (`_BLOCK`, D), their least distances and the groups of these (`_BLOCK`, `GROUP`), overwritten.
    """
    dim = latents.shape[1]
    vectors, best, groups = work
    vectors_at, best_at = np.int64(vectors.ctypes.data), np.int64(best.ctypes.data)
    groups_at = np.int64(groups.ctypes.data)
    left = 0.0
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        for i in range(count):
            for d in range(dim):
                vectors[i, d] = latents[start + i, d]
        for i in range(_BLOCK):
            for lane in range(GROUP):
                best[i, lane], groups[i, lane] = np.inf, 0
        codewords = np.int64(book.ctypes.data)
        for group in range(len(book)):
            for i in range(0, count, ROWS):
                lane = 4 * GROUP * i
                meet(vectors_at + 4 * dim * i, codewords, dim, best_at + lane, groups_at + lane, group)
            codewords += 4 * dim * GROUP
        for i in range(count):
            key: Any = _LARGEST_KEY  # as of `key_of_nearest`
            for lane in range(GROUP):
                distance = np.int64(np.float32(best[i, lane]).view(np.int32))
                key = min(key, (distance << 32) + np.int64(groups[i, lane]) * GROUP + lane)
            nearest[start + i] = key & 0xFFFFFFFF
            left += float(np.int32(key >> 32).view(np.float32))
    return left


def search_compiled(
    latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0,
    tables: Sequence[Tensor | None] = (),
) -> Tensor:  # fmt: skip
    """Search as `search`, for tensors on the CPU.

    Raises NonFiniteError if a latent or a compared codeword is NaN, infinite, or too large to be squared.
    """
    beam, levels = min(width, math.prod(book.shape[1] for book in codebooks[:-1])), len(codebooks)
    indices = torch.empty(levels, len(latents), dtype=torch.long)
    vectors, out, one_thread_up_to = latents.detach().float().contiguous().numpy(), indices.numpy(), ONE_THREAD_UP_TO
    if levels == 1:
        whole = codebooks[0][0].detach().float()
        groups = pad(whole, (0, 0, 0, -len(whole) % GROUP), value=torch.inf).reshape(-1, GROUP, whole.shape[1])
        book = groups.transpose(1, 2).contiguous().numpy()
        one_thread_up_to = max(1, one_thread_up_to // len(book))
    else:
        padded = list[Tensor]()  # keeps alive what the kernels get addresses of
        shapes, starts = np.zeros((levels, 4), np.int64), [torch.zeros(1, dtype=torch.long)]
        for shape, codebook, table in zip(shapes, codebooks, tables or [None] * levels, strict=True):
            (num_books, size, dim), rows = codebook.shape, codebook.detach().float()
            rows = pad(rows, (0, -dim % LANES)) if dim % LANES else rows  # `pad` copies even if nothing is missing
            rows = pad(rows, (0, 0, 0, -size % SIDE_BY_SIDE), value=torch.inf) if size % SIDE_BY_SIDE else rows
            padded.append(rows.contiguous())
            linked = num_books if num_books > 1 else 0
            shape[:] = size, rows.shape[1], linked, -1 if table is None else sum(map(len, starts))
            starts += [] if table is None else [table]
        books, wide = np.array([rows.data_ptr() for rows in padded]), padded[0].shape[2]
        joined = torch.cat(starts).numpy()

    def run(first: int, last: int) -> float:
        if levels == 1:
            best, best_groups = np.empty((_BLOCK, GROUP), np.float32), np.empty((_BLOCK, GROUP), np.int32)
            work: tuple[Any, ...] = np.zeros((_BLOCK, vectors.shape[1]), np.float32), best, best_groups
            return float(_search_flat(vectors, book, out[0], work, first, last))
        if beam == 1:
            work = np.zeros((_TOGETHER, wide), np.float32), np.empty(_TOGETHER, np.int64)
            return float(_search_greedy(vectors, books, shapes, joined, out, work, first, last))
        candidates = beam * int(shapes[:, 1].max())
        work = (
            np.zeros((2, beam, wide), np.float32), np.zeros((2, beam), np.float32),
            np.zeros((levels + 1, beam), np.int64), np.zeros((levels, beam), np.int64),
            np.empty(candidates, np.float32), np.empty(candidates, np.int64),
        )  # fmt: skip
        return float(
            _search_beam(vectors, books, shapes, joined, out, work, beam, np.float32(coarse_weight), first, last)
        )

    left = sum(in_parts(len(latents), run, one_thread_up_to=one_thread_up_to))
    if not np.isfinite(left):  # the least distances are finite if all latents and codewords are
        require_finite(latents, codebooks)
        raise NonFiniteError("latents or codewords are too large for their distances to be squared in float32")
    return indices
