"""RQ-VAE (docs/method.md; Lee et al. 2022)."""

from __future__ import annotations

from hrvqvae.models.one_grid import OneGrid
from hrvqvae.models.rqvae.config import RQVAEConfig
from hrvqvae.quantize import ResidualQuantizer


class RQVAE(OneGrid):
    """One latent grid, quantized level by level with codebooks that are not linked.

    image -> encoder -> z (B, H, W, D) -> residual quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> sum of its codewords -> decoder -> image
    """

    quantizer: ResidualQuantizer

    def __init__(self, config: RQVAEConfig, channels: int) -> None:
        super().__init__(config, channels, ResidualQuantizer(config.quantizer))
