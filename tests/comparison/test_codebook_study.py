"""The study of codebooks: sizes, starts and dead-code restart, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.comparison import codebook_study
from hrvqvae.comparison.compare import Comparison
from hrvqvae.comparison.systems import STUDIED
from hrvqvae.data.images import read_image
from tests.cli.helpers import refused


@pytest.mark.usefixtures("systems")
def test_the_study_of_codebooks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every_size = codebook_study.BRANCHING
    monkeypatch.setattr(codebook_study, "BRANCHING", (3,))
    command = ["compare", "mnist", "--study", "codebook", "--max-steps", "4", "--out", str(tmp_path / "out")]
    assert main([*command, "--systems", "hrvqvae,vqvae", "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    told = printed.err.splitlines()
    start = told.index("8 cases to train and measure; each is trained for 4 steps")
    assert told[start + 1 : start + 5] == [
        "  system: hrvqvae | vqvae",
        "  leaves: 27",
        "  with: k-means start, dead-code restart | k-means start | dead-code restart | neither",
        "  seed: 0",
    ]
    assert start < next(number for number, line in enumerate(told) if line.startswith("---")), "before any training"
    assert [(row["system"], row["leaves"]) for row in rows] == [
        (system, 27) for _ in range(4) for system in ("hrvqvae", "vqvae")
    ]
    assert {row["with"] for row in rows} == {
        "k-means start, dead-code restart",
        "k-means start",
        "dead-code restart",
        "neither",
    }
    assert all(row["search_ms"] > 0 and row["leaves_used"] <= row["leaves"] for row in rows)
    assert read_image(tmp_path / "out" / "study.png", 3).shape[0] == 3
    assert "| hrvqvae | 27 | neither | 1 |" in (tmp_path / "out" / "results.md").read_text()
    assert "no priors" in refused([*command, "--prior-steps", "5"], capsys)
    assert "leave vqvae2 out of --systems" in refused([*command, "--systems", "vqvae,vqvae2"], capsys)
    for name in ("model.quantizer.init_vectors", "hrvqvae.model.quantizer.codewords"):
        assert f"--{name} is what the study of codebooks varies" in refused([*command, f"--{name}", "9"], capsys)
    monkeypatch.setattr(codebook_study, "BRANCHING", every_size)
    comparison = Comparison(dataset="mnist", systems=STUDIED, max_steps=1)
    configs = {case.name: case.config.model.quantizer for case in codebook_study.cases(comparison)}
    assert configs["hrvqvae-4096-neither-0"].codewords == 16
    assert configs["vqvae-4096-neither-0"].codewords == 4096
    for name, start, restart in (
        ("k-means-start-dead-code-restart", True, True), ("k-means-start", True, False), ("dead-code-restart", False, True),
        ("neither", False, False),
    ):  # fmt: skip
        quantizer = configs[f"vqvae-64-{name}-0"]
        assert (quantizer.init_vectors > 0, quantizer.restart_every > 0) == (start, restart)
