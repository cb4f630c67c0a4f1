"""The examples run as they stand, with a few steps in place of their training."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
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


def test_the_notebook(tmp_path: Path) -> None:
    """Executed whole, with two steps of training. Its outputs are kept in the file, which stays small."""
    path = EXAMPLES / "start.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "as they were run, in order"
    shown = [kinds(cell) for cell in code]
    for cell in code:
        cell.outputs = []
    code[0].source, number = re.subn(r"^STEPS = \d+", "STEPS = 2", code[0].source)
    assert number == 1
    nbformat.write(notebook, tmp_path / "start.ipynb")
    # a process of its own: the client leaves sockets open, which a later test would be blamed for
    subprocess.run([sys.executable, "-m", "tests.run_notebook", str(tmp_path / "start.ipynb")], check=True)
    executed = nbformat.read(tmp_path / "start.ipynb", as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in code] == shown
    printed = "".join(one.text for cell in code for one in cell.outputs if one.output_type == "stream")
    assert "3 of 3 levels: " in printed
    assert "trained 2 steps" in printed
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()


def kinds(cell: Any) -> set[str]:
    """What a cell shows: text, pictures."""
    return {"text" if one.output_type == "stream" else "picture" for one in cell.outputs if "text/html" not in one}


def test_every_example_has_a_test() -> None:
    written = Path(__file__).read_text()
    assert all(path.name in written for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
