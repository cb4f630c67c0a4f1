"""The code of docs/layer.md, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = (Path(__file__).parent.parent.parent / "docs" / "layer.md").read_text()


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 6
    assert names["coarse"].shape == (4, 64, 14, 14)  # type: ignore[attr-defined]
    assert names["leaf"].shape == (4, 14, 14)  # type: ignore[attr-defined]
    revived_rows_begin_anew(names)


def revived_rows_begin_anew(names: dict[str, Any]) -> None:
    """The page's step with Adam: where dead-code restart moves a codeword, its moments are those of this one step."""
    quantize, step, state = names["quantize"], names["step"], names["optimizer"].state
    quantize.start_vectors, quantize.restart_every = 256, 3
    counts = [one for name, one in quantize.named_buffers() if name.endswith("count")]
    generator = torch.Generator().manual_seed(0)
    moved_rows = 0
    for number in range(6):
        before = [one.detach().clone() for one in quantize.parameters()]
        for count in counts:
            count[:, 0] = 0  # a codeword of each codebook is dead
        step(torch.randn(1, 256, 64, generator=generator))
        for old, new in zip(before, quantize.parameters(), strict=True):
            moved = (old - new).norm(dim=-1) > 0.1  # further than a step of Adam leads
            if number and moved.any():
                moved_rows += int(moved.sum())
                torch.testing.assert_close(state[new]["exp_avg"][moved], 0.1 * new.grad[moved])
                torch.testing.assert_close(state[new]["exp_avg_sq"][moved], 0.001 * new.grad[moved] ** 2)
    assert moved_rows > 0
