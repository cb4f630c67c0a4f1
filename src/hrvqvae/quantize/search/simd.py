"""The innermost loops of the search, over registers of sixteen floats, as LLVM's portable vector
instructions.

In numba's own loops the sum over a register's lanes takes longer than the products.
`_eight_distances` sums the lanes of eight registers in one tree; in `update_nearest` each lane has
its own codeword, so there is no such sum.

Compiled functions call those with `@_intrinsic`. All their arguments are int64: addresses in bytes,
widths in floats (multiples of sixteen), places in arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic

LANES = 16  # floats per register
SIDE_BY_SIDE = 8  # codewords per call, half of LANES
# `update_nearest` compares ROWS vectors with a block of COLUMNS codewords of a flat codebook
ROWS = 4
COLUMNS = 32
_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _intrinsic(emit: Callable[..., Any]) -> Any:
    """Let compiled functions call emit(builder, *arguments), which adds instructions to them.

    The call returns the int64 that `emit` returns, or 0.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return emit(builder, *arguments) or _LONG(0)

    # numba takes the parameters of `emit` for those of `typed`: there the first is no builder
    @wraps(emit)
    def typed(_typing_context: Any, *arguments: Any) -> Any:
        return types.int64(*[types.int64] * len(arguments)), generate

    return intrinsic(typed)


def _load(builder: Any, address: Any, kind: Any = _FLOATS) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=4)


def _offset(builder: Any, address: Any, index: Any, item_bytes: int) -> Any:
    """Return the address of an item of an array."""
    return builder.add(address, builder.mul(index, _LONG(item_bytes)))


def _broadcast(builder: Any, kind: Any, value: Any) -> Any:
    """Return a register with the same value in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _call(builder: Any, name: str, returns: Any, *arguments: Any) -> Any:
    """Call a function of LLVM."""
    function = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=function), arguments)


def _sum_squares(builder: Any, count: Any, differences: Callable[[Any], list[Any]]) -> list[Any]:
    """Return registers with the sums of squared differences: those of differences(index) are added
    for each index in range(count), at least for 0.
    """

    def add_square(difference: Any, total: Any) -> Any:
        # a fused multiply-add if the processor has one
        name = f"llvm.fmuladd.v{LANES}f32"
        return _call(builder, name, _FLOATS, difference, difference, total)

    zero = ir.Constant(_FLOATS, None)
    make_variable: Any = alloca_once_value  # LLVM keeps it in a register
    first = differences(_LONG(0))
    totals = [make_variable(builder, add_square(difference, zero)) for difference in first]
    with for_range(builder, count, start=_LONG(1), intp=_LONG) as loop:
        for total, difference in zip(totals, differences(loop.index), strict=True):
            builder.store(add_square(difference, builder.load(total)), total)
    return [builder.load(total) for total in totals]


def _add_lanes(builder: Any, left: Any, right: Any, first: list[int], second: list[int]) -> Any:
    """Return the sum of lanes `first` and lanes `second` of two registers side by side."""
    masks = [ir.Constant(ir.VectorType(_INT, len(lanes)), lanes) for lanes in (first, second)]
    return builder.fadd(*(builder.shuffle_vector(left, right, mask) for mask in masks))


def _eight_distances(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return a register of the squared distances of a residual to eight codewords, from their
    addresses.
    """

    def differences(index: Any) -> list[Any]:
        values = _load(builder, _offset(builder, residual, index, 4 * LANES))
        address = _offset(builder, codewords, index, 4 * LANES)
        result = []
        for _ in range(SIDE_BY_SIDE):
            result.append(builder.fsub(values, _load(builder, address)))
            address = _offset(builder, address, width, 4)
        return result

    steps = builder.udiv(width, _LONG(LANES))
    sums = _sum_squares(builder, steps, differences)

    # Sixteen lanes to eight; then neighbours, so that one has lanes of two, four, eight sums.
    # Lanes of a pair (0 to 7, 8 to 15) are added at a distance of `bit`: with bit 1 they are 0 + 1,
    # 8 + 9, 2 + 3, 10 + 11, ... At last lane i is the sum of sums[i].
    sums = [_add_lanes(builder, total, total, [*range(8)], [*range(8, 16)]) for total in sums]
    for bit in (1, 2, 4):
        first = [(lane & ~bit) + (8 if lane & bit else 0) for lane in range(8)]
        second = [lane + bit for lane in first]
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [_add_lanes(builder, *pair, first, second) for pair in pairs]
    return sums[0]


@_intrinsic
def key_of_nearest(builder: Any, residual: Any, codewords: Any, width: Any) -> Any:
    """Return the key of the nearest of eight codewords to a residual, from their addresses.

    The high 32 bits of a key are the squared distance, the low 32 bits the codeword, 0 to 7.
    Squared distances are not negative, so their bits have the same order: the least key is that of
    the nearest codeword, the first of equals.
    """
    integers = ir.VectorType(_INT, SIDE_BY_SIDE)
    bits = builder.bitcast(_eight_distances(builder, residual, codewords, width), integers)
    least = _call(builder, f"llvm.vector.reduce.smin.v{SIDE_BY_SIDE}i32", _INT, bits)
    is_least = builder.icmp_signed("==", bits, _broadcast(builder, integers, least))
    mask = builder.bitcast(is_least, ir.IntType(SIDE_BY_SIDE))  # a bit per lane
    first = builder.cttz(mask, ir.IntType(1)(1))  # true: the mask is never zero
    high = builder.shl(builder.sext(least, _LONG), _LONG(32))
    return builder.or_(high, builder.zext(first, _LONG))


@_intrinsic
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
    """Write the squared distances of a residual to eight codewords to distances[place:place + 8],
    and the keys (int64) of their costs to keys[place:place + 8].

    A cost is a distance plus the float at the address `added`, which is not negative.
    """
    longs = ir.VectorType(_LONG, SIDE_BY_SIDE)
    squares = _eight_distances(builder, residual, codewords, width)
    added = _broadcast(builder, squares.type, _load(builder, added, ir.FloatType()))
    bits = builder.bitcast(builder.fadd(squares, added), ir.VectorType(_INT, SIDE_BY_SIDE))
    high = builder.shl(builder.sext(bits, longs), ir.Constant(longs, [32] * SIDE_BY_SIDE))
    lanes = ir.Constant(longs, list(range(SIDE_BY_SIDE)))
    low = builder.add(_broadcast(builder, longs, place), lanes)
    _store(builder, squares, _offset(builder, distances, place, 4))
    _store(builder, builder.or_(high, low), _offset(builder, keys, place, 8))


@_intrinsic
def subtract(builder: Any, residual: Any, codeword: Any, out: Any, width: Any) -> None:
    """Write residual - codeword to out, from the addresses and the width of these vectors."""
    with for_range(builder, builder.udiv(width, _LONG(LANES)), intp=_LONG) as loop:
        places = [_offset(builder, start, loop.index, 4 * LANES) for start in (residual, codeword)]
        difference = builder.fsub(*(_load(builder, place) for place in places))
        _store(builder, difference, _offset(builder, out, loop.index, 4 * LANES))


@_intrinsic
def update_nearest(
    builder: Any, vectors: Any, codewords: Any, dim: Any, least: Any, blocks: Any, block: Any
) -> None:
    """Compare vectors (`ROWS`, D) with the codewords (D, `COLUMNS`) of a block, from addresses.

    For each vector and column, `least` (`ROWS`, `COLUMNS`) is the least distance in all blocks so
    far, and `blocks` the block that has it. The caller takes the least of the columns.
    """

    def differences(d: Any) -> list[Any]:
        line = _offset(builder, codewords, d, 4 * COLUMNS)
        columns = [
            _load(builder, builder.add(line, _LONG(4 * column)))
            for column in range(0, COLUMNS, LANES)
        ]
        address = _offset(builder, vectors, d, 4)
        result = []
        for _ in range(ROWS):
            value = _broadcast(builder, _FLOATS, _load(builder, address, ir.FloatType()))
            result += [builder.fsub(value, column) for column in columns]
            address = _offset(builder, address, dim, 4)
        return result

    integers = ir.VectorType(_INT, LANES)
    block = _broadcast(builder, integers, builder.trunc(block, _INT))
    sums = _sum_squares(builder, dim, differences)
    for i, distances in enumerate(sums):
        least_at, block_at = (builder.add(start, _LONG(4 * LANES * i)) for start in (least, blocks))
        old_least = _load(builder, least_at)
        closer = builder.fcmp_ordered("<", distances, old_least)
        _store(builder, builder.select(closer, distances, old_least), least_at)
        old_block = _load(builder, block_at, integers)
        _store(builder, builder.select(closer, block, old_block), block_at)
