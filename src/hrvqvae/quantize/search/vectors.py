"""The innermost loops of the search, over vectors of sixteen floats, as LLVM's portable vector instructions.

In numba's own loops the horizontal sum of a distance costs more than the distance. Here eight are summed together, or
several vectors are compared with codewords that lie side by side.

Addresses are in bytes (int64); widths are in floats, multiples of sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range, get_or_insert_function
from numba.extending import intrinsic

LANES, SIDE_BY_SIDE = 16, 8  # floats of a vector register; codewords whose distances are summed at once
ROWS, GROUP = 4, 32  # vectors and codewords of a flat codebook that are compared in registers
_INT, _LONG = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _intrinsic(*kinds: Any, returns: Any = types.void) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that lets compiled functions call `emit(builder, *arguments)`, which writes instructions."""

    def decorated(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            value = emit(builder, *arguments)
            return context.get_dummy_value() if value is None else value

        @wraps(emit)  # numba inspects the parameters
        def typed(_: Any, *arguments: Any) -> Any:
            return returns(*kinds), generate

        return intrinsic(typed)

    return decorated


def _function(builder: Any, returns: Any, kinds: list[Any], name: str) -> Any:
    """Return one of LLVM's intrinsic functions."""
    return get_or_insert_function(builder.module, ir.FunctionType(returns, kinds), name)  # type: ignore[no-untyped-call]


def _load(builder: Any, address: Any, kind: Any = _FLOATS) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=4)


def _everywhere(builder: Any, kind: Any, value: Any) -> Any:
    """Return a vector with the same value in every lane."""
    alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
    mask = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(alone, ir.Constant(kind, ir.Undefined), mask)


def _add_square(builder: Any, vectors: Any, others: Any, total: Any) -> Any:
    """Return total + (vectors - others)^2, fused if the processor can."""
    difference = builder.fsub(vectors, others)
    fused = _function(builder, _FLOATS, [_FLOATS] * 3, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(fused, [difference, difference, total])


def _loop_of_sums(
    builder: Any, count: int, stop: Any, stride: int, add: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Return vectors that start at zero and are replaced by `add(index, vectors)` for index 0, stride, ... < stop."""
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_LONG)
    sums = [builder.phi(_FLOATS) for _ in range(count)]
    added = add(index, sums)
    following = builder.add(index, _LONG(stride))
    index.add_incoming(_LONG(0), before)
    index.add_incoming(following, loop)
    for before_sum, after_sum in zip(sums, added, strict=True):
        before_sum.add_incoming(ir.Constant(_FLOATS, [0.0] * LANES), before)
        before_sum.add_incoming(after_sum, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)
    builder.position_at_end(after)
    return added


def _sum_lanes(builder: Any, sums: list[Any]) -> Any:
    """Return one vector with the sums of eight vectors of sixteen lanes."""

    def add(vector: Any, partner: Any, first: list[int], second: list[int]) -> Any:
        masks = [ir.Constant(ir.VectorType(_INT, len(lanes)), lanes) for lanes in (first, second)]
        return builder.fadd(*(builder.shuffle_vector(vector, partner, mask) for mask in masks))

    halves = [add(vector, vector, list(range(8)), list(range(8, 16))) for vector in sums]
    steps = (
        ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
        ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
        ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    )
    for first, second in steps:
        halves = [
            add(vector, partner, first, second) for vector, partner in zip(halves[::2], halves[1::2], strict=True)
        ]
    return halves[0]


def _eight_distances(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return a vector of the squared distances of a residual to eight codewords, from their addresses."""
    bytes_each = builder.mul(width, _LONG(4))

    def add(at: Any, sums: list[Any]) -> list[Any]:
        part, address, added = _load(builder, builder.add(residual, at)), builder.add(codewords, at), []
        for total in sums:
            added.append(_add_square(builder, part, _load(builder, address), total))
            address = builder.add(address, bytes_each)
        return added

    return _sum_lanes(builder, _loop_of_sums(builder, SIDE_BY_SIDE, bytes_each, 4 * LANES, add))


@_intrinsic(types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at an address."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    read, keep, data = _INT(0), _INT(3), _INT(1)
    builder.call(function, [builder.inttoptr(address, pointer), read, keep, data])


@_intrinsic(*[types.int64] * 3, returns=types.int64)
def key_of_nearest(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return the nearest of eight codewords to a residual as a key, from their addresses.

    The key holds the bits of the squared distance above the index of the codeword. Squared distances are not negative,
    so their bits have the same order, and the least key is the nearest codeword, the first of equals.
    """
    integers = ir.VectorType(_INT, SIDE_BY_SIDE)
    bits = builder.bitcast(_eight_distances(builder, residual, codewords, width), integers)
    least = builder.call(_function(builder, _INT, [integers], f"llvm.vector.reduce.smin.v{SIDE_BY_SIDE}i32"), [bits])
    same = builder.icmp_signed("==", bits, _everywhere(builder, integers, least))
    first = builder.cttz(builder.bitcast(same, ir.IntType(SIDE_BY_SIDE)), ir.IntType(1)(1))
    return builder.or_(builder.shl(builder.sext(least, _LONG), _LONG(32)), builder.zext(first, _LONG))


@_intrinsic(*[types.int64] * 3, types.float32, *[types.int64] * 3)
def meet_eight(
    builder: Any, residual: Any, codewords: Any, width: Any, added: Any, place: Any, distances_at: Any, keys_at: Any
) -> None:
    """Write the distances of a residual to eight codewords, and their keys (int64).

    A key holds the bits of the distance plus `added`, which is not negative, above `place`, `place` + 1, ...
    """
    whole = ir.VectorType(_LONG, SIDE_BY_SIDE)
    distances = _eight_distances(builder, residual, codewords, width)
    sums = builder.fadd(distances, _everywhere(builder, distances.type, added))
    bits = builder.bitcast(sums, ir.VectorType(_INT, SIDE_BY_SIDE))
    high = builder.shl(builder.sext(bits, whole), ir.Constant(whole, [32] * SIDE_BY_SIDE))
    low = builder.add(_everywhere(builder, whole, place), ir.Constant(whole, list(range(SIDE_BY_SIDE))))
    _store(builder, distances, distances_at)
    _store(builder, builder.or_(high, low), keys_at)


@_intrinsic(*[types.int64] * 4)
def subtract(builder: Any, residual: Any, codeword: Any, out: Any, width: Any) -> None:
    """Write residual - codeword to out, from the addresses and the width of these vectors."""
    with for_range(builder, builder.udiv(width, _LONG(LANES)), intp=_LONG) as loop:
        at = builder.mul(loop.index, _LONG(4 * LANES))
        minuend, subtrahend = (_load(builder, builder.add(start, at)) for start in (residual, codeword))
        _store(builder, builder.fsub(minuend, subtrahend), builder.add(out, at))


@_intrinsic(*[types.int64] * 6)
def meet(builder: Any, vectors: Any, group: Any, dim: Any, best: Any, place: Any, index: Any) -> None:
    """Compare vectors (`ROWS`, D) with a group of codewords (D, `GROUP`), from addresses.

    Where a distance is less than in `best` (`ROWS`, `GROUP`), write it there, and the group's index to `place`.
    """
    integers, row_bytes = ir.VectorType(_INT, LANES), builder.mul(dim, _LONG(4))

    def add(d: Any, sums: list[Any]) -> list[Any]:
        line = builder.add(group, builder.mul(d, _LONG(4 * GROUP)))
        words = [_load(builder, builder.add(line, _LONG(4 * column))) for column in range(0, GROUP, LANES)]
        address, added = builder.add(vectors, builder.mul(d, _LONG(4))), []
        for row in range(ROWS):
            value = _everywhere(builder, _FLOATS, _load(builder, address, ir.FloatType()))
            row_sums = sums[row * len(words) : (row + 1) * len(words)]
            added += [_add_square(builder, value, *each) for each in zip(words, row_sums, strict=True)]
            address = builder.add(address, row_bytes)
        return added

    group_index = _everywhere(builder, integers, builder.trunc(index, _INT))
    for i, distances in enumerate(_loop_of_sums(builder, ROWS * GROUP // LANES, dim, 1, add)):
        lowest, where = (builder.add(start, _LONG(4 * LANES * i)) for start in (best, place))
        best_so_far, where_so_far = _load(builder, lowest), _load(builder, where, integers)
        closer = builder.fcmp_ordered("<", distances, best_so_far)
        _store(builder, builder.select(closer, distances, best_so_far), lowest)
        _store(builder, builder.select(closer, group_index, where_so_far), where)
