"""Configuration of RQ-VAE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.checks import require
from hrvqvae.config.model import CodebookModelConfig, Grid
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
class RQVAEConfig(CodebookModelConfig):
    """One encoder, one latent grid, L levels of codebooks that are not linked, one decoder (Lee et al. 2022)."""

    system: Literal["rqvae"] = "rqvae"
    quantizer: ResidualQuantizerConfig = field(default_factory=ResidualQuantizerConfig)

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each level's codes for an image of that many pixels; one grid for all levels."""
        return (self.grid(height, width),) * self.quantizer.levels

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m."""
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m, whatever the coarser levels chose."""
        return self.num_symbols

    def with_leaves(self, branching: int, levels: int) -> RQVAEConfig:
        """The same model with branching ** levels sums of codewords."""
        quantizer = dataclasses.replace(self.quantizer, codewords=branching, levels=levels)
        return dataclasses.replace(self, quantizer=quantizer)
