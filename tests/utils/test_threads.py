"""Parts on torch's threads: all done once, and what goes wrong in one comes out."""

from __future__ import annotations

import pytest
import torch

from hrvqvae.utils.threads import in_parts


def test_every_part_once_and_in_order_and_an_interruption_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(first: int, last: int) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for count in (1, 2, 7):
            parts = in_parts(count, lambda first, last: list(range(first, last)))
            assert [number for part in parts for number in part] == list(range(count))
        with pytest.raises(KeyboardInterrupt):
            in_parts(4, interrupted)
    finally:
        torch.set_num_threads(before)
    assert capfd.readouterr().err == ""
