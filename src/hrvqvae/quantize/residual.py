"""Residual quantization, from one flat codebook to the tree of HR-VQVAE (docs/method.md).

Shapes: (B, H, W, D) latents, L levels, m codewords per codebook; N = B * H * W. With three levels,
    all linked:

    z = r_0 --+--> level 1: nearest of m in the one codebook --> e_1 --+
              |                                                        | i_1 is the codebook of
              level 2
    r_1 = r_0 - e_1 --> level 2: nearest of m in codebook i_1 --> e_2 --+
    r_2 = r_1 - e_2 --> level 3: nearest of m in codebook i_2 --> e_3 --+--> z_q = e_1 + e_2 + e_3

Without links each level has one codebook. With groups of linked levels the first level of each
group has one codebook.
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
from hrvqvae.quantize.quantized import (
    Chosen,
    Codes,
    Quantized,
    Quantizer,
    check_codes,
    require_finite,
)
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import NonFiniteError

_MAX_ALIGNED_SIZE = 1024  # codewords per codebook: alignment takes m^2 values per codebook


class ResidualQuantizer(Quantizer):
    """L levels on one latent grid: VQ with one level, RQ if no levels are linked, HR-VQVAE if all
    are.

    Level l = 0, 1, ... of a group has codebooks (m^l, m, D). Codewords change only in training
    mode, and not while `frozen`. Everything is computed in float32, also under autocast. `group`:
    processes that train together.
    """

    config: QuantizerConfig

    def __init__(self, config: QuantizerConfig, group: GroupHandle | None = None) -> None:
        super().__init__()
        self.config = config
        self.group = group or GroupHandle()
        self.frozen = False
        self.search: Callable[..., Tensor] = partial(
            search, width=config.beam, coarse_weight=config.coarse_weight
        )
        books = nn.ModuleList()
        for num_books, size in zip(config.num_codebooks, config.sizes, strict=True):
            books.append(LevelCodebooks(config, num_books, size))
        if config.levels == 1:
            self.codebook = books[0]  # name of the weights in all files, whose digests depend on it
        else:
            self.codebooks = books
        self.levels: list[Any] = list(books)  # LevelCodebooks, coarse first
        levels = range(config.levels)
        step = config.levels if config.joint_beam else config.group_size
        self._searches = [
            levels[first : first + step] for first in levels[::step]
        ]  # levels of each search

    def forward(
        self, latents: Tensor, recalled: Chosen | None = None, learn: bool = True
    ) -> Quantized:
        """Quantize latents (B, H, W, D); in training mode and with `learn`, update the codewords.

        With `recalled`, the indices and codewords of an earlier pass, there is no search. If a
        latent is not finite, raise NonFiniteError on a CPU; on a GPU and in graphs the loss is NaN.
        """
        with torch.autocast(latents.device.type, enabled=False):
            flat = latents.reshape(-1, latents.shape[-1]).float()
            chosen, residuals = self.descend(flat, recalled)
            quantized, losses = self._losses(chosen, residuals)
            indices = [index for index, _ in chosen]
            if learn and self.training and not self.frozen:
                update_codebooks(self.levels, residuals[:-1], indices, self.group.group)
            straight_through = (flat + (quantized - flat).detach()).view(latents.shape)
        return Quantized(straight_through, self._codes(indices, latents.shape[:-1]), losses, chosen)

    def descend(self, flat: Tensor, recalled: Chosen | None = None) -> tuple[Chosen, list[Tensor]]:
        """Return index and codeword per level of vectors (N, D), and their residuals r_0 to r_L.

        Codewords carry the gradient to the codebooks, residuals the gradient to the vectors.
        """
        residuals: list[Tensor] = [flat]
        chosen: list[tuple[Tensor, Tensor]] = []
        for levels in self._searches:
            indices = (
                self._search(residuals[-1], levels)
                if recalled is None
                else [recalled[i][0] for i in levels]
            )
            for level, index in zip(levels, indices, strict=True):
                codeword = self.levels[level].lookup(index)
                if (
                    recalled is not None
                ):  # the value of the earlier pass, with the gradient to the codebook
                    codeword = codeword + (recalled[level][1] - codeword).detach()
                chosen.append((index, codeword))
                residuals.append(residuals[-1] - codeword.detach())
        return chosen, residuals

    def _search(self, residual: Tensor, levels: range) -> Tensor:
        """Return the indices (l, N) of vectors (N, D) from one search of consecutive levels."""
        try:
            searched = [self.levels[level] for level in levels]
            books = [book.codewords.detach() for book in searched]
            return self.search(residual.detach(), books)
        except (
            NonFiniteError
        ):  # its message numbers the levels of this search: name the level of the model
            require_finite(residual, [book.codewords for book in self.levels])
            raise

    def _losses(
        self, chosen: Chosen, residuals: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the codewords (N, D) and the terms of the loss (docs/method.md), summed
        over all vectors.

        Residuals carry no gradient to codewords, so the commitment of every level reaches the
        encoder alone.
        """
        losses: dict[str, Tensor] = {}
        betas = self.config.beta_of_levels
        flat = residuals[0]
        quantized = torch.zeros_like(residuals[0])
        for level, (_, codeword) in enumerate(chosen):
            if self.config.update == "gradient" and betas:
                losses[f"codebook_{level + 1}"] = (
                    (residuals[level].detach() - codeword).square().sum()
                )
            quantized = quantized + codeword
            if betas and betas[level]:
                losses[f"commitment_{level + 1}"] = (
                    betas[level] * residuals[level + 1].square().sum()
                )
        if self.config.update == "gradient":
            losses["codebook"] = (flat.detach() - quantized).square().sum()
        losses["commitment"] = self.config.beta * (flat - quantized.detach()).square().sum()
        return quantized, losses

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Codes:
        with torch.autocast(latents.device.type, enabled=False):
            flat = latents.reshape(-1, latents.shape[-1]).float()
            if len(self._searches) == 1:
                return self._codes(list(self._search(flat, self._searches[0])), latents.shape[:-1])
            return self._codes([index for index, _ in self.descend(flat)[0]], latents.shape[:-1])

    def lookup(self, codes: Codes, *, check: bool = True) -> Tensor:
        if check:
            check_codes(codes, self.config.sizes)
        quantized = torch.zeros((), device=codes[0].device)
        for book, index in zip(self.levels, self.codeword_indices(codes), strict=False):
            quantized = quantized + book.lookup(index)
        return quantized

    def codeword_indices(self, codes: Codes) -> Codes:
        indices: list[Tensor] = []
        for code, book in zip(codes, self.levels, strict=False):
            indices.append(
                code if book.num_books == 1 else book.books_below(indices[-1]) * book.size + code
            )
        return tuple(indices)

    def _codes(self, indices: Sequence[Tensor], shape: Sequence[int]) -> Codes:
        return tuple(
            (index % book.size).view(shape)
            for index, book in zip(indices, self.levels, strict=True)
        )

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
                book = self.levels[level]
                book.initialize(
                    residual, parent, rng, weight, even, len(flat) < least * book.num_codewords
                )
                indices = self._search(
                    flat, range(levels.start, level + 1)
                )  # a beam may change coarser levels too
                codewords = [
                    self.levels[i].lookup(index) for i, index in zip(levels, indices, strict=False)
                ]
                residual = flat - torch.stack(codewords).sum(0)
                parent = indices[-1]
            flat = residual

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, rng: torch.Generator) -> int:
        """Move dead codewords to vectors of living ones, with a copy of their subtrees; return how
        many moved.
        """
        flat = latents.reshape(-1, latents.shape[-1]).float()
        chosen, residuals = self.descend(flat)  # before any codeword moves
        kept = flat.square().sum(1).isfinite()  # on a GPU the search refuses nothing
        restarted = 0
        for level, (book, residual, (index, _)) in enumerate(
            zip(self.levels, residuals, chosen, strict=False)
        ):
            moved, source = book.restart_dead_codes(
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
