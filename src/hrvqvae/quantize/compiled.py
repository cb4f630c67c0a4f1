"""The searches as loops compiled by numba: same signatures and same answers as the plain ones in `search.py`.

Tree: all levels in one pass over the vectors. A residual (D floats) and the m codewords of one codebook stay in the
innermost cache, nothing of size (N, m, D) exists, the input is not copied, and only the paths and the sum are written.
Codebooks that lie in memory are asked for a few vectors ahead. The work is N * L * m * D subtractions and
multiply-adds. Distances are summed in the direct form sum((r - c)^2), which keeps its accuracy where codewords lie far
from the origin.

Flat: scores |c|^2 - 2 z.c by matrix products of a block of vectors at a time, the block in cache, then the least of
each row. Whatever is as near as rounding can tell apart is compared again in the direct form.

Compiled code is kept on disk by numba, so only the first process pays (about a second for each number of levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.errors import NonFiniteError
from hrvqvae.quantize.search import TreeSearch, require_finite
from hrvqvae.threads import in_parts

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_OPTIONS: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False,
    # sums over D may be reordered, so that they become vector instructions; NaN and infinity keep their meaning
    "fastmath": {"reassoc", "contract", "nsz"},
}  # fmt: skip
_ALONE = 1024  # vectors that are not worth a second thread
_TOGETHER, _AHEAD = 64, 4  # vectors that go down the tree together; how far ahead a codebook is asked for
_NEAR_VALUES = 2**14  # of a level whose codewords are in the innermost caches anyway
_SCORES, _LEAST_BLOCK = 2**21, 256  # scores that are held at once: 8 MiB, but of so many vectors at least


def _ask_for_line(_: Any, address: Any) -> Any:
    """Have the cache line at an address come in; nothing waits for it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = number(0), number(3), number(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), emit


_prefetch: Any = intrinsic(_ask_for_line)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _tree(latents: Floats, books: Any, first: int, last: int, size: int, paths: Integers, quantized: Floats) -> float:
    """Search latents[first:last], books: of each level, (m^l, D); -> sum of the squared residuals that are left.

    A few vectors go down together, so that the codebook of a later one can be on its way while one is searched.
    """
    dim = latents.shape[1]
    residual = np.empty((_TOGETHER, dim), np.float32)
    path = np.empty(_TOGETHER, np.int64)
    book_bytes = 4 * dim * size
    left = 0.0
    for start in range(first, last, _TOGETHER):
        count = min(_TOGETHER, last - start)
        for i in range(count):
            path[i] = 0
            for d in range(dim):
                residual[i, d] = latents[start + i, d]
                quantized[start + i, d] = 0.0
        for level in range(len(books)):
            book = books[level]
            address = book.ctypes.data
            far = book.size > _NEAR_VALUES
            for i in range(count):
                if far and i + _AHEAD < count:
                    for line in range(0, book_bytes, 64):
                        _prefetch(address + path[i + _AHEAD] * book_bytes + line)
                begin, child, nearest = path[i] * size, 0, np.float32(np.inf)
                for k in range(size):
                    distance: Any = np.float32(0.0)
                    for d in range(dim):
                        difference = residual[i, d] - book[begin + k, d]
                        distance += difference * difference
                    closer = distance < nearest  # selects, not branches: which child wins can't be predicted
                    child = k if closer else child
                    nearest = distance if closer else nearest
                path[i] = begin + child
                paths[level, start + i] = begin + child
                for d in range(dim):
                    quantized[start + i, d] += book[begin + child, d]
                    residual[i, d] -= book[begin + child, d]
                if level == len(books) - 1:
                    left += float(nearest)
    return left


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _nearest(
    scores: Floats, least: Floats, latents: Floats, codebook: Floats, largest: float, nearest: Integers
) -> None:
    """Nearest codeword: scores (n, K) = |c|^2 - 2 z.c, their minima (n,), latents (n, D), codebook (K, D) -> (n,)."""
    count, number = scores.shape
    dim = codebook.shape[1]
    for n in range(count):
        length: Any = np.float32(0.0)
        for d in range(dim):
            length += latents[n, d] * latents[n, d]
        # what rounding can hide: a dot product of D terms, on the scale of |z|^2 + |c|^2
        limit = np.float32(least[n] + 4e-7 * (8 + dim) * (length + largest))
        candidates, places = np.int32(0), np.int32(0)
        for k in range(number):
            near = np.int32(scores[n, k] <= limit)
            candidates += near
            places += near * np.int32(k)
        chosen = np.int64(places)
        if candidates != 1:
            best: Any = np.float32(np.inf)
            for k in range(number):
                if scores[n, k] <= limit:
                    distance: Any = np.float32(0.0)
                    for d in range(dim):
                        difference = latents[n, d] - codebook[k, d]
                        distance += difference * difference
                    if distance < best:
                        best, chosen = distance, np.int64(k)
        nearest[n] = chosen


def search_tree_compiled(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search.search_tree`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent is NaN, infinite, or too large to be squared.
    """
    count, dim = latents.shape
    books = tuple(codebook.detach().reshape(-1, dim).contiguous().numpy() for codebook in codebooks)
    vectors, size = latents.detach().numpy(), codebooks[0].shape[1]
    paths, quantized = torch.empty(len(books), count, dtype=torch.long), torch.empty(count, dim)
    out = paths.numpy(), quantized.numpy()
    left = sum(in_parts(count, lambda first, last: float(_tree(vectors, books, first, last, size, *out)), alone=_ALONE))
    if not np.isfinite(left):  # the distances are finite unless a latent is not: one number tells for all
        require_finite(latents)
        raise NonFiniteError("latents: values are too large to be squared in float32")
    return TreeSearch(paths, quantized)


def search_flat_compiled(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search.search_flat`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent is NaN or infinite.
    """
    require_finite(latents)
    latents, codebook = latents.detach(), codebook.detach().contiguous()
    words, lengths = codebook.numpy(), codebook.square().sum(-1)
    largest = float(lengths.max())
    nearest = torch.empty(len(latents), dtype=torch.long)
    block = max(_LEAST_BLOCK, min(_SCORES // len(codebook), len(latents)))
    scores = torch.empty(min(block, len(latents)), len(codebook))
    for start in range(0, len(latents), block):
        some = latents[start : start + block]
        part = torch.addmm(lengths, some, codebook.T, alpha=-2, out=scores[: len(some)])
        arrays = [tensor.numpy() for tensor in (part, part.amin(1), some)]
        found = nearest[start : start + block].numpy()

        def choose(first: int, last: int, arrays: list[Any] = arrays, found: Integers = found) -> None:
            _nearest(*(array[first:last] for array in arrays), words, largest, found[first:last])

        in_parts(len(some), choose, alone=_ALONE)
    return nearest
