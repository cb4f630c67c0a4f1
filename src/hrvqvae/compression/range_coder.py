"""An integer range coder: frequencies to bytes, and back (Martin 1979; docs/format.md states it to the bit).

`state` is an int64 array: low, range, bytes so far, and for the decoder value - low, where `value` is the number that
the next bytes make. All numbers stay below 2^53, so that JavaScript's numbers hold them. A stream does not store its
length: the decoder finds its end from the last interval, as the encoder does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import compiled

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

WIDTH = 6  # bytes of the interval
_ALL = 1 << 48
_LEAST = 1 << 40  # the range is kept above this


@compiled(inline="always")
def begin_encoding(state: Integers) -> None:
    """Set the whole interval, with no byte written."""
    state[0], state[1], state[2] = 0, _ALL, 0


@compiled(inline="always")
def _carry(state: Integers, out: Bytes, row: int) -> None:
    if state[0] >= _ALL:
        state[0] -= _ALL
        place = state[2] - 1
        while out[row, place] == 255:
            out[row, place] = 0
            place -= 1
        out[row, place] += 1


@compiled(inline="always")
def _write_byte(state: Integers, out: Bytes, row: int) -> None:
    out[row, state[2]] = state[0] >> 40
    state[2] += 1
    state[0] = (state[0] & (_LEAST - 1)) << 8


@compiled(inline="always")
def encode(state: Integers, out: Bytes, row: int, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to a symbol with `frequency` of `total`, and `before` of the symbols below it."""
    part = state[1] // total
    state[0] += part * before
    state[1] = part * frequency
    _carry(state, out, row)
    while state[1] <= _LEAST:
        _write_byte(state, out, row)
        state[1] <<= 8


@compiled(inline="always")
def _bytes_to_end(low: Any, width: Any) -> int:
    """Return the fewest bytes that, whatever follows them, can lie in [low, low + width)."""
    count, step = 0, _ALL
    while count < WIDTH and (low + step - 1) // step * step + step > low + width:
        count, step = count + 1, step >> 8
    return count


@compiled(inline="always")
def end_encoding(state: Integers, out: Bytes, row: int) -> int:
    """Write the last bytes to a row of `out`, and return the number of bytes of the stream."""
    count = _bytes_to_end(state[0], state[1])
    step = 1 << (48 - 8 * count)
    state[0] = (state[0] + step - 1) // step * step
    _carry(state, out, row)
    for _ in range(count):
        _write_byte(state, out, row)
    length: int = state[2]
    return length


@compiled(inline="always")
def _read_byte(state: Integers, content: Bytes, place: int, stop: int) -> None:
    """Append a byte to the decoder's number; bytes from `stop` on are zeros."""
    state[3] <<= 8
    if place < stop:
        state[3] |= np.int64(content[place])


@compiled(inline="always")
def begin_decoding(state: Integers, content: Bytes, start: int, stop: int) -> None:
    """Set the whole interval, and read the first bytes of content[start:stop]."""
    state[0], state[1], state[2], state[3] = 0, _ALL, 0, 0
    for place in range(start, start + WIDTH):
        _read_byte(state, content, place, stop)


@compiled(inline="always")
def target_of(state: Integers, total: int) -> int:
    """Return the place among `total` frequencies that the stream names; `total` or more if no encoder wrote it."""
    place: int = state[3] // (state[1] // total)
    return place


@compiled(inline="always")
def decode(state: Integers, content: Bytes, start: int, stop: int, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to the symbol that the target lies in."""
    part = state[1] // total
    state[3] -= part * before
    state[0] = (state[0] + part * before) & (_ALL - 1)
    state[1] = part * frequency
    while state[1] <= _LEAST:
        _read_byte(state, content, start + state[2] + WIDTH, stop)
        state[2] += 1
        state[0] = (state[0] & (_LEAST - 1)) << 8
        state[1] <<= 8


@compiled(inline="always")
def end_decoding(state: Integers) -> int:
    """Return the number of bytes of the stream, where the encoder ended it."""
    length: int = state[2] + _bytes_to_end(state[0], state[1])
    return length
