"""Configuration of RQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.model import ResidualConfig
from hrvqvae.config.quantizer import QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(ResidualConfig):
    """One encoder, one latent grid, L levels of codebooks that are not linked, one decoder (Lee et al. 2022)."""

    system: Literal["rqvae"] = "rqvae"
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(levels=3, codewords=8, linked=1))
