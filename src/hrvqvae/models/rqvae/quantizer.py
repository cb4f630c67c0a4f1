"""Residual quantization with codebooks that are not linked (docs/method.md; Lee et al. 2022, section 3.1).

Shapes: (B, H, W, D) latents, L levels, m codewords a codebook; N = B * H * W.

    z = r_0 --+--> nearest of m in codebook 1 --> e_1 --+
              |                                         |
    r_1 = r_0 - e_1 --> nearest of m in codebook 2 --> e_2 --+
    ...                                                 +--> z_q = e_1 + ... + e_L

Where the codebook is shared, codebooks 1 to L are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrvqvae.models.rqvae.config import UnlinkedQuantizerConfig
from hrvqvae.quantize import Codes, Quantized, check_codes
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import CODEBOOKS, Codebook, follow
from hrvqvae.quantize.losses import residual_losses
from hrvqvae.quantize.search import FlatSearcher, search_flat_fastest
from hrvqvae.quantize.search.reference import require_finite
from hrvqvae.utils.errors import InputError, NonFiniteError


@dataclass(frozen=True)
class _Found:
    """What a search found, level by level.

    Attributes:
        residuals: what each level had to code, and last what all of them left, r_0 to r_L: (N, D), detached.
        codes: (N,) int64 in [0, m) of each level.
    """

    residuals: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]


class _Assigned(NamedTuple):
    """Vectors (N, D) that a codebook has coded, and the codeword (N,) that each one got."""

    codebook: Codebook
    residual: Tensor
    code: Tensor


class ResidualQuantizer(nn.Module):
    """L levels on one latent grid, each of which searches the same m codewords whatever the coarser levels chose.

    `codebooks` holds one codebook a level, or the one that all levels share. Losses are those of `TreeQuantizer`, so
    that the two differ in the linking alone. Codewords change in training mode alone. Everything is computed in
    float32, whatever autocast says.
    """

    def __init__(self, config: UnlinkedQuantizerConfig, search: FlatSearcher = search_flat_fastest) -> None:
        super().__init__()
        self.config, self.search = config, search
        kind = CODEBOOKS[config.update]
        self.codebooks = nn.ModuleList(
            kind(1, config.codewords, config.dim, config.decay) for _ in range(1 if config.shared else config.levels)
        )

    @property
    def levels(self) -> Sequence[Codebook]:
        """The codebook of each level, coarse first; a shared one stands for every level."""
        books = [book for book in self.codebooks if isinstance(book, Codebook)]
        return books * self.config.levels if self.config.shared else books

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (B, H, W, D); in training mode, let the codewords follow.

        Raises:
            NonFiniteError: a latent is NaN or infinite.
        """
        with torch.autocast(latents.device.type, enabled=False):
            flat = self._flat(latents)
            found = self._search(flat, self.config.levels)
            chosen = list(zip(self.levels, found.codes, strict=True))
            quantized, losses = residual_losses(flat, chosen, self.config.beta, self.config.beta_of_levels)
            if self.training:
                follow(self._assigned(found))
            through = vq.straight_through(flat, quantized).view(latents.shape)
        return Quantized(through, tuple(code.view(latents.shape[:-1]) for code in found.codes), losses)

    def encode(self, latents: Tensor) -> Codes:
        """Codes of (B, H, W, D) latents: L tensors (B, H, W) int64 in [0, m).

        Raises:
            NonFiniteError: a latent is NaN or infinite.
        """
        found = self._search(self._flat(latents), self.config.levels)
        return tuple(code.view(latents.shape[:-1]) for code in found.codes)

    def lookup(self, codes: Codes) -> Tensor:
        """Sum of the codewords of the levels that are given, any non-empty prefix: -> (B, H, W, D).

        Raises:
            InputError: no level, more levels than there are, different grids, or a code outside [0, m).
        """
        levels = self.levels
        if not 1 <= len(codes) <= len(levels):
            raise InputError(f"{len(codes)} levels of codes given; this model has 1 to {len(levels)}")
        quantized = torch.zeros((), device=codes[0].device)
        for level, (codebook, code) in enumerate(zip(levels, codes, strict=False), start=1):
            check_codes(code, codes[0].shape, self.config.codewords, level)
            quantized = quantized + codebook.lookup(code)
        return quantized

    def paths(self, codes: Codes) -> Codes:
        """Numbers of the codewords of each level: the codes themselves."""
        return codes

    @torch.no_grad()
    def initialize(self, latents: Tensor, generator: torch.Generator, weight: float = 1.0) -> None:
        """k-means start from (..., D) latents, level by level, each on what the coarser ones leave.

        A shared codebook is fitted to what all levels so far have to code, together, and once more for each level, with
        the residuals that the last fit left: its moving averages go to the means of just that mixture. Fitted to the
        latents alone, it would hold no codeword as short as the finer levels' residuals.

        Each vector weighs `weight` in the codewords' counts.
        """
        flat = self._flat(latents)
        for level, codebook in enumerate(self.levels):
            residuals = self._search(flat, level).residuals
            vectors = torch.cat(residuals) if self.config.shared else residuals[-1]
            codebook.initialize(vectors, _one_book(vectors), generator, weight)

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        """Revive dead codewords from (..., D) latents of a training batch; returns how many."""
        assigned = self._assigned(self._search(self._flat(latents), self.config.levels))
        kept = torch.ones_like(assigned[0].code, dtype=torch.bool)
        restarted = 0
        for codebook, residual, code in assigned:
            some = residual[kept]
            moved, _ = codebook.restart_dead_codes(
                some, _one_book(some), code[kept], self.config.restart_below, generator
            )
            kept &= ~torch.isin(code, moved)  # what a finer level had to code there is of the place that was left
            restarted += len(moved)
        return restarted

    def _flat(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, latents.shape[-1]).float()

    def _search(self, flat: Tensor, levels: int) -> _Found:
        """The first so many levels' codes of vectors (N, D)."""
        residuals, codes = [flat.detach()], list[Tensor]()
        for codebook in self.levels[:levels]:
            try:
                codes.append(self.search(residuals[-1], codebook.codewords.detach()[0]))
            except NonFiniteError:  # says which level's codebook it is
                require_finite(flat, [book.codewords for book in self.levels])
                raise
            residuals.append(residuals[-1] - codebook.lookup(codes[-1]).detach())
        return _Found(tuple(residuals), tuple(codes))

    def _assigned(self, found: _Found) -> list[_Assigned]:
        """What each codebook has to follow: its own level's vectors, or those of all levels together, in one update."""
        if self.config.shared:
            return [_Assigned(self.levels[0], torch.cat(found.residuals[:-1]), torch.cat(found.codes))]
        return [_Assigned(*each) for each in zip(self.levels, found.residuals[:-1], found.codes, strict=True)]


def _one_book(vectors: Tensor) -> Tensor:
    """The codebook, of one, that each of the vectors (N, D) is searched in: (N,) zeros."""
    return vectors.new_zeros(len(vectors), dtype=torch.long)
