"""The bench of the layer: what it measures, on small data."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch

from benchmarks import layer as bench
from hrvqvae.cli import main
from hrvqvae.data.sets.mnist import write_idx
from tests.conftest import drawn_digits


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set in Fashion-MNIST's form, where commands look for it."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count, seed in (("train", 40, 1), ("t10k", 20, 2)):
        images, labels = drawn_digits(count, seed, 28)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path))


@pytest.mark.usefixtures("fashion")
def test_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "layer", "--size", "2", "3", "--steps", "2", "--batch", "8", "--images", "20", "--rounds", "1"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["layer"].split(",")[0] for row in rows] == [
        "TreeVQ", "VectorQuantize", "VectorQuantize", "ResidualVQ", "ResidualVQ"
    ]  # fmt: skip
    for row in rows:
        assert row["leaves"] == 9
        assert 1 <= row["used"] <= 9
        assert row["usage"] == row["used"] / 9
        assert 0 < row["mse"] < row["mae"] < 1
        assert min(row["step_seconds"], row["quantizer_seconds"], row["lines"]) > 0
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("fashion-mnist: 2 steps of 8 images, 3.17 bits")
    assert [line.split()[0].strip(",") for line in printed[2:]] == [row["layer"].split(",")[0] for row in rows]


def test_lines_of_code(tmp_path: Path) -> None:
    source = (
        '"""A docstring\nof two lines."""\n\nx = 1  # a comment\n\n\n# another\n'
        'def f():\n    """Doc."""\n    return [\n        x,\n    ]\n'
    )
    path = tmp_path / "some_module.py"
    path.write_text(source)
    module = types.ModuleType("some_module")
    module.__file__ = str(path)
    assert bench.code_lines(module) == 5


def test_error_and_leaves_by_hand() -> None:
    class Halves(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            indices = torch.zeros(len(features), 7, 7, 2, dtype=torch.long)
            indices[..., 3:, 0] = 2
            indices[..., 1] = 1
            return features * 0, indices, torch.zeros(())

    side = bench._Side(Halves, 0)
    constant = side.model(torch.zeros(1, 1, 28, 28))[0].detach()
    images = constant.expand(6, 1, 28, 28) + 0.5
    mse, mae, leaves = side.measure(images, 3)
    assert mse == pytest.approx(0.25**2, rel=1e-5)
    assert mae == pytest.approx(0.25, rel=1e-5)
    assert leaves.unique().tolist() == [1, 7]
