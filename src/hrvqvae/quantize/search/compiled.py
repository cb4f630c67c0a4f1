"""The fast form of the search, for a CPU: loops that numba compiles.

`tensors.py` is the specification. This module gives the same indices, up to rounding, much faster.

**What is slow in tensors.** At each level the distances of N vectors are an array (N, m), and
copies of each vector's codebook take N * m * D values. So the time goes into memory. The loops here
take a few vectors at a time, whose residuals stay in the innermost cache beside the codebook that
is searched. They write only the indices. A beam of width w takes N * m * D * (1 + (L - 1) * w)
subtractions and multiply-adds. Distances are sums of (r - c)^2, which are accurate far from the
origin.

**Two loops**, for two shapes of the work:

* `_search_tree`: several levels, greedily or with a beam, one vector after the other.
* `_search_flat`: one level, whose codebook is too large for the cache. 128 vectors at a time are
  compared with the whole codebook, 4 vectors with 32 codewords in each innermost call.

**Innermost loops** are in `simd.py`, as instructions for sixteen floats at once. They take
addresses. The nearest codeword is that of the least key. A key is an integer of 64 bits: the
squared distance in the high half, the codeword's place in the low half. So of equal distances the
first place wins.

**Padding.** Codewords and vectors are padded with zeros to a multiple of `LANES` floats, a codebook
with infinite codewords to a multiple of `SIDE_BY_SIDE`. A NaN may choose a codeword of the padding.
Its child is clamped, so that the next address is valid. The sum of squared residuals, which every
loop returns, is then not finite, and `search_compiled` raises the error. So vectors are not checked
before.

Every loop searches vectors[first:last], for one of several threads, and writes indices. `tree` has
a row per level (`_LEVEL`), so one compilation fits every number of levels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.quantize.search import simd
from hrvqvae.quantize.search.simd import COLUMNS, LANES, ROWS, SIDE_BY_SIDE
from hrvqvae.utils.compiled import compiled, in_parts
from hrvqvae.utils.errors import InputError, NonFiniteError

ONE_THREAD_UP_TO = 1024  # vectors
_CHUNK = 128  # vectors that share one pass over a flat codebook
_LARGEST_KEY = np.int64(2**63 - 1)
# codebooks (num_books, padded_size, padded_dim) of a level in memory; `linked` is 1, or 0 if the
# level has a single codebook
_LEVEL = np.dtype([(name, np.int64) for name in ("address", "size", "padded_size", "linked")])


@compiled()
def _search_tree(
    vectors: Any,
    tree: Any,
    indices: Any,
    beam: int,
    coarse_weight: np.float32,
    first: int,
    last: int,
) -> float:
    """Keep the `beam` branches of least cost at each level; return the sum of the final squared
    residuals.

    `residual` and `cost` have two halves: one for the branches before a level, one for those after
    it. The next level swaps them. Before the first level the only residual is the vector itself.
    """
    num_levels = len(tree)
    padded_dim = vectors.shape[1]
    residual = np.zeros((2 * beam, padded_dim), np.float32)
    cost = np.zeros(2 * beam, np.float32)

    # index[l + 1, b] is the codeword of branch b after level l; parent[l, b] is the branch before
    # level l that it continues
    index = np.zeros((num_levels + 1, beam), np.int64)
    parent = np.zeros((num_levels, beam), np.int64)

    distances = np.empty(beam * tree["padded_size"].max(), np.float32)
    keys = np.empty(len(distances), np.int64)
    row_bytes = 4 * padded_dim
    registers = padded_dim // LANES
    vectors_at = np.int64(vectors.ctypes.data)
    cost_at = np.int64(cost.ctypes.data)
    distances_at = np.int64(distances.ctypes.data)
    keys_at = np.int64(keys.ctypes.data)
    squares = 0.0
    for i in range(first, last):
        # in the loop, since numba frees an array after its last use
        residual_at = np.int64(residual.ctypes.data)

        before = 0  # first row of the half that holds the branches before a level: 0 or `beam`
        count = 1
        cost[0] = 0
        residuals = vectors_at + i * row_bytes  # address of those before a level
        for level in range(num_levels):
            address = tree[level].address
            size = tree[level].size
            padded_size = tree[level].padded_size
            linked = tree[level].linked
            eights = padded_size // SIDE_BY_SIDE
            book_bytes = row_bytes * padded_size
            is_finest = level == num_levels - 1
            after = beam - before  # first row of the other half

            # distances and keys of all children of all branches
            for branch in range(count):
                vector = residuals + branch * row_bytes
                book = index[level, branch] * linked
                codewords = address + book * book_bytes
                for eight in range(branch * eights, (branch + 1) * eights):
                    simd.measure_eight(
                        vector,
                        codewords,
                        registers,
                        cost_at,
                        before + branch,
                        eight,
                        distances_at,
                        keys_at,
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
                branch = place // padded_size if count > 1 else 0
                child = min(place - branch * padded_size, size - 1)
                book = index[level, branch] * linked
                index[level + 1, k] = book * size + child
                parent[level, k] = branch
                if is_finest:
                    squares += float(distances[place])
                else:
                    added_cost = coarse_weight * distances[place]
                    cost[after + k] = added_cost + cost[before + branch]
                    vector = residuals + branch * row_bytes
                    codeword = address + book * book_bytes + child * row_bytes
                    new_vector = residual_at + (after + k) * row_bytes
                    simd.subtract(vector, codeword, registers, new_vector)
            count = kept
            before = after
            residuals = residual_at + before * row_bytes

        # from the best branch back to the first level
        branch = 0
        for level in range(num_levels - 1, -1, -1):
            indices[level, i] = index[level + 1, branch]
            branch = parent[level, branch]
    return squares


@compiled()
def _search_flat(
    vectors: Any,
    codebook: Any,
    nearest: Any,
    first: int,
    last: int,
) -> float:
    """Write the nearest codewords (N,) of one level; return the sum of the squared residuals.

    `codebook` (blocks, D, `COLUMNS`) has a codeword per column, infinity in the padding.
    """
    dim = vectors.shape[1]
    chunk = np.zeros((_CHUNK, dim), np.float32)
    # for each column of the blocks, the least distance so far and the block that has it
    least = np.empty((_CHUNK, COLUMNS), np.float32)
    blocks = np.zeros((_CHUNK, COLUMNS), np.int32)
    chunk_at = np.int64(chunk.ctypes.data)
    least_at = np.int64(least.ctypes.data)
    blocks_at = np.int64(blocks.ctypes.data)
    least_bits = least.view(np.int32)
    squares = 0.0
    for start in range(first, last, _CHUNK):
        count = min(_CHUNK, last - start)
        chunk[:count] = vectors[start : start + count]
        least[:] = np.inf
        blocks[:] = 0
        codewords = np.int64(codebook.ctypes.data)
        for block in range(len(codebook)):
            # ROWS vectors at a time; results of rows beyond `count` are never read
            for i in range(0, count, ROWS):
                vector = chunk_at + 4 * dim * i
                offset = 4 * COLUMNS * i
                simd.update_nearest(
                    vector, codewords, dim, least_at + offset, blocks_at + offset, block
                )
            codewords += 4 * dim * COLUMNS

        # of all columns, the least key
        for i in range(count):
            key: Any = _LARGEST_KEY
            for column in range(COLUMNS):
                high = np.int64(least_bits[i, column]) << 32
                place = np.int64(blocks[i, column]) * COLUMNS + column
                key = min(key, high + place)
            place = key & 0xFFFFFFFF
            nearest[start + i] = place
            squares += float(least[i, place % COLUMNS])
    return squares


def search_compiled(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int = 1,
    coarse_weight: float = 0.0,
) -> Tensor:
    """Search as `search`, for tensors on the CPU.

    Raises NonFiniteError if a latent, or all codewords with which it is compared, are NaN, infinite
    or too large to be squared.
    """
    dim = codebooks[0].shape[2]
    if latents.shape[1] != dim:  # the loops would read past the end
        raise InputError(f"latents have {latents.shape[1]} channels; the codebooks have {dim}")
    indices = np.empty((len(codebooks), len(latents)), np.int64)
    vectors = latents.detach().float().contiguous()
    codebooks = [codebook.float() for codebook in codebooks]
    one_thread_up_to = ONE_THREAD_UP_TO
    tables = []  # keeps the memory alive to which the addresses of `tree` point
    if len(codebooks) == 1:
        codewords = _pad_to(codebooks[0][0], 0, COLUMNS, torch.inf)
        blocks = codewords.view(-1, COLUMNS, dim).mT.contiguous()

        # the larger the codebook, the fewer vectors are worth several threads
        one_thread_up_to = max(1, one_thread_up_to // len(blocks))
        loop = partial(_search_flat, vectors.numpy(), blocks.numpy(), indices[0])
    else:
        tree = np.empty(len(codebooks), _LEVEL)
        for level, codebook in enumerate(codebooks):
            num_books, size, _ = codebook.shape
            wide = _pad_to(codebook, 2, LANES, 0.0)
            table = _pad_to(wide, 1, SIDE_BY_SIDE, torch.inf)
            tables.append(table)
            padded_size = table.shape[1]
            tree[level] = (table.data_ptr(), size, padded_size, num_books > 1)

        padded = _pad_to(vectors, 1, LANES, 0.0).numpy()
        weight = np.float32(coarse_weight)
        loop = partial(_search_tree, padded, tree, indices, width, weight)

    squares = sum(in_parts(len(latents), loop, one_thread_up_to=one_thread_up_to))
    if not np.isfinite(squares):
        raise NonFiniteError(
            "latents or codewords are NaN, infinite, or too large to be squared in float32"
        )
    return torch.from_numpy(indices)


def _pad_to(
    values: Tensor,
    dimension: int,
    multiple: int,
    value: float,
) -> Tensor:
    """Return values, contiguous, with a dimension padded to a multiple; no copy if none is
    needed.
    """
    missing = -values.shape[dimension] % multiple
    if missing == 0:
        return values.contiguous()
    shape = list(values.shape)
    shape[dimension] = missing
    return torch.cat([values, values.new_full(shape, value)], dimension)
