"""An integer range coder, which turns symbols with frequencies into bytes (Martin 1979;
docs/format.md defines it).

`state` is an int64 array (4,): low, range, bytes written or consumed, and the decoder's value as on
that page. All numbers stay below 2^53, so that JavaScript represents them exactly. A stream does
not store its length: the encoder and the decoder both compute the length from the last interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import compiled

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

WIDTH = 6  # bytes of low and of the full range
_FULL_RANGE = 1 << 48
_MIN_RANGE = 1 << 40  # the range stays above


@compiled(inline="always")
def begin_encoding(state: Integers) -> None:
    """Reset the state to the full interval, with no byte written."""
    state[0], state[1], state[2] = 0, _FULL_RANGE, 0


@compiled(inline="always")
def _carry(state: Integers, out: Bytes, row: int) -> None:
    if state[0] >= _FULL_RANGE:
        state[0] -= _FULL_RANGE
        index = state[2] - 1
        while out[row, index] == 255:
            out[row, index] = 0
            index -= 1
        out[row, index] += 1


@compiled(inline="always")
def _write_byte(state: Integers, out: Bytes, row: int) -> None:
    out[row, state[2]] = state[0] >> 40
    state[2] += 1
    state[0] = (state[0] & (_MIN_RANGE - 1)) << 8


@compiled(inline="always")
def encode(state: Integers, out: Bytes, row: int, before: int, frequency: int, total: int) -> None:
    """Narrow the interval to a symbol. `before` is the sum of the frequencies of the lower
    symbols.
    """
    part = state[1] // total
    state[0] += part * before
    state[1] = part * frequency
    _carry(state, out, row)
    while state[1] <= _MIN_RANGE:
        _write_byte(state, out, row)
        state[1] <<= 8


@compiled(inline="always")
def _count_final_bytes(low: Any, width: Any) -> int:
    """Return how many bytes pin a number to [low, low + width), whatever bytes follow."""
    count = 0
    step = _FULL_RANGE
    while count < WIDTH and (low + step - 1) // step * step + step > low + width:
        count = count + 1
        step = step >> 8
    return count


@compiled(inline="always")
def end_encoding(state: Integers, out: Bytes, row: int) -> int:
    """Write the last bytes to a row of `out`, and return the length of the stream in bytes."""
    count = _count_final_bytes(state[0], state[1])
    step = 1 << (48 - 8 * count)
    state[0] = (state[0] + step - 1) // step * step
    _carry(state, out, row)
    for _ in range(count):
        _write_byte(state, out, row)
    return int(state[2])


@compiled(inline="always")
def _read_byte(state: Integers, content: Bytes, offset: int, stop: int) -> None:
    """Append the byte at `offset`, 0 from `stop` on, to the decoder's value."""
    state[3] <<= 8
    if offset < stop:
        state[3] |= np.int64(content[offset])


@compiled(inline="always")
def begin_decoding(state: Integers, content: Bytes, start: int, stop: int) -> None:
    """Reset the state to the full interval, and read the first bytes of content[start:stop]."""
    state[0], state[1], state[2], state[3] = 0, _FULL_RANGE, 0, 0
    for offset in range(start, start + WIDTH):
        _read_byte(state, content, offset, stop)


@compiled(inline="always")
def find_target(state: Integers, total: int) -> int:
    """Return the next symbol's point on the scale from 0 to `total`; `total` or more in a damaged
    stream.
    """
    return int(state[3] // (state[1] // total))


@compiled(inline="always")
def decode(
    state: Integers, content: Bytes, start: int, stop: int, before: int, frequency: int, total: int
) -> None:
    """Narrow the interval to a symbol, and consume bytes. `before` is as for `encode`."""
    part = state[1] // total
    state[3] -= part * before
    state[0] = (state[0] + part * before) & (_FULL_RANGE - 1)
    state[1] = part * frequency
    while state[1] <= _MIN_RANGE:
        _read_byte(state, content, start + state[2] + WIDTH, stop)
        state[2] += 1
        state[0] = (state[0] & (_MIN_RANGE - 1)) << 8
        state[1] <<= 8


@compiled(inline="always")
def end_decoding(state: Integers) -> int:
    """Return the length in bytes of the stream, all of whose symbols are decoded."""
    return int(state[2] + _count_final_bytes(state[0], state[1]))
