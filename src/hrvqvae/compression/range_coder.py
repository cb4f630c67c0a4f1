"""An integer range coder, which turns symbols with frequencies into bytes (Martin 1979;
docs/format.md defines it).

A writer calls `begin_encoding`, `encode` per symbol, and `end_encoding`. A reader calls
`begin_decoding`, then per symbol `find_target` and, once it has found the symbol whose interval
holds the target, `consume`, and at the end `end_decoding`. All numbers stay below 2^53, so that
JavaScript represents them exactly. A stream does not store its length: the encoder and the decoder
both compute the length from the last interval.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import inlined

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

# numbers of a coder's state, an int64 array (4,)
LOW = 0  # the low end of the interval; a decoder needs it for the length alone
RANGE = 1  # the width of the interval
USED = 2  # bytes written, or consumed
VALUE = 3  # of a decoder: the next six bytes as a number, less the low end

VALUE_BYTES = 6
_TOP_SHIFT = 40  # the first of six bytes
_FULL_RANGE = 1 << 48
_MIN_RANGE = 1 << 40  # the range stays above
_REST_MASK = _MIN_RANGE - 1  # all bytes but the first


@inlined
def begin_encoding(state: Integers) -> None:
    """Reset the state to the full interval, with no byte written."""
    for index in range(len(state)):
        state[index] = 0
    state[RANGE] = _FULL_RANGE


@inlined
def _carry(state: Integers, out: Bytes) -> None:
    """If the low end has overflowed, add one to the bytes written in `out`.

    A byte below 255 is always there, since the stream as a fraction stays below 1.
    """
    if state[LOW] >= _FULL_RANGE:
        state[LOW] -= _FULL_RANGE
        index = state[USED] - 1
        while out[index] == 255:
            out[index] = 0
            index -= 1
        out[index] += 1


@inlined
def _write_byte(state: Integers, out: Bytes) -> None:
    out[state[USED]] = state[LOW] >> _TOP_SHIFT
    state[USED] += 1
    state[LOW] = (state[LOW] & _REST_MASK) << 8


@inlined
def encode(state: Integers, out: Bytes, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to a symbol. `before` is the sum of the frequencies of the lower
    symbols.
    """
    part = state[RANGE] // total
    state[LOW] += part * before
    state[RANGE] = part * frequency
    _carry(state, out)
    while state[RANGE] <= _MIN_RANGE:
        _write_byte(state, out)
        state[RANGE] <<= 8


@inlined
def _round_up(low: Any, step: Any) -> Any:
    return (low + step - 1) // step * step


@inlined
def _count_final_bytes(state: Integers) -> int:
    """Return how many bytes pin a number to the interval, whatever bytes follow."""
    end = state[LOW] + state[RANGE]
    count = 0
    step = _FULL_RANGE
    # all numbers with the same first `count` bytes must lie in the interval
    while count < VALUE_BYTES and _round_up(state[LOW], step) + step > end:
        count = count + 1
        step = step >> 8
    return count


@inlined
def end_encoding(state: Integers, out: Bytes) -> int:
    """Write the last bytes to `out`, and return the length of the stream in bytes."""
    count = _count_final_bytes(state)
    state[LOW] = _round_up(state[LOW], _FULL_RANGE >> 8 * count)
    _carry(state, out)
    for _ in range(count):
        _write_byte(state, out)
    return int(state[USED])


@inlined
def _read_byte(state: Integers, content: Bytes, offset: int, stop: int) -> None:
    """Append the byte at an offset to the decoder's value; from `stop` on, bytes are 0."""
    state[VALUE] <<= 8
    if offset < stop:
        state[VALUE] |= np.int64(content[offset])


@inlined
def begin_decoding(state: Integers, content: Bytes, start: int, stop: int) -> None:
    """Reset the state to the full interval, and read the first bytes of content[start:stop]."""
    begin_encoding(state)
    for offset in range(start, start + VALUE_BYTES):
        _read_byte(state, content, offset, stop)


@inlined
def find_target(state: Integers, total: int) -> int:
    """Return the point of the next symbol on the scale of frequencies, from 0 to `total`; `total`
    or more in a damaged stream.
    """
    return int(state[VALUE] // (state[RANGE] // total))


@inlined
def consume(
    state: Integers, content: Bytes, start: int, stop: int, before: int, frequency: int, total: int
) -> None:
    """Narrow the interval to a symbol, and read bytes. `before` is as for `encode`."""
    part = state[RANGE] // total
    state[VALUE] -= part * before
    state[LOW] = (state[LOW] + part * before) & (_FULL_RANGE - 1)
    state[RANGE] = part * frequency
    while state[RANGE] <= _MIN_RANGE:
        _read_byte(state, content, start + state[USED] + VALUE_BYTES, stop)
        state[USED] += 1
        state[LOW] = (state[LOW] & _REST_MASK) << 8
        state[RANGE] <<= 8


@inlined
def end_decoding(state: Integers) -> int:
    """Return the length in bytes of the stream, all of whose symbols are decoded."""
    return int(state[USED] + _count_final_bytes(state))
