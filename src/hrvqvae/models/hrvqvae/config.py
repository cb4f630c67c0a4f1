"""Configuration of HR-VQVAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.model import TreeConfig


@dataclass(frozen=True, kw_only=True)
class HRVQVAEConfig(TreeConfig):
    """One encoder, one latent grid, L levels of linked codebooks, one decoder (docs/method.md, Table 6)."""

    system: Literal["hrvqvae"] = "hrvqvae"
