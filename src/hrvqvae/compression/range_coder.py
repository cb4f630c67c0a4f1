"""An integer range coder: frequencies in, bytes out, and back (Martin 1979; docs/format.md states it to the bit).

`state` is an int64 array: low, range, bytes so far, and for the decoder the number that it reads by (value - low).
All numbers stay below 2^53, so that JavaScript's numbers hold them. A stream has no length of its own: its end follows
from the last interval, which the decoder knows as well as the encoder.
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


@compiled()
def begin_encoding(state: Integers) -> None:
    """The whole interval, no byte written."""
    state[0], state[1], state[2] = 0, _ALL, 0


@compiled()
def _carry(state: Integers, out: Bytes) -> None:
    if state[0] >= _ALL:
        state[0] -= _ALL
        place = state[2] - 1
        while out[place] == 255:
            out[place] = 0
            place -= 1
        out[place] += 1


@compiled()
def encode(state: Integers, out: Bytes, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to a symbol: `frequency` of `total`, `before` of them below it."""
    part = state[1] // total
    state[0] += part * before
    state[1] = part * frequency
    _carry(state, out)
    while state[1] <= _LEAST:
        out[state[2]] = state[0] >> 40
        state[2] += 1
        state[0] = (state[0] & (_LEAST - 1)) << 8
        state[1] <<= 8


@compiled()
def _bytes_to_end(low: Any, width: Any) -> int:
    """The fewest bytes k so that some k bytes, whatever follows them, lie in [low, low + width)."""
    for number in range(WIDTH):
        step = 1 << (48 - 8 * number)
        if (low + step - 1) // step * step + step <= low + width:
            return number
    return WIDTH


@compiled()
def end_encoding(state: Integers, out: Bytes) -> int:
    """Write the last bytes; -> bytes of the stream."""
    number = _bytes_to_end(state[0], state[1])
    step = 1 << (48 - 8 * number)
    state[0] = (state[0] + step - 1) // step * step
    _carry(state, out)
    for _ in range(number):
        out[state[2]] = state[0] >> 40
        state[2] += 1
        state[0] = (state[0] & (_LEAST - 1)) << 8
    length: int = state[2]
    return length


@compiled()
def begin_decoding(state: Integers, stream: Bytes) -> None:
    """As `begin_encoding`; bytes past the end of `stream` are read as zeros."""
    state[0], state[1], state[2], state[3] = 0, _ALL, 0, 0
    for place in range(WIDTH):
        state[3] = (state[3] << 8) | (np.int64(stream[place]) if place < len(stream) else 0)


@compiled()
def sought(state: Integers, total: int) -> int:
    """The place among `total` frequencies that the stream names; `total` or more where it was made by no encoder."""
    place: int = state[3] // (state[1] // total)
    return place


@compiled()
def decode(state: Integers, stream: Bytes, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to the symbol that `sought` found."""
    part = state[1] // total
    state[3] -= part * before
    state[0] = (state[0] + part * before) & (_ALL - 1)
    state[1] = part * frequency
    while state[1] <= _LEAST:
        place = state[2] + WIDTH
        state[3] = (state[3] << 8) | (np.int64(stream[place]) if place < len(stream) else 0)
        state[2] += 1
        state[0] = (state[0] & (_LEAST - 1)) << 8
        state[1] <<= 8


@compiled()
def end_decoding(state: Integers) -> int:
    """-> bytes of the stream, where the encoder ended it."""
    length: int = state[2] + _bytes_to_end(state[0], state[1])
    return length
