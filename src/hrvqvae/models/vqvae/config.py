"""Configuration of VQVAE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.model import FlatConfig


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(FlatConfig):
    """One encoder, one latent grid, one flat codebook, one decoder (docs/method.md)."""

    system: Literal["vqvae"] = "vqvae"

    def with_leaves(self, branching: int, levels: int) -> VQVAEConfig:
        quantizer = dataclasses.replace(self.quantizer, codewords=branching**levels)
        return dataclasses.replace(self, quantizer=quantizer)
