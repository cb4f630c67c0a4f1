"""The examples run as they stand, with a few steps in place of their training."""

import re
import runpy
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def test_semantic_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row has an ID of its own; rows with a prefix are near each other; bad input is one line and no file."""
    generator = np.random.default_rng(0)
    cluster = np.arange(400) % 4
    vectors = (10 * np.eye(4)[cluster] + 0.1 * generator.normal(size=(400, 4))).astype(np.float16)
    vectors[200:240] = vectors[200:201]  # equal rows
    table = pa.table({"item": [f"row {row}" for row in range(400)], "vector": vectors.tolist()})
    table = table.set_column(1, "vector", table["vector"].cast(pa.list_(pa.float32())))
    source, target = tmp_path / "vectors.parquet", tmp_path / "ids.parquet"
    pq.write_table(table, source)

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["semantic_ids.py", *map(str, words)])
        try:
            runpy.run_path(str(EXAMPLES / "semantic_ids.py"), run_name="__main__", init_globals={})
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    given = ("--id", "item", "--embedding", "vector", "--codewords", 4, "--levels", 2)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", partialmethod(few_rows, pq.ParquetFile.iter_batches))
    assert run(source, target, *given) == 0
    assert "400 rows" in capsys.readouterr().out
    written = pq.read_table(target)
    assert written["item"] == table["item"]
    found = np.array(written["semantic_id"].to_pylist())
    assert found.shape == (400, 3)
    assert len(np.unique(found, axis=0)) == 400
    assert (found[200:240, :2] == found[200, :2]).all()
    for codes in np.unique(found[:, :2], axis=0):
        numbers = found[(found[:, :2] == codes).all(1), 2]
        assert numbers.tolist() == list(range(len(numbers)))
    cluster[200:240] = cluster[200]
    assert len({(first, kind) for first, kind in zip(found[:, 0], cluster, strict=True)}) == 4
    before = target.read_bytes()
    other = tmp_path / "other.parquet"
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "cut.parquet").write_bytes(source.read_bytes()[:-20])
    pq.write_table(pa.table({"item": [1, 2, 3], "vector": [[0.5, 1.0], [0.5], None]}), tmp_path / "odd.parquet")
    for words, line in (
        ((source, target, *given), "is there already"), ((source, other), "has no column id; it has item, vector"),
        ((source, other, "--id", "vector", "--embedding", "item"), "column item is string"),
        ((tmp_path / "empty.parquet", other, *given), "has no rows"),
        ((tmp_path / "odd.parquet", other, *given), "row 1 has no embedding of 2 values"),
        ((tmp_path / "cut.parquet", other, *given), "can't be read as Parquet"),
        ((source, other, *given, "--beam", 0), "beam is 0; it must be at least 1"),
        ((source, tmp_path / "no" / "x.parquet", *given), "can't be written"),
    ):  # fmt: skip
        assert run(*words) == 2, words
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    assert target.read_bytes() == before
    assert not other.exists()


def few_rows(file: Any, read: Any, rows: int, **options: Any) -> Any:
    """Batches of 150 rows at most."""
    return read(file, min(rows, 150), **options)
