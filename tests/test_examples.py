"""The examples run as they stand, with a few steps in place of their training."""

import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import normal, run_python

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_audio_autoencoder(capsys):
    text = (EXAMPLES / "audio_autoencoder.py").read_text()
    cut, count = re.subn(r"^STEPS, BATCH = .*$", "STEPS, BATCH = 3, 4", text, flags=re.MULTILINE)
    assert count == 1
    exec(compile(cut, "audio_autoencoder.py", "exec"), {})
    printed = capsys.readouterr().out
    rates = re.findall(r"levels 1\.\.\d: (\d+) bit/s", printed)
    assert rates == ["375", "750", "1125", "1500"]


def test_the_notebook(tmp_path):
    """Executed whole, with two steps of training. Its outputs are kept in the file, which stays
    small.
    """
    path = EXAMPLES / "start.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 300_000
    code = code_cells(notebook)
    shown = [kinds(cell) for cell in code]
    code[0].source, count = re.subn(r"^STEPS = \d+", "STEPS = 2", code[0].source)
    assert count == 1
    copy = tmp_path / "start.ipynb"
    nbformat.write(notebook, copy)
    # a process of its own: the client leaves sockets open, which a later test would be blamed for
    run_python("-m", "tests.run_notebook", copy)
    assert [kinds(cell) for cell in code_cells(nbformat.read(copy, as_version=4))] == shown
    assert "step 2  test MSE" in copy.read_text()
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    return {
        "text" if output.output_type == "stream" else "picture"
        for output in cell.outputs
        if "text/html" not in output
    }


def run_example(name, *arguments):
    with patch.object(sys, "argv", [name, *map(str, arguments)]):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_semantic_ids(tmp_path):
    """Every row has an ID of its own, equal rows too; rows with a first index are of one
    cluster.
    """
    vectors = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    vectors[::2] += 100
    vectors[200:204:2] = vectors[200]
    table = pa.table({"id": [f"row {row}" for row in range(400)], "embedding": vectors.tolist()})
    source = tmp_path / "vectors.parquet"
    target = tmp_path / "ids.parquet"
    pq.write_table(table, source)
    run_example("semantic_ids.py", source, target)
    written = pq.read_table(target)
    assert written["id"] == table["id"]
    ids = np.array(written["semantic_id"].to_pylist())
    assert ids.shape == (400, 3)
    assert len(np.unique(ids, axis=0)) == 400
    assert not {*ids[::2, 0]} & {*ids[1::2, 0]}
    with pytest.raises(FileExistsError):
        run_example("semantic_ids.py", source, target)


def test_planting_a_public_codebook(tmp_path, capsys):
    """A state in the form of LlamaGen's."""
    codebook = normal(100, 8)
    torch.save({"model": {"quantize.embedding.weight": codebook}}, tmp_path / "vq_ds16.pt")
    run_example("plant.py", tmp_path / "vq_ds16.pt", "--out", tmp_path / "paths.npy")
    assert len(np.unique(np.load(tmp_path / "paths.npy"), axis=0)) == 100
    printed = capsys.readouterr().out
    assert "levels 1..3:   0.00%" in printed
    assert re.search(r"after \[\d, \d\]: \[1, .*0\]", printed)
