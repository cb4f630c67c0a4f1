"""HR-VQVAE (spec.md section 2; Table 6)."""

from __future__ import annotations

from hrvqvae.config import HRVQVAEConfig
from hrvqvae.models.onegrid import OneGrid
from hrvqvae.quantize import TreeQuantizer


class HRVQVAE(OneGrid):
    """One latent grid, quantized level by level with linked codebooks.

    image -> encoder -> z (B, H, W, D) -> tree quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> sum of its codewords -> decoder -> image
    """

    quantizer: TreeQuantizer

    def __init__(self, config: HRVQVAEConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.config = config
        self.quantizer = TreeQuantizer(config.quantizer)
