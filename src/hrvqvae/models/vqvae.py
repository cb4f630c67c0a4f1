"""VQVAE (spec.md section 3; van den Oord et al. 2017)."""

from __future__ import annotations

from hrvqvae.config import VQVAEConfig
from hrvqvae.models.onegrid import OneGrid
from hrvqvae.quantize import FlatQuantizer


class VQVAE(OneGrid):
    """One latent grid, one flat codebook.

    image -> encoder -> z (B, H, W, D) -> nearest of K codewords -> code (B, H, W) -> codeword -> decoder -> image
    """

    quantizer: FlatQuantizer

    def __init__(self, config: VQVAEConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.config = config
        self.quantizer = FlatQuantizer(config.quantizer)
