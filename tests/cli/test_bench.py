"""Measurements by command: what they measure, and in which form they print it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hrvqvae.bench import search as bench_search_module
from hrvqvae.bench.search import bench_search
from hrvqvae.cli import main
from hrvqvae.config.entries import SYSTEMS
from hrvqvae.data.images import read_image
from hrvqvae.pictures.curves import search_growth


@pytest.mark.parametrize("system", [system.name for system in SYSTEMS.entries() if system.available])
def test_bench_train(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--model.hidden_units", "8", "--training.batch_size", "4", "--training.device", "cpu"]
    fields += ["--model.adversarial_start", "0"] if system == "vqgan" else []
    command = ["bench", "train", "--preset", f"{system}/mnist", *fields, "--rounds"]
    assert main([*command, "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["plain", "hrvqvae"]
    assert all(row["images_per_second"] > 0 and row["batch"] == 4 for row in rows)
    assert main([*command, "1", "--profile"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["method", "preset", "batch", "images/s", "ratio"]
    assert "hrvqvae: the quantizer takes" in out


def test_bench_search(tmp_path: Path) -> None:
    grid = [(levels, 3) for levels in (1, 2)]
    rows = bench_search(grid, vectors=600, width=5)
    assert {row["method"] for row in rows} == {"tree", "flat", "cdist", "vector_quantize", "residual_vq"}
    for row in rows:
        assert {"vectors", "width", "levels", "codewords", "leaves", "seconds"} <= set(row)
        assert row["leaves"] == 3 ** row["levels"]
        assert row["seconds"] > 0
        assert row["distances"] == (3 * row["levels"] if row["method"] in ("tree", "residual_vq") else row["leaves"])
        assert row["agreement"] in (1.0, None)
    tree = next(row for row in rows if row["method"] == "tree" and row["levels"] == 2)
    assert tree["bytes"] == 4 * 5 * (600 + 3 + 9) + 8 * 600 * 2 + 4 * 5 * 600
    search_growth([{**row, "codewords": 8} for row in rows], tmp_path / "growth.png")
    assert read_image(tmp_path / "growth.png", 3).shape[0] == 3


def test_bench_search_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_search_module, "GRID", ((1, 8), (2, 8)))
    command = ["bench", "search", "--vectors", "300", "--no-libraries"]
    assert main([*command, "--json", "--plot", str(tmp_path / "growth.png")]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == ["tree", "flat", "cdist"] * 2
    assert (tmp_path / "growth.png").is_file()
    assert main(command) == 0
    assert "tree is faster" in capsys.readouterr().out


def test_bench_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "start", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["cache"], row["method"]) for row in rows] == [
        (cache, method) for cache in ("cold", "warm") for method in ("tree", "flat")
    ]
    assert all(row["seconds"] > 0 for row in rows)
