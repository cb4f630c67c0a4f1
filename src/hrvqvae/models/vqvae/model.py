"""VQVAE (docs/method.md; van den Oord et al. 2017)."""

from __future__ import annotations

from hrvqvae.models.one_grid import OneGrid
from hrvqvae.models.vqvae.config import VQVAEConfig
from hrvqvae.quantize import ResidualQuantizer


class VQVAE(OneGrid):
    """One latent grid, one flat codebook.

    image -> encoder -> z (B, H, W, D) -> nearest of K codewords -> code (B, H, W) -> codeword -> decoder -> image
    """

    quantizer: ResidualQuantizer

    def __init__(self, config: VQVAEConfig, channels: int) -> None:
        super().__init__(config, channels, ResidualQuantizer(config.quantizer))
