"""Configuration of HR-VQVAE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.model import CodebookModelConfig, OneGridConfig
from hrvqvae.config.quantizer import TreeQuantizerConfig


@dataclass(frozen=True, kw_only=True)
class HRVQVAEConfig(OneGridConfig, CodebookModelConfig):
    """One encoder, one latent grid, L levels of linked codebooks, one decoder (docs/method.md, Table 6)."""

    system: Literal["hrvqvae"] = "hrvqvae"
    quantizer: TreeQuantizerConfig = field(default_factory=TreeQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m, since its parent is known."""
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m^l."""
        return tuple(self.quantizer.codewords**level for level in range(1, self.quantizer.levels + 1))

    @property
    def codewords_searched(self) -> int:
        """m for each path that the search keeps at the level before."""
        size, kept = self.quantizer.codewords, self.quantizer.beam
        return sum(size * min(kept, size**level) for level in range(self.quantizer.levels))

    def with_leaves(self, branching: int, levels: int) -> HRVQVAEConfig:
        quantizer = dataclasses.replace(self.quantizer, codewords=branching, levels=levels)
        return dataclasses.replace(self, quantizer=quantizer)
