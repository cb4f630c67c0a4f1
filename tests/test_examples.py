"""The examples run as they stand, with a few steps in place of their training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_audio_autoencoder(capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES / "audio_autoencoder.py").read_text()
    cut, number = re.subn(r"^STEPS, BATCH = .*$", "STEPS, BATCH = 3, 4", text, flags=re.MULTILINE)
    assert number == 1
    names: dict[str, object] = {}
    exec(compile(cut, "audio_autoencoder.py", "exec"), names)
    printed = capsys.readouterr().out
    assert re.findall(r"levels 1\.\.(\d): (\d+) bit/s", printed) == [
        ("1", "375"), ("2", "750"), ("3", "1125"), ("4", "1500")
    ]  # fmt: skip
    assert "of 4,096 leaves are used" in printed


def test_every_example_has_a_test() -> None:
    written = Path(__file__).read_text()
    assert all(path.name in written for path in EXAMPLES.glob("*.py"))
