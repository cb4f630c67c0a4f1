"""The rate-distortion study: the same number of leaves as trees of different depth, and as a flat codebook."""

from __future__ import annotations

import dataclasses
from typing import Any

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.compare import Comparison
from hrvqvae.comparison.folder import Measured
from hrvqvae.comparison.harness import Case
from hrvqvae.comparison.study import Study
from hrvqvae.comparison.systems import with_leaves
from hrvqvae.config import ModelConfig
from hrvqvae.plots.curves import rate_distortion
from hrvqvae.training.loggers import read_records

SHAPES = ((8, 2), (4, 3), (2, 6), (8, 3), (2, 9), (64, 2), (16, 3), (8, 4), (4, 6), (2, 12))
"""(m, L) of trees of 64, 512 and 4,096 leaves. A flat codebook has m^L codewords, whatever m and L are."""


def cases(comparison: Comparison) -> list[Case]:
    """Each system with each shape, for each seed; shapes that are the same model for a system count once."""
    found: dict[tuple[ModelConfig, int], Case] = {}
    for seed in comparison.seed_numbers:
        for branching, depth in SHAPES:
            for system in comparison.systems:
                config = comparison.config(system, seed)
                model = with_leaves(config.model, branching, depth)
                levels, codewords = len(model.num_symbols), model.num_symbols[-1]
                labels = {"system": system, "leaves": branching**depth, "levels": levels, "codewords": codewords}
                found[model, seed] = Case(
                    name=f"{system}-{codewords}x{levels}-{seed}",
                    labels={**labels, "seed": seed},
                    config=dataclasses.replace(config, model=model),
                )
    return list(found.values())


def _prefixes(run: RunFolder) -> Measured:
    """Test MSE of each prefix of the levels after training, None for one that a system does not decode."""
    evaluations = [one for one in read_records(run.metrics) if one["kind"] == "evaluation"]
    return {"level_mse": evaluations[-1]["level_mse"]}


def _order(row: Measured) -> tuple[Any, ...]:
    return row["leaves"], row["levels"], row["system"]


STUDY = Study(
    name="rate",
    title="the study of rate and distortion",
    varied=("model.quantizer.levels", "model.quantizer.codewords"),
    cases=cases,
    more=_prefixes,
    labels=("system", "leaves", "levels", "codewords"),
    columns={
        "bits_per_image": ("bits an image", "{:,.0f}"),
        "codewords_searched": ("searched a position", "{:,.0f}"),
        "mse": ("MSE", "{:.3e}"),
        "psnr": ("PSNR, dB", "{:.2f}"),
        "frechet_reconstructions": ("{frechet}", "{:.2f}"),
        "leaves_used": ("leaves used", "{:,.0f}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "training_seconds": ("training, s", "{:,.0f}"),
    },
    order=_order,
    draw=rate_distortion,
)
