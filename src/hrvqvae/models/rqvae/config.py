"""Configuration of RQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.model import CodebookModelConfig, OneGridConfig
from hrvqvae.config.quantizer import ResidualQuantizerConfig


@dataclass(frozen=True, kw_only=True)
class UnlinkedQuantizerConfig(ResidualQuantizerConfig):
    """Codebooks that are not linked.

    Attributes:
        shared: one codebook serves every level, instead of one each.
    """

    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(OneGridConfig, CodebookModelConfig):
    """One encoder, one latent grid, L levels of codebooks that are not linked, one decoder (Lee et al. 2022)."""

    system: Literal["rqvae"] = "rqvae"
    quantizer: UnlinkedQuantizerConfig = field(default_factory=UnlinkedQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m."""
        return (self.quantizer.codewords,) * self.quantizer.levels
