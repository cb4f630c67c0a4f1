"""Parts on torch's threads: all done once, and what goes wrong in one comes out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hrvqvae.utils.threads import in_parts


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_part_once_and_in_order(count: int) -> None:
    parts = in_parts(count, lambda first, last: list(range(first, last)))
    assert [number for part in parts for number in part] == list(range(count))


@pytest.mark.usefixtures("two_threads")
def test_an_interruption_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(first: int, last: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parts(4, interrupted)
    assert capfd.readouterr().err == ""
