"""The searches as loops compiled by numba: same signatures and same answers as the plain ones in `reference.py`.

Tree: all levels in one pass over the vectors. A residual (D floats) and the m codewords of one codebook stay in the
innermost cache, nothing of size (N, m, D) exists, the input is not copied, and only the paths and the sum are written.
Codebooks that lie in memory are asked for a few vectors ahead. The work is N * L * m * D subtractions and
multiply-adds, m filled up to a multiple of 8 and D to one of 16. Distances are summed in the direct form
sum((r - c)^2), which keeps its accuracy where codewords lie far from the origin.

Flat: the same distances, 32 codewords against a block of vectors at a time, so that both stay in cache; they lie side
by side in a copy of the codebook that each call makes.

The innermost loops (`_nearest_of_eight`, `_meet_group`) are written in LLVM's portable vectors of sixteen lanes, since
numba's own end each distance with a horizontal sum that costs more than the distance.

Compiled code is kept on disk (`jit/cache.py`), so only the first process pays: about a second for each number of
levels and memory layout of the latents, some three for the flat search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range, get_or_insert_function
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.errors import NonFiniteError
from hrvqvae.jit.cache import compiled
from hrvqvae.jit.threads import in_parts
from hrvqvae.quantize.search.reference import TreeSearch, require_finite

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
_ALONE = 1024  # vectors that are not worth a second thread
_TOGETHER, _AHEAD = 64, 4  # vectors that go down the tree together; how far ahead a codebook is asked for
_NEAR_VALUES = 2**14  # of a level whose codewords are in the innermost caches anyway
_LANES, _SIDE_BY_SIDE = 16, 8  # numbers of a vector register; codewords whose distances are summed at once
_INT = ir.IntType(32)
_BLOCK = 128  # vectors that a flat codebook is read once for
_LARGEST_KEY = np.int64(2**63 - 1)
_ROWS, _GROUP = 4, 32  # vectors and codewords of it that meet in registers


def _ask_for_line(_: Any, address: Any) -> Any:
    """Have the cache line at an address come in; nothing waits for it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = _INT(0), _INT(3), _INT(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), emit


_prefetch: Any = intrinsic(_ask_for_line)


def _everywhere(builder: Any, kind: Any, value: Any) -> Any:
    """A vector with the same value in every lane."""
    alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
    mask = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(alone, ir.Constant(kind, ir.Undefined), mask)


def _function(builder: Any, kind: Any, name: str) -> Any:
    """One of LLVM's own functions."""
    return get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]


def _multiply_add(builder: Any, kind: Any) -> Any:
    """a * b + c of vectors of floats, fused where the processor can."""
    function = ir.FunctionType(kind, [kind] * 3)
    return _function(builder, function, f"llvm.fmuladd.v{kind.count}f32")


def _loop_of_sums(
    builder: Any, kind: Any, number: int, stop: Any, stride: int, add: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Vectors that begin at zero, each replaced by what `add(index, vectors)` gives for index 0, stride, ... < stop."""
    long = ir.IntType(64)
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(long)
    sums = [builder.phi(kind) for _ in range(number)]
    added = add(index, sums)
    following = builder.add(index, long(stride))
    index.add_incoming(long(0), before)
    index.add_incoming(following, loop)
    for some, more in zip(sums, added, strict=True):
        some.add_incoming(ir.Constant(kind, [0.0] * kind.count), before)
        some.add_incoming(more, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)
    builder.position_at_end(after)
    return added


def _sum_lanes(builder: Any, sums: list[Any]) -> Any:
    """Eight vectors of sixteen lanes -> one vector with the sum of each."""

    def add(one: Any, other: Any, first: list[int], second: list[int]) -> Any:
        masks = [ir.Constant(ir.VectorType(_INT, len(lanes)), lanes) for lanes in (first, second)]
        return builder.fadd(*(builder.shuffle_vector(one, other, mask) for mask in masks))

    halves = [add(one, one, list(range(8)), list(range(8, 16))) for one in sums]
    steps = (
        ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
        ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
        ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    )
    for first, second in steps:
        halves = [add(one, other, first, second) for one, other in zip(halves[::2], halves[1::2], strict=True)]
    return halves[0]


def _nearest_of_eight(_: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Addresses of a residual and of eight codewords, floats of each (a multiple of sixteen) -> the nearest, as a key.

    The key is the squared distance's bits above the codeword's index: squared distances are not negative, so their bits
    are in their order, and the least key is the nearest codeword, the first of equals.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, long = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)
        fused = _multiply_add(builder, floats)
        vector, book, number = arguments
        bytes_each = builder.mul(number, long(4))

        def load(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, floats.as_pointer()), align=4)

        def add(at: Any, sums: list[Any]) -> list[Any]:
            part, address, added = load(builder.add(vector, at)), builder.add(book, at), []
            for some in sums:
                difference = builder.fsub(part, load(address))
                added.append(builder.call(fused, [difference, difference, some]))
                address = builder.add(address, bytes_each)
            return added

        sums = _loop_of_sums(builder, floats, _SIDE_BY_SIDE, bytes_each, 4 * _LANES, add)
        integers = ir.VectorType(_INT, _SIDE_BY_SIDE)
        bits = builder.bitcast(_sum_lanes(builder, sums), integers)
        kind = ir.FunctionType(_INT, [integers])
        reduce = _function(builder, kind, f"llvm.vector.reduce.smin.v{_SIDE_BY_SIDE}i32")
        least = builder.call(reduce, [bits])
        same = builder.icmp_signed("==", bits, _everywhere(builder, integers, least))
        equal = builder.bitcast(same, ir.IntType(_SIDE_BY_SIDE))
        first = builder.cttz(equal, ir.IntType(1)(1))
        return builder.or_(builder.shl(builder.sext(least, long), long(32)), builder.zext(first, long))

    return types.int64(types.int64, types.int64, types.int64), emit


def _take_codeword(_: Any, residual: Any, total: Any, codeword: Any, width: Any) -> Any:
    """Addresses of three vectors, floats of each (a multiple of sixteen): residual -= codeword, total += codeword."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, long = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)
        with for_range(builder, arguments[3], intp=long) as loop:
            at = builder.mul(loop.index, long(4 * _LANES))
            left, sum_, word = (
                builder.inttoptr(builder.add(start, at), floats.as_pointer()) for start in arguments[:3]
            )
            chosen = builder.load(word, align=4)
            builder.store(builder.fsub(builder.load(left, align=4), chosen), left, align=4)
            builder.store(builder.fadd(builder.load(sum_, align=4), chosen), sum_, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), emit


_key_of_nearest: Any = intrinsic(_nearest_of_eight)
_take: Any = intrinsic(_take_codeword)


@compiled(**_OPTIONS)
def _tree(latents: Floats, books: Any, first: int, last: int, size: int, paths: Integers, quantized: Floats) -> float:
    """Search latents[first:last] (N, D); books of each level, (m^l * G, W), are filled up to groups of eight codewords
    a codebook and to whole vectors of sixteen numbers; -> sum of the squared residuals that are left.

    A few vectors go down together, so that the codebook of a later one can be on its way while one is searched.
    """
    dim, width = latents.shape[1], books[0].shape[1]
    filled = -(-size // _SIDE_BY_SIDE) * _SIDE_BY_SIDE
    residual, total = np.zeros((_TOGETHER, width), np.float32), np.empty((_TOGETHER, width), np.float32)
    path = np.empty(_TOGETHER, np.int64)
    group_bytes, book_bytes = 4 * width * _SIDE_BY_SIDE, 4 * width * filled
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
                        _prefetch(address + path[i + _AHEAD] * book_bytes + line)
                group = address + path[i] * book_bytes
                key = _key_of_nearest(vector, group, width)
                for k in range(_SIDE_BY_SIDE, filled, _SIDE_BY_SIDE):
                    group += group_bytes
                    key = min(key, _key_of_nearest(vector, group, width) + k)
                child = min(key & 0xFFFFFFFF, size - 1)  # a filled-up place where the latent is not finite
                _take(vector, sum_, address + path[i] * book_bytes + 4 * width * child, width // _LANES)
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


def _meet_group(_: Any, vectors: Any, group: Any, dim: Any, best: Any, place: Any, number: Any) -> Any:
    """A few vectors against a group of codewords that lie side by side: lower the distances at `best` (vectors, group)
    and write `number` at `place` (vectors, group) where they get lower.

    Addresses of vectors (`_ROWS`, D), group (D, `_GROUP`), best and place; D; the group's number.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, integers, long = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(_INT, _LANES), ir.IntType(64)
        fused = _multiply_add(builder, floats)
        start, book, count, lowest, places, value = arguments
        row_bytes = builder.mul(count, long(4))

        def add(d: Any, sums: list[Any]) -> list[Any]:
            words = []
            for column in range(0, _GROUP, _LANES):
                address = builder.add(book, builder.add(builder.mul(d, long(4 * _GROUP)), long(4 * column)))
                words.append(builder.load(builder.inttoptr(address, floats.as_pointer()), align=4))
            address = builder.add(start, builder.mul(d, long(4)))
            added: list[Any] = []
            for _row in range(_ROWS):
                one = builder.load(builder.inttoptr(address, ir.FloatType().as_pointer()), align=4)
                everywhere = _everywhere(builder, floats, one)
                for some in words:
                    difference = builder.fsub(everywhere, some)
                    added.append(builder.call(fused, [difference, difference, sums[len(added)]]))
                address = builder.add(address, row_bytes)
            return added

        sums = _loop_of_sums(builder, floats, _ROWS * _GROUP // _LANES, count, 1, add)
        group_number = _everywhere(builder, integers, builder.trunc(value, _INT))
        for i, distances in enumerate(sums):
            offset = long(4 * _LANES * i)
            least = builder.inttoptr(builder.add(lowest, offset), floats.as_pointer())
            where = builder.inttoptr(builder.add(places, offset), integers.as_pointer())
            known, known_at = builder.load(least, align=4), builder.load(where, align=4)
            closer = builder.fcmp_ordered("<", distances, known)
            builder.store(builder.select(closer, distances, known), least, align=4)
            builder.store(builder.select(closer, group_number, known_at), where, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


_meet: Any = intrinsic(_meet_group)


@compiled(**_OPTIONS)
def _flat(latents: Floats, book: Floats, first: int, last: int, nearest: Integers) -> float:
    """Search latents[first:last] (N, D); book (K / `_GROUP`, D, `_GROUP`), codewords of a group side by side, infinity
    where there is none; -> sum of the squared distances of the nearest.

    A group in cache meets all vectors of a block, so that the codebook is read once a block.
    """
    dim = latents.shape[1]
    vectors = np.zeros((_BLOCK, dim), np.float32)
    best, place = np.empty((_BLOCK, _GROUP), np.float32), np.empty((_BLOCK, _GROUP), np.int32)
    bits = best.view(np.int32)
    left = 0.0
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        vectors[:count] = latents[start : start + count]
        best[:], place[:] = np.inf, 0
        group = np.int64(book.ctypes.data)
        for number in range(len(book)):
            for i in range(0, count, _ROWS):
                some, lowest = np.int64(vectors[i:].ctypes.data), np.int64(best[i:].ctypes.data)
                _meet(some, group, dim, lowest, np.int64(place[i:].ctypes.data), number)
            group += 4 * dim * _GROUP
        for i in range(count):
            key: Any = _LARGEST_KEY  # as of `_nearest_of_eight`
            for lane in range(_GROUP):
                word = np.int64(place[i, lane]) * _GROUP + lane
                key = min(key, (np.int64(bits[i, lane]) << 32) + word)
            nearest[start + i] = key & 0xFFFFFFFF
            left += float(np.int32(key >> 32).view(np.float32))
    return left


def _filled(codebooks: Tensor) -> Tensor:
    """(books, m, D) filled up to multiples of 8 codewords, infinitely far away, and of 16 numbers, zero."""
    _, size, dim = codebooks.shape
    wide = pad(codebooks, (0, -dim % _LANES)) if dim % _LANES else codebooks
    many = pad(wide, (0, 0, 0, -size % _SIDE_BY_SIDE), value=torch.inf) if size % _SIDE_BY_SIDE else wide
    return many.contiguous()


def search_tree_compiled(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `reference.search_tree`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent or a codeword that is met is NaN, infinite, or too large to be squared.
    """
    count, dim = latents.shape
    books = tuple(_filled(codebook.detach()).flatten(0, 1).numpy() for codebook in codebooks)
    vectors, size = latents.detach().numpy(), codebooks[0].shape[1]
    paths, quantized = torch.empty(len(books), count, dtype=torch.long), torch.empty(count, dim)
    out = paths.numpy(), quantized.numpy()
    left = sum(in_parts(count, lambda first, last: float(_tree(vectors, books, first, last, size, *out)), alone=_ALONE))
    _require_finite_sum(left, latents, codebooks)
    return TreeSearch(paths, quantized)


def search_flat_compiled(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `reference.search_flat`, for float32 tensors on the CPU.

    Raises:
        NonFiniteError: a latent or the codewords are NaN, infinite, or too large to be squared.
    """
    missing, dim = -len(codebook) % _GROUP, codebook.shape[1]
    filled = pad(codebook.detach(), (0, 0, 0, missing), value=torch.inf) if missing else codebook.detach()
    book = filled.reshape(-1, _GROUP, dim).transpose(1, 2).contiguous().numpy()
    vectors = latents.detach().numpy()
    nearest = torch.empty(len(latents), dtype=torch.long)
    out = nearest.numpy()
    alone = max(1, _ALONE // len(book))
    left = sum(in_parts(len(latents), lambda first, last: float(_flat(vectors, book, first, last, out)), alone=alone))
    _require_finite_sum(left, latents, [codebook])
    return nearest


def _require_finite_sum(left: float, latents: Tensor, codebooks: Sequence[Tensor]) -> None:
    """Raises NonFiniteError: the least distances are finite unless a latent or codeword is not; so is their sum."""
    if not np.isfinite(left):
        require_finite(latents, codebooks)
        raise NonFiniteError("latents or codewords are too large for their distances to be squared in float32")
