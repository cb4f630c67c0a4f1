"""Loops over vectors of sixteen floats, in LLVM's portable vectors, for functions that numba compiles.

numba's own loops end each distance with a horizontal sum that costs more than the distance. Here eight distances have a
register each and are summed together, or codewords that lie side by side meet a few vectors in registers.

Addresses are bytes (int64); widths are floats, multiples of sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range, get_or_insert_function
from numba.extending import intrinsic

LANES, SIDE_BY_SIDE = 16, 8  # numbers of a vector register; codewords whose distances are summed at once
ROWS, GROUP = 4, 32  # vectors and codewords of a flat codebook that meet in registers
_INT = ir.IntType(32)


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


prefetch: Any = intrinsic(_ask_for_line)


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


def _eight_distances(builder: Any, vector: Any, book: Any, width: Any) -> Any:
    """A vector of the squared distances of a residual to eight codewords, from their addresses and the width."""
    floats, long = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
    fused = _multiply_add(builder, floats)
    bytes_each = builder.mul(width, long(4))

    def load(address: Any) -> Any:
        return builder.load(builder.inttoptr(address, floats.as_pointer()), align=4)

    def add(at: Any, sums: list[Any]) -> list[Any]:
        part, address, added = load(builder.add(vector, at)), builder.add(book, at), []
        for some in sums:
            difference = builder.fsub(part, load(address))
            added.append(builder.call(fused, [difference, difference, some]))
            address = builder.add(address, bytes_each)
        return added

    return _sum_lanes(builder, _loop_of_sums(builder, floats, SIDE_BY_SIDE, bytes_each, 4 * LANES, add))


def _nearest_of_eight(_: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Addresses of a residual and of eight codewords, floats of each -> the nearest, as a key.

    The key is the squared distance's bits above the codeword's index: squared distances are not negative, so their bits
    are in their order, and the least key is the nearest codeword, the first of equals.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integers, long = ir.VectorType(_INT, SIDE_BY_SIDE), ir.IntType(64)
        bits = builder.bitcast(_eight_distances(builder, *arguments), integers)
        kind = ir.FunctionType(_INT, [integers])
        reduce = _function(builder, kind, f"llvm.vector.reduce.smin.v{SIDE_BY_SIDE}i32")
        least = builder.call(reduce, [bits])
        same = builder.icmp_signed("==", bits, _everywhere(builder, integers, least))
        equal = builder.bitcast(same, ir.IntType(SIDE_BY_SIDE))
        first = builder.cttz(equal, ir.IntType(1)(1))
        return builder.or_(builder.shl(builder.sext(least, long), long(32)), builder.zext(first, long))

    return types.int64(types.int64, types.int64, types.int64), emit


def _meet_eight(
    _: Any, residual: Any, codewords: Any, width: Any, added: Any, place: Any, distances: Any, keys: Any
) -> Any:
    """Addresses of a residual and of eight codewords, floats of each, and a number that is not negative.

    Write at the last two addresses eight distances, and keys (int64) that are in the order of the distances plus the
    number: a sum's bits above `place`, `place` + 1, ...
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, book, number, added, place, *out = arguments
        long, eight = ir.IntType(64), ir.VectorType(ir.FloatType(), SIDE_BY_SIDE)
        whole = ir.VectorType(long, SIDE_BY_SIDE)
        distances = _eight_distances(builder, vector, book, number)
        sums = builder.fadd(distances, _everywhere(builder, eight, added))
        bits = builder.bitcast(sums, ir.VectorType(_INT, SIDE_BY_SIDE))
        high = builder.shl(builder.sext(bits, whole), ir.Constant(whole, [32] * SIDE_BY_SIDE))
        low = builder.add(_everywhere(builder, whole, place), ir.Constant(whole, list(range(SIDE_BY_SIDE))))
        for address, values in zip(out, (distances, builder.or_(high, low)), strict=True):
            builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, types.float32, *[types.int64] * 3), emit


def _subtract_codeword(_: Any, residual: Any, codeword: Any, out: Any, width: Any) -> Any:
    """Addresses of three vectors, floats of each: out = residual - codeword."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, long = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        with for_range(builder, builder.udiv(arguments[3], long(LANES)), intp=long) as loop:
            at = builder.mul(loop.index, long(4 * LANES))
            one, word, out = (builder.inttoptr(builder.add(start, at), floats.as_pointer()) for start in arguments[:3])
            builder.store(builder.fsub(builder.load(one, align=4), builder.load(word, align=4)), out, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), emit


key_of_nearest: Any = intrinsic(_nearest_of_eight)
meet_eight: Any = intrinsic(_meet_eight)
subtract: Any = intrinsic(_subtract_codeword)


def _meet_group(_: Any, vectors: Any, group: Any, dim: Any, best: Any, place: Any, number: Any) -> Any:
    """A few vectors against a group of codewords that lie side by side: lower the distances at `best` (vectors, group)
    and write `number` at `place` (vectors, group) where they get lower.

    Addresses of vectors (`ROWS`, D), group (D, `GROUP`), best and place; D; the group's number.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, integers, long = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_INT, LANES), ir.IntType(64)
        fused = _multiply_add(builder, floats)
        start, book, count, lowest, places, value = arguments
        row_bytes = builder.mul(count, long(4))

        def add(d: Any, sums: list[Any]) -> list[Any]:
            words = []
            for column in range(0, GROUP, LANES):
                address = builder.add(book, builder.add(builder.mul(d, long(4 * GROUP)), long(4 * column)))
                words.append(builder.load(builder.inttoptr(address, floats.as_pointer()), align=4))
            address = builder.add(start, builder.mul(d, long(4)))
            added: list[Any] = []
            for _row in range(ROWS):
                one = builder.load(builder.inttoptr(address, ir.FloatType().as_pointer()), align=4)
                everywhere = _everywhere(builder, floats, one)
                for some in words:
                    difference = builder.fsub(everywhere, some)
                    added.append(builder.call(fused, [difference, difference, sums[len(added)]]))
                address = builder.add(address, row_bytes)
            return added

        sums = _loop_of_sums(builder, floats, ROWS * GROUP // LANES, count, 1, add)
        group_number = _everywhere(builder, integers, builder.trunc(value, _INT))
        for i, distances in enumerate(sums):
            offset = long(4 * LANES * i)
            least = builder.inttoptr(builder.add(lowest, offset), floats.as_pointer())
            where = builder.inttoptr(builder.add(places, offset), integers.as_pointer())
            known, known_at = builder.load(least, align=4), builder.load(where, align=4)
            closer = builder.fcmp_ordered("<", distances, known)
            builder.store(builder.select(closer, distances, known), least, align=4)
            builder.store(builder.select(closer, group_number, known_at), where, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


meet: Any = intrinsic(_meet_group)
