"""VQGAN (docs/method.md; Esser et al. 2021)."""

from __future__ import annotations

from hrvqvae.models.one_grid import OneGrid
from hrvqvae.models.vqgan.config import VQGANConfig
from hrvqvae.quantize import ResidualQuantizer


class VQGAN(OneGrid):
    """One latent grid, one flat codebook; what makes it a VQGAN is how it is trained (`objective.py` beside this).

    image -> encoder -> z (B, H, W, D) -> nearest of K codewords -> code (B, H, W) -> codeword -> decoder -> image
        image, reconstruction -> perceptual distance, patch discriminator -> losses

    Departs from the paper: encoder and decoder are those of the other systems here, so that only the system differs.
    """

    quantizer: ResidualQuantizer

    def __init__(self, config: VQGANConfig, channels: int) -> None:
        super().__init__(config, channels, ResidualQuantizer(config.quantizer))
