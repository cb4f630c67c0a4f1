"""Two processes that train together: the same codebooks to the bit, and those of one process on the whole batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.quantize import two_processes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes on this machine have written; gloo, a file as the meeting place."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.quantize.two_processes", str(folder)]
    both = [
        subprocess.Popen([*command, str(rank), "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_two_processes_agree_with_each_other_and_with_one(folder: Path, update: str) -> None:
    (first, jumped), (second, _) = (torch.load(folder / f"{update}-{rank}-2.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert jumped > 0, "something is restarted on the way"
    alone, _ = two_processes.train(update, 0, 1)
    assert _state(first).keys() == _state(alone).keys()
    torch.testing.assert_close(_state(first), _state(alone), rtol=1e-3, atol=1e-4)


def _state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    assert int(state["layer._extra_state"]) == two_processes.STEPS - 2, "the start has taken three batches"
    return state
