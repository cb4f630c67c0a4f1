"""The study of rate and distortion: shapes of a tree beside a flat codebook, and what it refuses."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.comparison import rate_study
from hrvqvae.comparison.compare import Comparison
from hrvqvae.data.images import read_image
from tests.cli.helpers import refused


@pytest.mark.usefixtures("systems")
def test_the_study_of_rate_and_distortion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every_shape = rate_study.SHAPES
    monkeypatch.setattr(rate_study, "SHAPES", ((2, 2), (4, 1), (3, 2)))
    command = ["compare", "mnist", "--study", "rate", "--max-steps", "3", "--out", str(tmp_path / "out")]
    command += ["--systems", "hrvqvae,vqvae"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    shapes = [(row["system"], row["leaves"], row["levels"], row["codewords"]) for row in rows]
    assert shapes == [
        ("hrvqvae", 4, 1, 4), ("vqvae", 4, 1, 4), ("hrvqvae", 4, 2, 2), ("vqvae", 9, 1, 9), ("hrvqvae", 9, 2, 3),
    ]  # fmt: skip
    positions = rows[0]["bits_per_image"] / log2(4)
    for row in rows:
        assert row["bits_per_image"] == pytest.approx(positions * log2(row["leaves"])), "equal leaves, equal bits"
        assert len(row["level_mse"]) == row["levels"]
        assert row["level_mse"][-1] == row["test_errors"][-1][1]
    assert read_image(tmp_path / "out" / "study.png", 3).shape[0] == 3
    assert "| hrvqvae | 9 | 2 | 3 | 1 |" in (tmp_path / "out" / "results.md").read_text()
    assert "the study of rate and distortion has no priors" in refused([*command, "--prior-steps", "5"], capsys)
    refusal = refused([*command, "--hrvqvae.model.quantizer.levels", "2"], capsys)
    assert "is what the study of rate and distortion varies" in refusal
    elsewhere = [word if word != "rate" else "codebook" for word in command]
    assert "holds another comparison: study is rate there, codebook here" in refused(elsewhere, capsys)

    monkeypatch.setattr(rate_study, "SHAPES", every_shape)
    cases = rate_study.cases(Comparison(dataset="mnist", systems=("hrvqvae", "vqvae"), max_steps=1, seeds=2))
    assert len({case.name for case in cases}) == len(cases) == 2 * (len(every_shape) + 3)
    assert {case.config.model.num_codewords[-1] for case in cases} == {64, 512, 4096}
