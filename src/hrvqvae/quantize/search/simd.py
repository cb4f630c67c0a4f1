"""The innermost loops of the search, over registers of sixteen floats, as LLVM's portable vector
instructions.

In numba's own loops the sum over a register's lanes takes longer than the products.
`_eight_distances` sums the lanes of eight registers together; in `update_nearest` each lane has its
own codeword, so there is no such sum.

Compiled functions call those with `@_intrinsic`. All their arguments are int64: addresses in bytes,
widths in floats (multiples of sixteen), places in arrays. Here they are values of LLVM, which have
no types in Python, so nothing is annotated (pyproject.toml).
"""

from functools import wraps

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


def _intrinsic(emit):
    """Let compiled functions call emit(builder, *arguments), which adds instructions to them.

    The call returns the int64 that `emit` returns, or 0.
    """

    def generate(_context, builder, _signature, arguments):
        return emit(builder, *arguments) or _LONG(0)

    # `wraps` gives `typed` the signature of `emit`, which numba inspects. In place of the builder
    # numba passes a typing context.
    @wraps(emit)
    def typed(_typing_context, *arguments):
        return types.int64(*[types.int64] * len(arguments)), generate

    return intrinsic(typed)


def _load(builder, address, kind=_FLOATS):
    pointer = builder.inttoptr(address, kind.as_pointer())
    return builder.load(pointer, align=4)


def _store(builder, values, address):
    pointer = builder.inttoptr(address, values.type.as_pointer())
    builder.store(values, pointer, align=4)


def _offset(builder, address, index, item_bytes):
    """Return the address of an item of an array."""
    offset = builder.mul(index, _LONG(item_bytes))
    return builder.add(address, offset)


def _broadcast(builder, kind, value):
    """Return a register with the same value in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, kind.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


def _sum_squares(builder, count, differences):
    """Sum the squares of the registers differences(index) over range(count), count at least 1.

    Return as many registers as differences(index) has.
    """

    def add_square(difference, total):
        # "contract" makes both one instruction if the processor has it
        square = builder.fmul(difference, difference, flags=["contract"])
        return builder.fadd(square, total, flags=["contract"])

    # variables of the loop, which LLVM keeps in registers
    zero = ir.Constant(_FLOATS, None)
    first = differences(_LONG(0))
    squares = [add_square(difference, zero) for difference in first]
    totals = [alloca_once_value(builder, square) for square in squares]
    with for_range(builder, count, start=_LONG(1), intp=_LONG) as loop:
        for total, difference in zip(totals, differences(loop.index), strict=True):
            added = add_square(difference, builder.load(total))
            builder.store(added, total)
    return [builder.load(total) for total in totals]


def _add_lanes(builder, left, right, first, second):
    """Return the sum of two choices of lanes of `left` and `right`.

    The lanes of `right` are numbered after those of `left`.
    """

    def take(lanes):
        kind = ir.VectorType(_INT, len(lanes))
        mask = ir.Constant(kind, lanes)
        return builder.shuffle_vector(left, right, mask)

    return builder.fadd(take(first), take(second))


def _eight_distances(builder, residual, codewords, width):
    """Return a register of the squared distances of a residual to eight codewords, from their
    addresses.
    """

    def differences(index):
        values = _load(builder, _offset(builder, residual, index, 4 * LANES))
        address = _offset(builder, codewords, index, 4 * LANES)
        result = []
        for _ in range(SIDE_BY_SIDE):
            codeword = _load(builder, address)
            result.append(builder.fsub(values, codeword))
            address = _offset(builder, address, width, 4)
        return result

    steps = builder.udiv(width, _LONG(LANES))
    sums = _sum_squares(builder, steps, differences)

    # From sixteen lanes per codeword to eight, and in three rounds to one. A round adds lanes at a
    # distance of `bit`. The first register of a pair gives the lanes of the result without this
    # bit, the second (lanes 8 to 15 of the pair) those with it. So the lanes of the result belong
    # to these of the codewords a-h:
    #   bit 1: a b a b a b a b  (a0 + a1, b0 + b1, a2 + a3, ...)
    #   bit 2: a b c d a b c d
    #   bit 4: a b c d e f g h
    first = list(range(8))
    second = list(range(8, 16))
    sums = [_add_lanes(builder, total, total, first, second) for total in sums]
    for bit in (1, 2, 4):
        first = [8 + lane - bit if lane & bit else lane for lane in range(8)]
        second = [lane + bit for lane in first]
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [_add_lanes(builder, *pair, first, second) for pair in pairs]
    return sums[0]


@_intrinsic
def measure_eight(
    builder,
    residual,
    codewords,
    width,
    coarser_cost,
    place,
    distances,
    keys,
):
    """Write the squared distances of a residual to eight codewords to distances[place:place + 8],
    and the keys (int64) of their costs to keys[place:place + 8].

    A cost is a distance plus the float at the address `coarser_cost`. The high 32 bits of a key are
    the cost, the low 32 bits the place. Costs are not negative, so their bits have the same order.
    """
    longs = ir.VectorType(_LONG, SIDE_BY_SIDE)
    squares = _eight_distances(builder, residual, codewords, width)
    coarser_cost = _load(builder, coarser_cost, ir.FloatType())
    coarser_costs = _broadcast(builder, squares.type, coarser_cost)
    costs = builder.fadd(squares, coarser_costs)

    # the keys: a cost above its place
    bits = builder.bitcast(costs, ir.VectorType(_INT, SIDE_BY_SIDE))
    half = ir.Constant(longs, [32] * SIDE_BY_SIDE)
    high = builder.sext(bits, longs)
    high = builder.shl(high, half)
    lanes = ir.Constant(longs, list(range(SIDE_BY_SIDE)))
    low = _broadcast(builder, longs, place)
    low = builder.add(low, lanes)

    distances = _offset(builder, distances, place, 4)
    _store(builder, squares, distances)
    keys = _offset(builder, keys, place, 8)
    _store(builder, builder.or_(high, low), keys)


@_intrinsic
def subtract(builder, residual, codeword, out, width):
    """Write residual - codeword to out, from the addresses and the width of these vectors."""
    steps = builder.udiv(width, _LONG(LANES))
    with for_range(builder, steps, intp=_LONG) as loop:
        offset = builder.mul(loop.index, _LONG(4 * LANES))
        left = _load(builder, builder.add(residual, offset))
        right = _load(builder, builder.add(codeword, offset))
        difference = builder.fsub(left, right)
        _store(builder, difference, builder.add(out, offset))


@_intrinsic
def update_nearest(
    builder,
    vectors,
    codewords,
    dim,
    least,
    blocks,
    block,
):
    """Compare vectors (`ROWS`, D) with the codewords (D, `COLUMNS`) of a block, from addresses.

    For each vector and column, `least` (`ROWS`, `COLUMNS`) is the least distance in all blocks so
    far, and `blocks` the block that has it. The caller takes the least of the columns.
    """

    def differences(d):
        # channel d of all columns, in registers
        registers = []
        address = _offset(builder, codewords, d, 4 * COLUMNS)
        for _ in range(COLUMNS // LANES):
            registers.append(_load(builder, address))
            address = builder.add(address, _LONG(4 * LANES))

        # in the order of `least` and `blocks`: vector by vector, register by register
        address = _offset(builder, vectors, d, 4)
        result = []
        for _ in range(ROWS):
            channel = _load(builder, address, ir.FloatType())
            values = _broadcast(builder, _FLOATS, channel)
            result += [builder.fsub(values, columns) for columns in registers]
            address = _offset(builder, address, dim, 4)
        return result

    integers = ir.VectorType(_INT, LANES)
    block = builder.trunc(block, _INT)
    this_block = _broadcast(builder, integers, block)
    for distances in _sum_squares(builder, dim, differences):
        old_least = _load(builder, least)
        is_closer = builder.fcmp_ordered("<", distances, old_least)
        new_least = builder.select(is_closer, distances, old_least)
        _store(builder, new_least, least)

        old_block = _load(builder, blocks, integers)
        new_block = builder.select(is_closer, this_block, old_block)
        _store(builder, new_block, blocks)

        # the next register
        least = builder.add(least, _LONG(4 * LANES))
        blocks = builder.add(blocks, _LONG(4 * LANES))
