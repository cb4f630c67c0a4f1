"""The innermost loops of the search, over vectors of sixteen floats, as LLVM's portable vector
instructions.

In numba's own loops the sum over a register's lanes takes longer than the products. Here eight
registers are summed together, or each lane has its own codeword. Addresses are in bytes (int64),
widths in floats, multiples of sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range
from numba.extending import intrinsic

# floats per vector register; codewords whose distances are summed together
LANES = 16
SIDE_BY_SIDE = 8
# a tile: vectors, and codewords of a flat codebook, that `update_nearest` compares in registers
ROWS = 4
COLUMNS = 32
_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _intrinsic(*kinds: Any, returns: Any = types.void) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator for functions `emit(builder, *arguments)` that add instructions to their
    compiled callers.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return emit(builder, *arguments) or context.get_dummy_value()

        @wraps(emit)  # numba inspects the parameters
        def typed(_: Any, *arguments: Any) -> Any:
            return returns(*kinds), generate

        return intrinsic(typed)

    return decorate


def _load(builder: Any, address: Any, kind: Any = _FLOATS) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=4)


def _broadcast(builder: Any, kind: Any, value: Any) -> Any:
    """Return a vector with the same value in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
    mask = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


def _add_square(builder: Any, vectors: Any, others: Any, total: Any) -> Any:
    """Return total + (vectors - others)^2, with a fused multiply-add if the processor has one."""
    difference = builder.fsub(vectors, others)
    fused = builder.module.declare_intrinsic(
        f"llvm.fmuladd.v{LANES}f32", fnty=ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    )
    return builder.call(fused, [difference, difference, total])


def _loop_of_sums(
    builder: Any, count: int, stop: Any, stride: int, add: Callable[..., list[Any]]
) -> list[Any]:
    """Sum `count` vectors from zero in a loop: sums = add(index, sums) for index 0, stride, ... <
    stop.
    """
    before = builder.block
    loop = builder.append_basic_block("loop")
    after = builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_LONG)
    sums = [builder.phi(_FLOATS) for _ in range(count)]
    new_sums = add(index, sums)
    next_index = builder.add(index, _LONG(stride))
    for phi, new in zip([index, *sums], [next_index, *new_sums], strict=True):
        phi.add_incoming(ir.Constant(phi.type, None), before)  # zero
        phi.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", next_index, stop), loop, after)
    builder.position_at_end(after)
    return new_sums


def _sum_lanes(builder: Any, sums: list[Any]) -> Any:
    """Return one vector of eight lanes with the sums of eight vectors of sixteen lanes, as a tree
    of pairwise sums.
    """

    def add(left: Any, right: Any, first: list[int], second: list[int]) -> Any:
        masks = [ir.Constant(ir.VectorType(_INT, len(lanes)), lanes) for lanes in (first, second)]
        return builder.fadd(*(builder.shuffle_vector(left, right, mask) for mask in masks))

    sums = [add(vector, vector, list(range(8)), list(range(8, 16))) for vector in sums]
    for bit in (1, 2, 4):
        # Lanes of a pair of vectors (0 to 7, 8 to 15) that are added: neighbours at a distance of
        # `bit`. With bit 1: 0 + 1, 8 + 9, 2 + 3, 10 + 11, ...
        first = [(lane & ~bit) + (8 if lane & bit else 0) for lane in range(8)]
        second = [lane + bit for lane in first]
        sums = [
            add(left, right, first, second)
            for left, right in zip(sums[::2], sums[1::2], strict=True)
        ]
    return sums[0]


def _eight_distances(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return a vector of the squared distances of a residual to eight codewords, from their
    addresses.
    """
    row_bytes = builder.mul(width, _LONG(4))

    def add(offset: Any, sums: list[Any]) -> list[Any]:
        values = _load(builder, builder.add(residual, offset))
        address = builder.add(codewords, offset)
        added = []
        for total in sums:
            added.append(_add_square(builder, values, _load(builder, address), total))
            address = builder.add(address, row_bytes)
        return added

    return _sum_lanes(builder, _loop_of_sums(builder, SIDE_BY_SIDE, row_bytes, 4 * LANES, add))


@_intrinsic(*[types.int64] * 3, returns=types.int64)
def key_of_nearest(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return the key of the nearest of eight codewords to a residual, from their addresses.

    A key holds the bits of the squared distance above the index of the codeword. Squared distances
    are not negative, so their bits have the same order, and the least key is the nearest codeword,
    the first of equals.
    """
    integers = ir.VectorType(_INT, SIDE_BY_SIDE)
    bits = builder.bitcast(_eight_distances(builder, residual, codewords, width), integers)
    kind = ir.FunctionType(_INT, [integers])
    name = f"llvm.vector.reduce.smin.v{SIDE_BY_SIDE}i32"
    least = builder.call(builder.module.declare_intrinsic(name, fnty=kind), [bits])
    same = builder.icmp_signed("==", bits, _broadcast(builder, integers, least))
    first = builder.cttz(builder.bitcast(same, ir.IntType(SIDE_BY_SIDE)), ir.IntType(1)(1))
    return builder.or_(
        builder.shl(builder.sext(least, _LONG), _LONG(32)), builder.zext(first, _LONG)
    )


@_intrinsic(*[types.int64] * 3, types.float32, *[types.int64] * 3)
def measure_eight(
    builder: Any,
    residual: Any,
    codewords: Any,
    width: Any,
    added: Any,
    place: Any,
    distances: Any,
    keys: Any,
) -> None:
    """Write the squared distances of a residual to eight codewords, and their keys, to `place` and
    after it.

    A key (int64) holds the bits of the distance plus `added`, which is not negative, above its own
    place.
    """
    longs = ir.VectorType(_LONG, SIDE_BY_SIDE)
    squares = _eight_distances(builder, residual, codewords, width)
    costs = builder.fadd(squares, _broadcast(builder, squares.type, added))
    bits = builder.bitcast(costs, ir.VectorType(_INT, SIDE_BY_SIDE))
    high = builder.shl(builder.sext(bits, longs), ir.Constant(longs, [32] * SIDE_BY_SIDE))
    low = builder.add(
        _broadcast(builder, longs, place), ir.Constant(longs, list(range(SIDE_BY_SIDE)))
    )
    _store(builder, squares, builder.add(distances, builder.mul(place, _LONG(4))))
    _store(builder, builder.or_(high, low), builder.add(keys, builder.mul(place, _LONG(8))))


@_intrinsic(*[types.int64] * 4)
def subtract(builder: Any, residual: Any, codeword: Any, out: Any, width: Any) -> None:
    """Write residual - codeword to out, from the addresses and the width of these vectors."""
    with for_range(builder, builder.udiv(width, _LONG(LANES)), intp=_LONG) as loop:
        offset = builder.mul(loop.index, _LONG(4 * LANES))
        minuend, subtrahend = (
            _load(builder, builder.add(start, offset)) for start in (residual, codeword)
        )
        _store(builder, builder.fsub(minuend, subtrahend), builder.add(out, offset))


@_intrinsic(*[types.int64] * 6)
def update_nearest(
    builder: Any, vectors: Any, codewords: Any, dim: Any, least: Any, tiles: Any, tile: Any
) -> None:
    """Compare vectors (`ROWS`, D) with the codewords (D, `COLUMNS`) of a tile, from addresses.

    Where a distance is less than in `least` (`ROWS`, `COLUMNS`), write it there, and the number of
    the tile to `tiles`.
    """
    integers = ir.VectorType(_INT, LANES)
    row_bytes = builder.mul(dim, _LONG(4))

    def add(d: Any, sums: list[Any]) -> list[Any]:
        line = builder.add(codewords, builder.mul(d, _LONG(4 * COLUMNS)))
        words = [
            _load(builder, builder.add(line, _LONG(4 * column)))
            for column in range(0, COLUMNS, LANES)
        ]
        address = builder.add(vectors, builder.mul(d, _LONG(4)))
        added = []
        for row in range(ROWS):
            value = _broadcast(builder, _FLOATS, _load(builder, address, ir.FloatType()))
            row_sums = sums[row * len(words) : (row + 1) * len(words)]
            added += [
                _add_square(builder, value, *each) for each in zip(words, row_sums, strict=True)
            ]
            address = builder.add(address, row_bytes)
        return added

    tile = _broadcast(builder, integers, builder.trunc(tile, _INT))
    for i, distances in enumerate(_loop_of_sums(builder, ROWS * COLUMNS // LANES, dim, 1, add)):
        least_at, tiles_at = (builder.add(start, _LONG(4 * LANES * i)) for start in (least, tiles))
        old_least = _load(builder, least_at)
        old_tiles = _load(builder, tiles_at, integers)
        closer = builder.fcmp_ordered("<", distances, old_least)
        _store(builder, builder.select(closer, distances, old_least), least_at)
        _store(builder, builder.select(closer, tile, old_tiles), tiles_at)
