"""HR-VQVAE (docs/method.md; docs/paper-tables.md, Table 6)."""

from __future__ import annotations

from torch import Tensor

from hrvqvae.quantize import TreeQuantizer
from hrvqvae.systems.hrvqvae.config import HRVQVAEConfig
from hrvqvae.systems.one_grid import OneGrid


class HRVQVAE(OneGrid):
    """One latent grid, quantized level by level with linked codebooks.

    image -> encoder -> z (B, H, W, D) -> tree quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> sum of its codewords -> decoder -> image
    """

    quantizer: TreeQuantizer

    def __init__(self, config: HRVQVAEConfig, channels: int) -> None:
        super().__init__(config, channels, TreeQuantizer(config.quantizer))

    @property
    def linked_codebooks(self) -> tuple[Tensor, ...]:
        return tuple(codebook.codewords.detach() for codebook in self.quantizer.levels)

    @property
    def codeword_counts(self) -> tuple[Tensor, ...]:
        return tuple(codebook.count for codebook in self.quantizer.levels)
