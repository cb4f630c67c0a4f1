"""The code of docs/layer.md, block after block."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent.parent / "docs" / "layer.md").read_text()


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert names["coarse"].shape == (4, 64, 14, 14)  # type: ignore[attr-defined]
    assert names["leaf"].shape == (4, 14, 14)  # type: ignore[attr-defined]
