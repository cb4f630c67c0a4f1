"""One flat codebook, as VQVAE has one and VQVAE-2 one a grid (docs/method.md; van den Oord et al. 2017).

Shapes: (B, H, W, D) latents, K codewords.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import CODEBOOKS, follow
from hrvqvae.quantize.quantized import Codes, Quantized
from hrvqvae.quantize.search import FlatSearcher, search_flat_fastest
from hrvqvae.utils.errors import InputError


def check_codes(code: Tensor, shape: Sequence[int], size: int, level: int) -> None:
    """Raises InputError where a level's codes are not int64 (B, H, W) of that shape in [0, size).

    Values are not known while a graph is traced, and are not looked at then.
    """
    if code.shape != tuple(shape) or code.dtype != torch.long:
        raise InputError(f"level {level} has codes {code.dtype} {tuple(code.shape)}; expected int64 {tuple(shape)}")
    if not torch.compiler.is_compiling() and code.numel() and (code.min() < 0 or code.max() >= size):
        worst = int(code.min()) if code.min() < 0 else int(code.max())
        raise InputError(f"level {level} has code {worst}; codes lie in 0..{size - 1}")


class FlatQuantizer(nn.Module):
    """k = argmin over all K codewords of ||z - c||^2.

    loss = ||sg[z] - e||^2 + beta ||sg[e] - z||^2 (van den Oord et al. 2017, equation 3); the first term is replaced by
    moving averages unless the gradient moves the codewords. Codewords change in training mode alone. Everything is
    computed in float32, whatever autocast says.
    """

    def __init__(self, config: QuantizerConfig, search: FlatSearcher = search_flat_fastest) -> None:
        super().__init__()
        self.config, self.search = config, search
        self.codebook = CODEBOOKS[config.update](1, config.codewords, config.dim, config.decay)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (B, H, W, D); in training mode, let the codewords follow. Raises NonFiniteError as the search."""
        with torch.autocast(latents.device.type, enabled=False):
            flat = self._flat(latents)
            path = self._search(flat)
            codeword = self.codebook.lookup(path)
            losses = {"commitment": self.config.beta * vq.squared_error(flat, codeword.detach())}
            loss = self.codebook.codebook_loss(flat, codeword)
            if loss is not None:
                losses["codebook"] = loss
            through = vq.straight_through(flat, codeword).view(latents.shape)
            if self.training:
                follow([(self.codebook, flat.detach(), path)])
        return Quantized(through, (path.view(latents.shape[:-1]),), losses)

    def encode(self, latents: Tensor) -> Codes:
        """The one level of codes of (B, H, W, D) latents: (B, H, W) int64 in [0, K). Raises as the search."""
        return (self._search(self._flat(latents)).view(latents.shape[:-1]),)

    def lookup(self, codes: Codes) -> Tensor:
        """Codewords of the one level of codes: (B, H, W, D).

        Raises:
            InputError: more than one level, or a code outside [0, K).
        """
        if len(codes) != 1:
            raise InputError(f"{len(codes)} levels of codes given; a flat codebook has 1")
        check_codes(codes[0], codes[0].shape, self.config.codewords, 1)
        return self.codebook.lookup(codes[0])

    def paths(self, codes: Codes) -> Codes:
        """Numbers of the codewords: the codes themselves."""
        return codes

    @torch.no_grad()
    def initialize(self, latents: Tensor, generator: torch.Generator, weight: float = 1.0) -> None:
        """k-means start from (..., D) latents, of which each weighs `weight` in the codewords' counts."""
        flat = self._flat(latents)
        self.codebook.initialize(flat, flat.new_zeros(len(flat), dtype=torch.long), generator, weight)

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        """Revive dead codewords from (..., D) latents of a training batch; returns how many."""
        flat = self._flat(latents)
        parent = flat.new_zeros(len(flat), dtype=torch.long)
        moved, _ = self.codebook.restart_dead_codes(
            flat, parent, self._search(flat), self.config.restart_below, generator
        )
        return len(moved)

    def _flat(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, latents.shape[-1]).float()

    def _search(self, flat: Tensor) -> Tensor:
        return self.search(flat.detach(), self.codebook.codewords.detach()[0])
