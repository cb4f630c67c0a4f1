"""The collapse study: linked and flat codebooks of growing size, with and without what keeps codewords alive."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.timing import median_seconds
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.comparison.compare import Comparison
from hrvqvae.comparison.folder import Measured
from hrvqvae.comparison.harness import Case
from hrvqvae.comparison.instruments import test_images
from hrvqvae.comparison.study import Study
from hrvqvae.comparison.systems import with_leaves
from hrvqvae.config.parsing import override
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots.curves import codebook_study

BRANCHING = (4, 8, 16)  # m; with three levels 64, 512 and 4,096 leaves
_LEVELS = 3
_NO_START = {"model.quantizer.init_vectors": "0"}
_NO_REVIVAL = {"model.quantizer.restart_every": "0"}
HELPS: Mapping[str, Mapping[str, str]] = {
    "k-means start, dead-code restart": {},
    "k-means start": _NO_REVIVAL,
    "dead-code restart": _NO_START,
    "neither": {**_NO_START, **_NO_REVIVAL},
}


def cases(comparison: Comparison) -> list[Case]:
    """Each system with as many leaves, with each help, both and neither, for each seed."""
    found = []
    for seed in comparison.seed_numbers:
        for size in BRANCHING:
            for help_name, changes in HELPS.items():
                for system in comparison.systems:
                    config = comparison.config(system, seed)
                    leaves = size**_LEVELS
                    config = override(config, changes)
                    model = with_leaves(config.model, size, _LEVELS)
                    found.append(
                        Case(
                            name=f"{system}-{leaves}-{help_name.replace(', ', '-').replace(' ', '-')}-{seed}",
                            labels={"system": system, "leaves": leaves, "with": help_name, "seed": seed},
                            config=dataclasses.replace(config, model=model),
                        )
                    )
    return found


def _search(run: RunFolder) -> Measured:
    """Milliseconds that the search takes for the latents of 128 test images."""
    model, config = load_with_config(run.path)
    assert isinstance(model, SingleGridAutoencoder)
    with torch.inference_mode():
        latents = model.latents(torch.cat(test_images(config, 128)))
        return {"search_ms": median_seconds(lambda: model.quantizer.encode(latents)) * 1e3}


def _order(row: Measured) -> tuple[Any, ...]:
    return row["leaves"], list(HELPS).index(row["with"]), row["system"]


STUDY = Study(
    name="codebook",
    title="the study of codebooks",
    varied=tuple(f"model.quantizer.{name}" for name in ("levels", "codewords", "init_vectors", "restart_every")),
    cases=cases,
    more=_search,
    labels=("system", "leaves", "with"),
    columns={
        "leaves_used": ("leaves used", "{:,.0f}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "mse": ("MSE", "{:.3e}"),
        "search_ms": ("search, ms for 128 images", "{:.2f}"),
    },
    order=_order,
    draw=codebook_study,
)
