"""Configuration of TreeVQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.model import TreeConfig


@dataclass(frozen=True, kw_only=True)
class TreeVQConfig(TreeConfig):
    """One encoder, one latent grid, L levels of linked codebooks, one decoder (docs/what-we-changed.md)."""

    system: Literal["treevq"] = "treevq"
