"""The collapse study: linked and flat codebooks of growing size, with and without what keeps codewords alive."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from hrvqvae.bench.timing import median_seconds
from hrvqvae.comparison.compare import Comparison
from hrvqvae.comparison.folder import Folder, Measured
from hrvqvae.comparison.harness import Case, as_markdown, run_cases
from hrvqvae.comparison.instruments import Say, test_images
from hrvqvae.config.entries import SYSTEMS
from hrvqvae.config.parsing import override
from hrvqvae.errors import InputError
from hrvqvae.pictures.curves import codebook_study
from hrvqvae.runs.folder import RunFolder
from hrvqvae.runs.loading import load_with_config
from hrvqvae.systems.one_grid import OneGrid, Quantizer

BRANCHING = (4, 8, 16)  # m; with three levels 64, 512 and 4,096 leaves
_LEVELS = 3
_NO_START = {"model.quantizer.init_vectors": "0"}
_NO_REVIVAL = {"model.quantizer.revive_every": "0"}
HELPS: Mapping[str, Mapping[str, str]] = {
    "k-means start, revival": {},
    "k-means start": _NO_REVIVAL,
    "revival": _NO_START,
    "neither": {**_NO_START, **_NO_REVIVAL},
}

_STUDIED = tuple(f"model.quantizer.{name}" for name in ("levels", "codewords", "init_vectors", "revive_every"))

COLUMNS: Mapping[str, tuple[str, str]] = {
    "leaves_used": ("leaves used", "{:,.0f}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "mse": ("MSE", "{:.3e}"),
    "search_ms": ("search, ms for 128 images", "{:.2f}"),
}


def studied_systems() -> tuple[str, ...]:
    """Names of the systems that have a codebook whose size, k-means start and revival can be changed."""
    found = []
    for system in SYSTEMS.entries():
        with contextlib.suppress(InputError):
            system.config().with_leaves(2, 1)
            found.append(system.name)
    return tuple(found)


def cases(comparison: Comparison, branching: Sequence[int] = BRANCHING) -> list[Case]:
    """Each system with as many leaves, with each help, both and neither, for each seed."""
    found = []
    for seed in comparison.seed_numbers:
        for size in branching:
            for help_name, changes in HELPS.items():
                for system in comparison.systems:
                    config = comparison.config(system, seed)
                    leaves = size**_LEVELS
                    config = override(config, changes)
                    model = config.model.with_leaves(size, _LEVELS)
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
    assert isinstance(model, OneGrid)
    quantizer = cast(Quantizer, model.quantizer)
    with torch.inference_mode():
        latents = model.latents(torch.cat(test_images(config, 128)))
        return {"search_ms": median_seconds(lambda: quantizer.encode(latents)) * 1e3}


def table(rows: Sequence[Measured]) -> str:
    """The study as Markdown, a row for each system, size and help."""
    return as_markdown(rows, ("system", "leaves", "with"), COLUMNS)


def study(
    comparison: Comparison, out: Path, say: Say = print, branching: Sequence[int] = BRANCHING
) -> tuple[list[Measured], int]:
    """Train, measure and draw every case; -> all rows of the folder, and the signal that stopped it (0: none).

    Raises:
        InputError: as `run_cases`; priors, other systems, or fields that the study varies, are asked for.
    """
    for name in comparison.systems:
        if name not in studied_systems():
            raise InputError(
                f"the study of codebooks is of {', '.join(studied_systems())}; leave {name} out of --systems"
            )
    for name in comparison.fields:
        if name.endswith(_STUDIED):
            raise InputError(f"--{name} is what the study of codebooks varies; leave it out")
    if comparison.prior_budget():
        raise InputError("the study of codebooks has no priors; leave --priors and --prior-steps out")
    about = {**comparison.about(), "study": "codebook"}
    folder = Folder(out)
    signal = run_cases(cases(comparison, branching), about, folder, say, _search)
    helps = list(HELPS)
    with folder.locked(say):
        rows = folder.sorted_rows(lambda row: (row["seed"], row["leaves"], helps.index(row["with"]), row["system"]))
        if rows and not signal:
            folder.write_results(rows, table(rows))
            codebook_study(rows, out / "study.png")
    return rows, signal
