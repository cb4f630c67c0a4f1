"""The benchmark of training under torchrun: what it makes of the records of its trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes
from hrvqvae.cli import main
from hrvqvae.config import Config


def trained(config: Config, folder: Path, count: int) -> list[dict[str, Any]]:
    """Records as two processes leave them that are 0.1% off, and 10% from step 12 on."""
    assert config.training.batch_size % count == 0
    assert (folder / "mnist" / "train-images-idx3-ubyte.gz").is_file()
    off = [0.0 if count == 1 else 0.1 if step > 12 else 0.001 for step in range(1, 21)]
    return [{"loss": 2.0 * (1 + part), "restarted": count, "images_per_second": 100.0 * count} for part in off]


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "_train", trained)
    assert main(["bench", "processes", "--steps", "20", "--systems", "hrvqvae", "vqgan", "fsq"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in out if "e-" in line] == [
        [system, "1.0e-03", "1.0e-01"] for system in ("hrvqvae", "vqgan", "fsq")
    ]
    assert "20, 40" in out[1]
    assert out[-2].split() == ["2", "200", "2.00"] or out[-1].split() == ["2", "200", "2.00"]


def test_a_training_that_fails_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "processes", "--steps", "1", "--systems", "nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2
    assert main(["bench", "processes", "--processes", "1"]) == 2
