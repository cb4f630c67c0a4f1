"""Measurements of sampling: the rows that they promise, at sizes that take a second."""

from __future__ import annotations

import inspect

import pytest

from benchmarks import sample
from hrvqvae.cli import main
from hrvqvae.config import presets
from hrvqvae.models.build import build


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


def test_what_it_measures_by_default_can_be_built() -> None:
    usual = {name: one.default for name, one in inspect.signature(sample.bench_sample).parameters.items()}
    assert sample.preset_case(usual["ffhq"], 1).prior.level.grid == (32, 32)
    for preset in {preset for preset, _ in usual["whole"]}:
        model = build(presets.get(preset).config)
        levels = [sample.preset_case(preset, index).prior.level for index in range(model.prefixes[-1])]
        assert [len(level.coarser) for level in levels] == list(range(len(levels)))
    for side in usual["grids"]:
        (codes,), *_ = sample.preset_case("hrvqvae/mnist", 0, (side, side)).given(2)
        assert codes.shape == (2, side, side)
