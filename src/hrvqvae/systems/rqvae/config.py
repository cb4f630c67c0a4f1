"""Configuration of RQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.checks import require
from hrvqvae.config.model import CodebookModelConfig, OneGridConfig
from hrvqvae.config.quantizer import QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """Codebooks that are not linked: as a flat codebook's, and how many there are.

    Attributes:
        levels: L, number of quantization levels; `codewords` is m, of each level. `beta` is that of every level, and of
            the combined latent.
        shared: one codebook serves every level, instead of one each.
    """

    levels: int = 3
    codewords: int = 8
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels >= 1, "model.quantizer.levels", self.levels, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(OneGridConfig, CodebookModelConfig):
    """One encoder, one latent grid, L levels of codebooks that are not linked, one decoder (Lee et al. 2022)."""

    system: Literal["rqvae"] = "rqvae"
    quantizer: ResidualQuantizerConfig = field(default_factory=ResidualQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m."""
        return (self.quantizer.codewords,) * self.quantizer.levels
