"""The range coder: the bytes of an oracle in whole numbers, any symbols back, close to the ideal, whatever follows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.compression import range_coder as coder
from tests.compression import oracle

FREQUENCIES = st.lists(st.one_of(st.integers(1, 8), st.integers(1, 2**16 + 1)), min_size=1, max_size=9)
CASES = st.lists(FREQUENCIES, min_size=1, max_size=5).flatmap(
    lambda kinds: st.tuples(
        st.just(kinds),
        st.lists(st.integers(0, 2**20), max_size=60),
    )
)


def encode(symbols: Sequence[int], kinds: Sequence[Sequence[int]]) -> bytes:
    out, state = np.zeros(4 * len(symbols) + 12, np.uint8), np.zeros(4, np.int64)
    coder.begin_encoding(state)
    for number, symbol in enumerate(symbols):
        counts = kinds[number % len(kinds)]
        coder.encode(state, out, sum(counts[:symbol]), counts[symbol], sum(counts))
    return out[: coder.end_encoding(state, out)].tobytes()


def decode(content: bytes, count: int, kinds: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    stream, state, found = np.frombuffer(content, np.uint8), np.zeros(4, np.int64), []
    coder.begin_decoding(state, stream)
    for number in range(count):
        counts = kinds[number % len(kinds)]
        place = coder.sought(state, sum(counts))
        symbol = int(np.searchsorted(np.cumsum(counts), place, side="right"))
        coder.decode(state, stream, sum(counts[:symbol]), counts[symbol], sum(counts))
        found.append(symbol)
    return found, coder.end_decoding(state)


@settings(max_examples=150, deadline=None)
@given(case=CASES, after=st.binary(max_size=8))
def test_bytes_are_those_of_the_oracle_and_give_the_symbols_back(
    case: tuple[list[list[int]], list[int]], after: bytes
) -> None:
    kinds, numbers = case
    symbols = [number % len(kinds[place % len(kinds)]) for place, number in enumerate(numbers)]
    content = encode(symbols, kinds)
    assert content == oracle.encoded(symbols, lambda number: kinds[number % len(kinds)])
    assert decode(content + after, len(symbols), kinds) == (symbols, len(content))
    shares = (kinds[place % len(kinds)][one] / sum(kinds[place % len(kinds)]) for place, one in enumerate(symbols))
    ideal = -sum(map(math.log2, shares)) / 8
    assert ideal - 0.001 <= len(content) <= ideal + 1.5


def test_a_carry_runs_through_bytes_that_are_full() -> None:
    """Symbols whose interval lies about the middle write 7f ff ff ...; one above the middle makes that 80 00 00 ..."""
    kinds = [[2**15 - 1, 2, 2**15 - 1]]
    for count in range(1, 30):
        below, above = encode([1] * count + [0], kinds), encode([1] * count + [2], kinds)
        assert below == oracle.encoded([1] * count + [0], lambda _: kinds[0])
        assert above == oracle.encoded([1] * count + [2], lambda _: kinds[0])
        assert decode(above, count + 1, kinds) == ([1] * count + [2], len(above))
        assert (below[0], above[0]) == (0x7F, 0x80)
        if count > 12:
            assert below[1:10] == b"\xff" * 9
            assert above[1:10] == b"\0" * 9
