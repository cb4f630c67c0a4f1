"""The innermost loops of the search, over registers of sixteen floats, as LLVM's portable vector
instructions.

In numba's own loops the sum over a register's lanes takes longer than the products.
`_eight_distances` sums the lanes of eight registers together; in `update_nearest` each lane has its
own codeword, so there is no such sum.

Compiled functions call those with `@_intrinsic`. All arguments are int64: addresses of arrays in
bytes, and numbers of items in these arrays. The functions here do not compute: they add
instructions to a compiled function. So a variable is a value of LLVM, known only when the
instructions run, and has no type in Python (pyproject.toml).
"""

from functools import wraps

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic

LANES = 16  # floats per register
SIDE_BY_SIDE = 8  # codewords per call of `measure_eight`
# `update_nearest` compares ROWS vectors with a block of COLUMNS codewords of a flat codebook
ROWS = 4
COLUMNS = 32
_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)


def _intrinsic(emit):
    """Let compiled functions call emit(builder, *arguments), which adds instructions to them. The
    call returns 0.
    """

    def generate(_context, builder, _signature, arguments):
        emit(builder, *arguments)
        return _LONG(0)

    # `wraps` gives `typed` the signature of `emit`, which numba inspects. In place of the builder
    # numba passes a typing context.
    @wraps(emit)
    def typed(_typing_context, *arguments):
        return types.int64(*[types.int64] * len(arguments)), generate

    return intrinsic(typed)


def _item(builder, array, index, kind):
    """Return a pointer to an item of an array at an address, whose items are of a kind."""
    items = builder.inttoptr(array, kind.as_pointer())
    return builder.gep(items, [index])


def _load(builder, array, index, kind=_FLOATS):
    return builder.load(_item(builder, array, index, kind), align=4)


def _store(builder, values, array, index):
    builder.store(values, _item(builder, array, index, values.type), align=4)


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
    totals = []
    for difference in differences(_LONG(0)):
        square = add_square(difference, ir.Constant(_FLOATS, None))
        totals.append(alloca_once_value(builder, square))
    with for_range(builder, count, start=_LONG(1), intp=_LONG) as loop:
        for total, difference in zip(totals, differences(loop.index), strict=True):
            added = add_square(difference, builder.load(total))
            builder.store(added, total)
    return [builder.load(total) for total in totals]


def _add_lanes(builder, left, right, *choices):
    """Return the sum of two choices of eight lanes of `left` and `right`.

    The lanes of `right` are numbered after those of `left`.
    """
    kind = ir.VectorType(_INT, 8)
    taken = [builder.shuffle_vector(left, right, ir.Constant(kind, lanes)) for lanes in choices]
    return builder.fadd(*taken)


def _eight_distances(builder, residual, codewords, width):
    """Return a register of the squared distances of a residual to eight codewords, which follow one
    another; `width` is their number of registers.
    """

    def differences(index):
        values = _load(builder, residual, index)
        result = []
        for _ in range(SIDE_BY_SIDE):
            codeword = _load(builder, codewords, index)
            result.append(builder.fsub(values, codeword))
            index = builder.add(index, width)
        return result

    sums = _sum_squares(builder, width, differences)

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
    costs,
    branch,
    eight,
    distances,
    keys,
):
    """Measure the squared distances of a residual to eight codewords, and the keys of their costs.

    A cost is a distance plus costs[branch]. The high 32 bits of a key are the cost, the low 32 bits
    its place in `keys`. Costs are not negative, so their bits have the same order. Distances and
    keys (int64) are stored as eight number `eight` of their arrays.
    """
    longs = ir.VectorType(_LONG, SIDE_BY_SIDE)
    squares = _eight_distances(builder, residual, codewords, width)
    coarser_cost = _load(builder, costs, branch, _FLOAT)
    coarser_costs = _broadcast(builder, squares.type, coarser_cost)
    cost = builder.fadd(squares, coarser_costs)

    # the high halves
    bits = builder.bitcast(cost, ir.VectorType(_INT, SIDE_BY_SIDE))
    high = builder.sext(bits, longs)
    half = ir.Constant(longs, [32] * SIDE_BY_SIDE)
    high = builder.shl(high, half)

    # the low halves
    first = builder.mul(eight, _LONG(SIDE_BY_SIDE))
    lanes = ir.Constant(longs, list(range(SIDE_BY_SIDE)))
    low = builder.add(_broadcast(builder, longs, first), lanes)

    _store(builder, squares, distances, eight)
    _store(builder, builder.or_(high, low), keys, eight)


@_intrinsic
def subtract(builder, residual, codeword, width, out):
    """Store residual - codeword in `out`; `width` is their number of registers."""
    with for_range(builder, width, intp=_LONG) as loop:
        left = _load(builder, residual, loop.index)
        right = _load(builder, codeword, loop.index)
        _store(builder, builder.fsub(left, right), out, loop.index)


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
    """Compare vectors (`ROWS`, D) with the codewords (D, `COLUMNS`) of a block.

    For each vector and column, `least` (`ROWS`, `COLUMNS`) is the least distance in all blocks so
    far, and `blocks` the block that has it. The caller takes the least of the columns.
    """
    registers = COLUMNS // LANES  # per channel

    def differences(d):
        # channel d of all columns
        first = builder.mul(d, _LONG(registers))
        columns = [
            _load(builder, codewords, builder.add(first, _LONG(number)))
            for number in range(registers)
        ]

        # in the order of `least` and `blocks`: vector by vector, register by register
        result = []
        index = d
        for _ in range(ROWS):
            channel = _load(builder, vectors, index, _FLOAT)
            values = _broadcast(builder, _FLOATS, channel)
            result += [builder.fsub(values, codeword) for codeword in columns]
            index = builder.add(index, dim)
        return result

    integers = ir.VectorType(_INT, LANES)
    this_block = _broadcast(builder, integers, builder.trunc(block, _INT))
    for number, distances in enumerate(_sum_squares(builder, dim, differences)):
        index = _LONG(number)
        old_least = _load(builder, least, index)
        is_closer = builder.fcmp_ordered("<", distances, old_least)
        new_least = builder.select(is_closer, distances, old_least)
        _store(builder, new_least, least, index)

        old_block = _load(builder, blocks, index, integers)
        new_block = builder.select(is_closer, this_block, old_block)
        _store(builder, new_block, blocks, index)
