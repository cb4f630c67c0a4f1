"""The fast form of the search, for a CPU: loops that numba compiles.

`tensors.py` is the specification. This module gives the same indices, up to rounding, much faster.

**What is slow in tensors.** The distances of N vectors to the m codewords of their codebooks are an
array (N, m), and the codewords themselves one of (N, m, D), at each level: the memory decides the
time. Here a vector descends through all levels at once. Its residual (D floats) and the m codewords
of one codebook stay in the innermost cache, and only the indices are written. The work is N * L * m
* D subtractions and multiply-adds, or N * (1 + (L - 1) * beam) * m * D with a beam. Distances are
sums of (r - c)^2, which are accurate far from the origin.

**Three loops**, for three shapes of the work:

* `_search_greedy`: a beam of 1 in several levels. Vectors descend level by level in batches of 64,
  so that the processor works on several vectors at once.
* `_search_beam`: one vector after the other, with the residuals of all its branches.
* `_search_flat`: a single codebook, which is too large for the cache. 128 vectors share one pass
  over it, in blocks of 32 codewords, four vectors at a time, whose distances stay in registers.

**Innermost loops** are in `simd.py`, as instructions for sixteen floats at once. They take
addresses. A nearest codeword is found as the least key: an integer of 64 bits with the distance
above the position, so that of equal distances the first position wins.

**Padding.** Codebooks are padded to W floats per codeword (zeros) and G codewords per codebook
(infinity). A vector that is not finite is as near to the padding as to all else: its child is
clamped, so that it leads to no codebook that is not there, and the sum of the squared residuals,
which every loop returns, is not finite. So nothing is checked before.

Every loop searches latents[first:last] (N, D), for one of several threads, and writes `indices`
(L, N). A tree is a table (L, 4), so that one compilation fits every number of levels. A level's row
has the address of its codebooks (num_books, G, W), m, G, and whether they are linked (1) or there
is only one (0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.search import simd
from hrvqvae.quantize.search.simd import COLUMNS, LANES, ROWS, SIDE_BY_SIDE
from hrvqvae.utils.compiled import compiled, in_parts
from hrvqvae.utils.errors import NonFiniteError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ONE_THREAD_UP_TO = 1024  # vectors
_TOGETHER = 64  # vectors that descend together
_CHUNK = 128  # vectors that share one pass over a flat codebook
_LARGEST_KEY = np.int64(2**63 - 1)


@compiled()
def _search_greedy(
    latents: Floats, tree: Integers, width: int, indices: Integers, first: int, last: int
) -> float:
    """Take the nearest child at each level; return the sum of the final squared residuals."""
    residual = np.zeros((_TOGETHER, width), np.float32)
    index = np.zeros(_TOGETHER, np.int64)
    row_bytes = 4 * width
    squares = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            for d in range(latents.shape[1]):
                residual[i, d] = latents[start + i, d]
        for level in range(len(tree)):
            address = tree[level, 0]
            size = tree[level, 1]
            padded_size = tree[level, 2]
            book_bytes = row_bytes * padded_size
            if not tree[level, 3]:
                index[:] = 0
            residual_at = np.int64(residual.ctypes.data)
            for i in range(count):
                # the nearest child, eight at a time
                codebook = address + index[i] * book_bytes
                key = simd.key_of_nearest(residual_at, codebook, width)
                for k in range(SIDE_BY_SIDE, padded_size, SIDE_BY_SIDE):
                    eight = codebook + k * row_bytes
                    key = min(key, simd.key_of_nearest(residual_at, eight, width) + k)
                child = min(key & 0xFFFFFFFF, size - 1)
                index[i] = index[i] * size + child
                indices[level, start + i] = index[i]

                # what is left of the vector
                if level == len(tree) - 1:
                    squares += float(np.int32(key >> 32).view(np.float32))
                else:
                    codeword = codebook + child * row_bytes
                    simd.subtract(residual_at, codeword, residual_at, width)
                residual_at += row_bytes
    return squares


@compiled()
def _search_beam(
    latents: Floats,
    tree: Integers,
    width: int,
    indices: Integers,
    beam: int,
    coarse_weight: np.float32,
    first: int,
    last: int,
) -> float:
    """Keep the `beam` branches of least cost at each level; return the sum of the final squared
    residuals.

    Branches before a level are in half `old` of `residual` and `cost`, branches after it in half
    `new`.
    """
    num_levels = len(tree)
    residual = np.zeros((2, beam, width), np.float32)
    cost = np.zeros((2, beam), np.float32)
    index = np.zeros((num_levels + 1, beam), np.int64)
    parent = np.zeros((num_levels, beam), np.int64)  # branch before the level
    distances = np.empty(beam * tree[:, 2].max(), np.float32)
    keys = np.empty(len(distances), np.int64)
    row_bytes = 4 * width
    residual_at = np.int64(residual.ctypes.data)
    cost_at = np.int64(cost.ctypes.data)
    distances_at = np.int64(distances.ctypes.data)
    keys_at = np.int64(keys.ctypes.data)
    squares = 0.0
    for i in range(first, last):
        old = 0
        count = 1
        cost[0, 0] = np.float32(0)
        for d in range(latents.shape[1]):
            residual[0, 0, d] = latents[i, d]
        for level in range(num_levels):
            address = tree[level, 0]
            size = tree[level, 1]
            padded_size = tree[level, 2]
            linked = tree[level, 3]
            book_bytes = row_bytes * padded_size
            is_finest = level == num_levels - 1
            new = 1 - old

            # distances and keys of all children of all branches
            for branch in range(count):
                codewords = address + index[level, branch] * linked * book_bytes
                number = old * beam + branch
                vector = residual_at + number * row_bytes
                for place in range(branch * padded_size, (branch + 1) * padded_size, SIDE_BY_SIDE):
                    added = cost_at + 4 * number
                    simd.measure_eight(
                        vector, codewords, width, added, place, distances_at, keys_at
                    )
                    codewords += row_bytes * SIDE_BY_SIDE

            # the children of least cost are the branches of the next level
            kept = 1 if is_finest else min(beam, count * size)
            for k in range(kept):
                key: Any = _LARGEST_KEY
                for place in range(count * padded_size):
                    key = min(key, keys[place])
                place = key & 0xFFFFFFFF
                keys[place] = _LARGEST_KEY
                branch = place // padded_size
                child = min(place - branch * padded_size, size - 1)
                book = index[level, branch] * linked
                index[level + 1, k] = book * size + child
                parent[level, k] = branch
                if is_finest:
                    squares += float(distances[place])
                else:
                    cost[new, k] = coarse_weight * distances[place] + cost[old, branch]
                    codeword = address + book * book_bytes + child * row_bytes
                    vector = residual_at + (old * beam + branch) * row_bytes
                    rest = residual_at + (new * beam + k) * row_bytes
                    simd.subtract(vector, codeword, rest, width)
            count = kept
            old = new

        # from the best branch back to the first level
        branch = 0
        for level in range(num_levels - 1, -1, -1):
            indices[level, i] = index[level + 1, branch]
            branch = parent[level, branch]
    return squares


@compiled()
def _search_flat(
    latents: Floats, codebook: Floats, nearest: Integers, first: int, last: int
) -> float:
    """Write the nearest codewords (N,) of one level; return the sum of the squared residuals.

    `codebook` (K / `COLUMNS`, D, `COLUMNS`) has the codewords of a block side by side, infinity in
    the padding.
    """
    dim = latents.shape[1]
    vectors = np.zeros((_CHUNK, dim), np.float32)
    # for each column of the blocks, the least distance so far and the block that has it
    least = np.empty((_CHUNK, COLUMNS), np.float32)
    blocks = np.zeros((_CHUNK, COLUMNS), np.int32)
    vectors_at = np.int64(vectors.ctypes.data)
    least_at = np.int64(least.ctypes.data)
    blocks_at = np.int64(blocks.ctypes.data)
    squares = 0.0
    for start in range(first, last, _CHUNK):
        count = min(_CHUNK, last - start)
        vectors[:count] = latents[start : start + count]
        least[:] = np.inf
        blocks[:] = 0
        codewords = np.int64(codebook.ctypes.data)
        for block in range(len(codebook)):
            for i in range(0, count, ROWS):
                vector = vectors_at + 4 * dim * i
                offset = 4 * COLUMNS * i
                simd.update_nearest(
                    vector, codewords, dim, least_at + offset, blocks_at + offset, block
                )
            codewords += 4 * dim * COLUMNS
        for i in range(count):
            key: Any = _LARGEST_KEY
            for column in range(COLUMNS):
                distance = np.int64(np.float32(least[i, column]).view(np.int32))
                key = min(key, (distance << 32) + np.int64(blocks[i, column]) * COLUMNS + column)
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
    indices = torch.empty(len(codebooks), len(latents), dtype=torch.long, device="cpu")
    vectors = latents.detach().float().contiguous().numpy()
    codebooks = [codebook.detach().float() for codebook in codebooks]
    one_thread_up_to = ONE_THREAD_UP_TO
    loop: Callable[[int, int], float]
    if len(codebooks) == 1:
        codewords = _pad_to(codebooks[0][0], 0, COLUMNS, torch.inf)
        blocks = codewords.view(-1, COLUMNS, codewords.shape[1]).mT.contiguous()
        one_thread_up_to = max(1, one_thread_up_to // len(blocks))
        loop = partial(_search_flat, vectors, blocks.numpy(), indices.numpy()[0])
    else:
        rows = []
        padded = []  # keeps the codebooks at the addresses of the table alive
        for codebook in codebooks:
            wide = _pad_to(codebook, 2, LANES, 0.0)
            padded.append(_pad_to(wide, 1, SIDE_BY_SIDE, torch.inf))
            num_books, padded_size, padded_dim = padded[-1].shape
            address = padded[-1].data_ptr()
            rows.append((address, codebook.shape[1], padded_size, num_books > 1))
        tree = (vectors, np.array(rows), padded_dim, indices.numpy())
        beam = min(width, math.prod(codebook.shape[1] for codebook in codebooks[:-1]))
        loop = partial(_search_greedy, *tree)
        if beam > 1:
            loop = partial(_search_beam, *tree, beam, np.float32(coarse_weight))

    squares = sum(in_parts(len(latents), loop, one_thread_up_to=one_thread_up_to))
    if not np.isfinite(squares):
        require_finite(latents, codebooks)
        raise NonFiniteError(
            "latents or codewords are too large for their distances to be squared in float32"
        )
    return indices


def _pad_to(values: Tensor, dimension: int, multiple: int, value: float) -> Tensor:
    """Return values, contiguous, with a dimension padded to a multiple; no copy if none is
    needed.
    """
    missing = -values.shape[dimension] % multiple
    if missing:
        after = [0, 0] * (values.ndim - 1 - dimension)
        values = pad(values, (*after, 0, missing), value=value)
    return values.contiguous()
