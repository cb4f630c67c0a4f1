"""Measurements of sampling: the rows that they promise, at sizes that take a second."""

from __future__ import annotations

import pytest

from hrvqvae.bench import sample
from hrvqvae.cli import main


def test_bench_sample(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample.bench_sample(
        rounds=1, plain_positions=1, batches=(3,), whole=[("hrvqvae/mnist", 2)], grids=(4,), ffhq="hrvqvae/cifar10"
    )
    assert [row["method"] for row in rows[:4]] == ["plain", "cached", "plain", "cached"]
    for row in rows:
        assert {"method", "grid", "levels", "batch", "parameters", "seconds_per_image", "floor_seconds"} <= set(row)
        assert row["seconds_per_image"] > 0
    assert rows[1]["ratio"] == rows[0]["seconds_per_image"] / rows[1]["seconds_per_image"]
    assert rows[4]["parameters"] > 2.65e6
    assert [(row["levels"], row["batch"], row["grid"][0]) for row in rows[5:]] == [(3, 2, 16), (1, 3, 16), (1, 1, 4)]
    monkeypatch.setattr(sample, "bench_sample", lambda rounds: rows)
    assert main(["bench", "sample"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "(from 1 positions)" in line]) == 2, "the plain sampler, both times"
