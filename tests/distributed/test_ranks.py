"""Parts: of any number of processes, they are the whole."""

from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrvqvae.data.batches import sample_stream
from hrvqvae.distributed import Part


@given(st.integers(0, 1000), st.integers(1, 20))
def test_parts_are_disjoint_in_order_and_of_one_size(total: int, count: int) -> None:
    parts = [Part(number, count).of(total) for number in range(count)]
    assert [place for part in parts for place in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_parts_of_a_stream_are_the_stream_whoever_goes_on_with_it(count: int) -> None:
    """Stopped with two, it goes on with any number: no gap, no repeat."""
    whole = list(islice(sample_stream(50, 12, seed=3), 9))  # across two ends of an epoch
    before = [list(islice(sample_stream(50, 12, 3, 0, Part(number, 2)), 4)) for number in range(2)]
    after = [list(islice(sample_stream(50, 12, 3, 4, Part(number, count)), 5)) for number in range(count)]
    steps = [[*chain(*samples)] for shares in (before, after) for samples in zip(*shares, strict=True)]
    assert steps == whole
