"""What systems with linked codebooks on one latent grid have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from hrvqvae.config.model import TreeConfig
from hrvqvae.models.one_grid import OneGrid
from hrvqvae.quantize import Codes, ResidualQuantizer


class TreeGrid(OneGrid):
    """One latent grid, quantized level by level with linked codebooks.

    image -> encoder -> z (B, H, W, D) -> tree quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> sum of its codewords -> decoder -> image
    """

    quantizer: ResidualQuantizer

    def __init__(self, config: TreeConfig, channels: int) -> None:
        super().__init__(config, channels, ResidualQuantizer(config.quantizer))

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """A beam of several paths takes every level's codes by the cost of the whole path: the squared distance between
        the levels' vectors side by side, (B, H, W, L * D), the coarser ones times the root of their weight.
        """
        by_level, config = super().assignments(images, codes), self.quantizer.config
        if config.beam == 1:
            return by_level
        root, found = config.coarse_weight**0.5, list[tuple[Tensor, Tensor]]()
        for first in range(0, len(by_level), config.group_size):
            group = by_level[first : first + config.group_size]
            parts = [*((root * target, root * chosen) for target, chosen in group[:-1]), group[-1]]
            whole = torch.cat([target for target, _ in parts], -1), torch.cat([chosen for _, chosen in parts], -1)
            found += [whole] * len(group)
        return tuple(found)

    @property
    def linked_codebooks(self) -> tuple[Tensor, ...]:
        whole = self.quantizer.config.group_size == self.quantizer.config.levels
        return tuple(codebook.codewords.detach() for codebook in self.quantizer.levels) if whole else ()

    @property
    def codeword_counts(self) -> tuple[Tensor, ...]:
        whole = self.quantizer.config.group_size == self.quantizer.config.levels
        return tuple(codebook.count for codebook in self.quantizer.levels) if whole else ()
