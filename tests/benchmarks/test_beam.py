"""The bench of ways to encode: its rows against encoding by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hrvqvae
from benchmarks.beam import as_tables, bench_beam
from hrvqvae.checkpoints.loading import save_model
from hrvqvae.data.loading import load_images
from hrvqvae.models.build import build
from hrvqvae.utils.errors import InputError
from tests.tiny_systems import tiny_systems
from tests.trained_run import tiny_run_with_priors


def test_rows_are_what_encoding_gives(mnist_root: Path) -> None:
    run = tiny_run_with_priors(mnist_root)
    rows, rates = bench_beam(run, images=20, widths=(1, 9), weights=(0.0, 5.0), rates=(None, 0.0), rounds=1)
    assert [(row["width"], row["coarse_weight"]) for row in rows] == [(1, 0.0), (9, 0.0), (9, 5.0)]
    assert rows[0]["ratio"] == 1
    assert rows[2]["level_mse"] != rows[1]["level_mse"]
    data = load_images(hrvqvae.load(run).config.data, "test")
    images = torch.stack([torch.from_numpy(data.read(number, None)) for number in range(0, 40, 2)])
    for row, weight in ((rows[0], None), (rows[1], None), (rates[0], None), (rates[1], 0.0)):
        model = hrvqvae.load(run, beam=row.get("width"))
        codes = model.encode(images, weight)
        for levels, error in enumerate(row["level_mse"], start=1):
            expected = (model.decode(codes, levels, (12, 12)) - images / 255).square().mean()
            assert error == pytest.approx(float(expected), rel=1e-4)
    assert rates[1]["level_mse"][-1] < rates[0]["level_mse"][-1]
    assert rates[0]["bytes_per_image"] * 20 == sum(map(len, hrvqvae.load(run).compress(images)))
    for table, count in zip(as_tables(rows, rates), (3, 2), strict=True):
        assert len(table) == 1 + count
        assert {len(line) for line in table} == {len(table[0])}


def test_a_model_without_linked_codebooks_is_refused(mnist_root: Path, tmp_path: Path) -> None:
    config = tiny_systems(mnist_root)["vqvae"]
    save_model(tmp_path / "model.safetensors", config, build(config).state_dict(), 0)
    with pytest.raises(InputError, match="has no linked codebooks, which a beam searches"):
        bench_beam(tmp_path)
    with pytest.raises(InputError, match="^vqvae has no linked codebooks, which a beam searches$"):
        hrvqvae.load(tmp_path, beam=4)
