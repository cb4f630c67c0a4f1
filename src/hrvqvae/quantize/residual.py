"""Residual quantization, from one flat codebook to the tree of HR-VQVAE (docs/method.md).

Symbols are those of docs/method.md: z are the latents, e_l the codeword of level l, r_l the
residual after it, z_q the sum of the codewords. Shapes: (B, H, W, D) latents, L levels, m codewords
per codebook; N = B * H * W. With three levels, all linked:

    z = r_0 ---------> level 1: nearest of m in the one codebook --> e_1, index i_1
    r_1 = r_0 - e_1 -> level 2: nearest of m in codebook i_1 ------> e_2, index i_2
    r_2 = r_1 - e_2 -> level 3: nearest of m in codebook i_2 ------> e_3, z_q = e_1 + e_2 + e_3

Without links each level has one codebook. With groups of linked levels the first level of each
group has one codebook. The same in numpy, vector by vector, as the paper writes it:
tests/quantize/oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae.config import QuantizerConfig
from hrvqvae.distributed import GroupHandle
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks, update_codebooks
from hrvqvae.quantize.quantized import Codes, Quantized, Quantizer, check_codes, require_finite
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import NonFiniteError

_MAX_ALIGNED_SIZE = 1024  # codewords per codebook: alignment takes m^2 values per codebook


class ResidualQuantizer(Quantizer):
    """L levels on one latent grid: VQ with one level, RQ if no levels are linked, HR-VQVAE if all
    are.

    Level l = 0, 1, ... of a group has codebooks (m^l, m, D). Codewords change only in training
    mode, and not while `frozen`. Everything is computed in float32, also under autocast.

    Args:
        processes: processes that train together.
    """

    config: QuantizerConfig

    def __init__(self, config: QuantizerConfig, processes: GroupHandle | None = None) -> None:
        super().__init__()
        self.config = config
        self.processes = processes or GroupHandle()
        self.frozen = False
        self.search: Callable[..., Tensor] = partial(
            search, width=config.beam, coarse_weight=config.coarse_weight
        )
        codebooks = nn.ModuleList(
            LevelCodebooks(config, num_books, size)
            for num_books, size in zip(config.num_codebooks, config.sizes, strict=True)
        )
        if config.levels == 1:
            self.codebook = codebooks[0]  # name of the weights in files, whose digests depend on it
        else:
            self.codebooks = codebooks
        self._level_betas = config.beta_of_levels
        self.levels: list[Any] = list(codebooks)  # LevelCodebooks, coarse first

        # the levels of each search
        step = config.levels if config.joint_beam else config.group_size
        self._searches = [
            range(first, min(first + step, config.levels))
            for first in range(0, config.levels, step)
        ]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents (B, H, W, D); in training mode, update the codewords.

        If a latent is not finite, raise NonFiniteError on a CPU; on a GPU and in graphs the loss is
        NaN.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.reshape(-1, latents.shape[-1]).float()

            # "Quantization": e_l is nearest to r_(l-1), and r_l = r_(l-1) - e_l
            indices, codewords, residuals = self.descend(z)

            # "Training", loss: z_q = e_1 + ... + e_L
            z_q, losses, level_losses = self._losses(codewords, residuals)

            # "Training", moving averages
            if self.training and not self.frozen:
                update_codebooks(self.levels, residuals[:-1], indices, self.processes.group)

            straight_through = (z + (z_q - z).detach()).view(latents.shape)
        return Quantized(straight_through, self._codes(indices, latents), losses, level_losses)

    def _codes(self, indices: Sequence[Tensor], latents: Tensor) -> Codes:
        """Return the codes (B, H, W) of each level for indices (N,) of latents (B, H, W, D)."""
        return tuple(
            (index % size).view(latents.shape[:-1])
            for index, size in zip(indices, self.config.sizes, strict=True)
        )

    def descend(self, z: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return, for vectors (N, D), the indices (N,) and codewords (N, D) of each level, and the
        residuals r_0 to r_L.

        Codewords carry the gradient to the codebooks, residuals the gradient to the vectors.
        """
        indices: list[Tensor] = []
        codewords: list[Tensor] = []
        residuals = [z]
        for levels in self._searches:
            for level, index in zip(levels, self._search(residuals[-1], levels), strict=True):
                codeword = self.levels[level].lookup(index)
                indices.append(index)
                codewords.append(codeword)
                residuals.append(residuals[-1] - codeword.detach())
        return indices, codewords, residuals

    def _search(self, residual: Tensor, levels: range) -> Tensor:
        """Return the indices (l, N) of vectors (N, D) from one search of consecutive levels."""
        codebooks = [level.codewords.detach() for level in self.levels]
        try:
            return self.search(residual.detach(), codebooks[levels.start : levels.stop])
        except NonFiniteError:
            require_finite(residual, codebooks)  # whose message names the level of the model
            raise

    def _losses(
        self, codewords: Sequence[Tensor], residuals: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return z_q (N, D), the terms of the loss (docs/method.md), summed over all vectors, and
        their sums by level (L,).

        Residuals carry no gradient to codewords, so the commitment of every level reaches the
        encoder alone.
        """
        z = residuals[0]
        z_q = torch.zeros_like(z)
        betas = self._level_betas
        is_gradient = self.config.update == "gradient"
        losses: dict[str, Tensor] = {}
        level_losses = []
        for level, codeword in enumerate(codewords):
            terms: dict[str, Tensor] = {}
            z_q = z_q + codeword
            if is_gradient and betas:
                error = residuals[level].detach() - codeword
                terms[f"codebook_{level + 1}"] = error.square().sum()
            if betas and betas[level]:
                error = residuals[level + 1]
                terms[f"commitment_{level + 1}"] = betas[level] * error.square().sum()
            if level + 1 == len(codewords):
                if is_gradient:
                    terms["codebook"] = (z.detach() - z_q).square().sum()
                terms["commitment"] = self.config.beta * (z - z_q.detach()).square().sum()
            losses |= terms
            level_losses.append(sum(terms.values(), z.new_zeros(())))
        return z_q, losses, torch.stack(level_losses)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Codes:
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.reshape(-1, latents.shape[-1]).float()
            if len(self._searches) == 1:  # without residuals
                indices = list(self._search(z, self._searches[0]))
            else:
                indices, _, _ = self.descend(z)
        return self._codes(indices, latents)

    def lookup(self, codes: Codes, *, check: bool = True) -> Tensor:
        if check:
            check_codes(codes, self.config.sizes)
        quantized = torch.zeros((), device=codes[0].device)
        for level, index in zip(self.levels, self.codeword_indices(codes), strict=False):
            quantized = quantized + level.lookup(index)
        return quantized

    def codeword_indices(self, codes: Codes) -> Codes:
        indices: list[Tensor] = []
        for code, level in zip(codes, self.levels, strict=False):
            is_linked = level.num_books > 1
            indices.append(indices[-1] * level.size + code if is_linked else code)
        return tuple(indices)

    @torch.no_grad()
    def initialize(
        self,
        latents: Tensor,
        rng: torch.Generator,
        weight: float = 1.0,
        even: bool = False,
        least: int = 0,
    ) -> None:
        """Start by k-means on the residuals, level by level, with the options of
        `LevelCodebooks.initialize`.

        A level with fewer than `least` latents per codeword has one k-means for all its codebooks.
        If `init_vectors` is 0 in the configuration, k-means runs on noise with the mean and the
        standard deviation of the latents.
        """
        flat = latents.reshape(-1, latents.shape[-1]).float()
        if not self.config.init_vectors:
            count = max(1024, 4 * max(self.config.num_codewords))
            weight = 1.0
            noise = torch.randn(count, flat.shape[-1], generator=rng, dtype=torch.float32)
            flat = noise.to(flat.device) * flat.std(0, correction=0) + flat.mean(0)
        for levels in self._searches:
            residual = flat
            parent = flat.new_zeros(len(flat), dtype=torch.long)
            for level in levels:
                codebooks = self.levels[level]
                shared = len(flat) < least * codebooks.num_codewords
                codebooks.initialize(residual, parent, rng, weight, even, shared)

                # again from the first level: a beam may change coarser levels too
                indices = self._search(flat, range(levels.start, level + 1))
                begun = zip(self.levels[levels.start :], indices, strict=False)
                chosen = [coarser.lookup(index) for coarser, index in begun]
                residual = flat - torch.stack(chosen).sum(0)
                parent = indices[-1]
            flat = residual

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, rng: torch.Generator) -> int:
        """Move dead codewords to vectors of living ones, with a copy of their subtrees; return how
        many moved.
        """
        z = latents.reshape(-1, latents.shape[-1]).float()
        indices, _, residuals = self.descend(z)  # before any codeword moves
        kept = z.square().sum(1).isfinite()  # on a GPU the search refuses nothing
        restarted = 0
        for level, (codebooks, residual, index) in enumerate(
            zip(self.levels, residuals, indices, strict=False)
        ):
            moved, source = codebooks.restart_dead_codes(
                residual[kept], index[kept], self.config.restart_below, rng
            )
            self.copy_subtrees(level, source, moved)
            kept &= ~torch.isin(index, moved)  # drop the vectors of moved codewords
            restarted += len(moved)
        return restarted

    def _linked_below(self, level: int) -> list[LevelCodebooks]:
        """Return the finer levels of the same group of linked levels."""
        group_size = self.config.group_size
        next_group = (level // group_size + 1) * group_size
        return self.levels[level + 1 : next_group]

    def copy_subtrees(self, level: int, source: Tensor, target: Tensor) -> None:
        """Copy the subtrees of codewords `source` (K,) of a level to `target` (K,), with counts in
        proportion.
        """
        count = self.levels[level].count.view(-1)
        weight = count[target] / count[source]  # a source is alive, so its count is not zero
        for book in self._linked_below(level):
            source = book.codewords_of(source)
            target = book.codewords_of(target)
            weight = weight.repeat_interleave(book.size)
            book.set_codewords(target, book.lookup(source), book.count.view(-1)[source] * weight)

    @torch.no_grad()
    def align(self) -> None:
        """Renumber children, with their subtrees, so that an index means about the same below every
        parent.

        Codebooks of more than 1,024 codewords stay as they are.
        """
        for level, book in enumerate(self.levels):
            if book.num_books == 1 or book.size > _MAX_ALIGNED_SIZE:
                continue
            order = vq.alignment(book.codewords, book.count)
            index = (
                torch.arange(book.num_books, device=order.device)[:, None] * book.size + order
            ).flatten()
            book.reorder(index)
            for finer in self._linked_below(level):
                index = finer.codewords_of(index)
                finer.reorder(index)
