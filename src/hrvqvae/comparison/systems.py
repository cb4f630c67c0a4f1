"""What a comparison says of systems beyond the contract of models: it knows ours, and takes others as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

from hrvqvae.config import ModelConfig

STUDIED = ("hrvqvae", "treevq", "vqvae")
"""Systems with a codebook whose size the studies vary."""

_SEARCHING = ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "vqpytorch")


def with_leaves(model: ModelConfig, branching: int, levels: int) -> ModelConfig:
    """The model of a studied system with branching^levels codewords at its finest level: vqvae's are one codebook."""
    size = {"codewords": branching**levels} if model.system == "vqvae" else {"codewords": branching, "levels": levels}
    quantizer: Any = model.quantizer  # type: ignore[attr-defined]
    return dataclasses.replace(model, quantizer=dataclasses.replace(quantizer, **size))  # type: ignore[call-arg]


def codewords_searched(model: ModelConfig) -> int | None:
    """Distances to codewords that the search computes for each position, over all levels or grids.

    0 where codes are found by rounding; None of a system that is not ours.
    """
    quantizer = getattr(model, "quantizer", None)
    if model.system == "fsq" or getattr(quantizer, "name", "") == "lfq":
        return 0
    if model.system not in _SEARCHING:
        return None
    kept = getattr(quantizer, "beam", 1)  # paths, fewer where a level has fewer
    levels = zip(model.num_symbols, model.num_codewords, strict=True)
    return sum(min(kept * symbols, codewords) for symbols, codewords in levels)


def remarks(model: ModelConfig, steps: int) -> list[str]:
    """What a person should know before that many steps of training, a line each."""
    start = getattr(model, "adversarial_start", 0)
    if not 0 < steps <= start:
        return []
    return [
        f"note: {model.system}'s discriminator begins at step {start:,}, which this budget does not reach; "
        "model.adversarial_start lets it begin earlier"
    ]


def phases(model: ModelConfig, steps: int) -> dict[str, int]:
    """Steps that parts of a training of so many steps took, by name: columns of a comparison."""
    start = getattr(model, "adversarial_start", None)
    return {} if start is None else {"steps with a discriminator": max(0, steps - start)}
