"""Residual quantization, from one flat codebook to the tree of HR-VQVAE (docs/method.md).

Symbols are those of docs/method.md: z are the latents, e_l the codeword of level l, r_l the
residual after it, z_q the sum of the codewords. Shapes: (B, H, W, D) latents, L levels, m codewords
per codebook; N = B * H * W. With three levels, all linked:

    z = r_0 ---------> level 1: nearest of m in the one codebook --> e_1, index i_1
    r_1 = r_0 - e_1 -> level 2: nearest of m in codebook i_1 ------> e_2, index i_2
    r_2 = r_1 - e_2 -> level 3: nearest of m in codebook i_2 ------> e_3, z_q = e_1 + e_2 + e_3

With all levels linked this is tree-structured vector quantization (Buzo et al. 1980; Gersho and
Gray 1992, chapter 12): the vector of a node is the sum of the codewords down to it. HR-VQVAE trains
it together with encoder and decoder. Without links each level has one codebook. With groups of
linked levels the first level of each group has one codebook. The same in numpy, vector by vector,
as the paper writes it: tests/quantize/oracle.py.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize.codebook import LevelCodebooks, split_levels, update_codebooks
from hrvqvae.quantize.quantized import Codes, Quantized
from hrvqvae.quantize.search import search


class ResidualQuantizer(nn.Module):
    """L levels on one latent grid: VQ with one level, RQ if no levels are linked, HR-VQVAE if all
    are.

    Within a group of linked levels, the first level has one codebook, and each finer level has one
    per codeword of the level above. Codewords change only in training mode, and not while `frozen`.
    Everything is computed in float32, also under autocast.
    """

    levels: list[LevelCodebooks]  # coarse first

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False
        self.search: Callable[..., Tensor] = partial(
            search, width=config.beam, coarse_weight=config.coarse_weight
        )
        # number of levels that a call of `search` goes through
        self._levels_per_search = config.levels if config.joint_beam else config.group_size
        self._level_beta = config.beta_of_levels
        sizes = zip(config.num_codebooks, config.sizes, strict=True)
        self.levels = [LevelCodebooks(config, num_books, size) for num_books, size in sizes]

        # Saved models of one level name these weights `codebook.*`, and the digest of a model's
        # weights covers names.
        if config.levels == 1:
            self.codebook = self.levels[0]
        else:
            self.codebooks = nn.ModuleList(self.levels)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents (B, H, W, D); in training mode, update the codewords.

        If a latent is not finite, raise NonFiniteError on a CPU; on a GPU, and in traced or
        compiled graphs, the loss is NaN.
        """
        z = latents.flatten(0, -2).float()

        # docs/method.md, "Quantization": e_l is nearest to r_(l-1), and r_l = r_(l-1) - e_l
        indices, codewords, residuals = self.descend(z)
        z_q = sum(codewords, torch.zeros_like(z))

        # "Training": loss, with a term per level if there are several, and moving averages
        losses: dict[str, Tensor] = {}
        if self._level_beta:
            for level, residual in enumerate(residuals[1:], start=1):
                losses[f"commitment_{level}"] = self._level_beta * residual.square().sum()
        losses["commitment"] = self.config.beta * (z - z_q).square().sum()
        if self.training and not self.frozen:
            update_codebooks(self.levels, residuals[:-1], indices)

        codes = self._codes(indices, latents)
        straight_through = z + (z_q - z).detach()
        return Quantized(straight_through.view(latents.shape), codes, losses)

    def _codes(self, indices: Iterable[Tensor], latents: Tensor) -> Codes:
        """Return the codes (B, H, W) of each level for indices (N,) of latents (B, H, W, D)."""
        pairs = zip(indices, self.levels, strict=False)
        return tuple((index % level.size).view(latents.shape[:-1]) for index, level in pairs)

    def descend(
        self, z: Tensor, levels: int | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return, for vectors (N, D), the indices (N,) and codewords (N, D) of the first levels
        (default: all), and the residuals r_0 to r_L.

        Residuals carry the gradient to the vectors.
        """
        indices: list[Tensor] = []
        codewords: list[Tensor] = []
        residuals = [z]
        for searched in split_levels(self.levels[:levels], self._levels_per_search):
            codebooks = [level.codewords for level in searched]
            nearest = self.search(residuals[-1].detach(), codebooks)
            for level, index in zip(searched, nearest, strict=True):
                codeword = level.lookup(index)
                residual = residuals[-1] - codeword
                indices.append(index)
                codewords.append(codeword)
                residuals.append(residual)
        return indices, codewords, residuals

    @torch.no_grad()
    def encode(self, latents: Tensor, levels: int | None = None) -> Codes:
        """Return the codes (B, H, W) of the first levels (default: all), and update nothing; raise
        the same errors as `forward`.
        """
        z = latents.flatten(0, -2).float()

        # the last search alone needs no codewords and no residuals after it
        wanted = self.levels[:levels]
        last = split_levels(wanted, self._levels_per_search)[-1]
        indices, _, residuals = self.descend(z, len(wanted) - len(last))
        nearest = self.search(residuals[-1], [level.codewords for level in last])
        return self._codes([*indices, *nearest], latents)

    def lookup(self, codes: Codes) -> Tensor:
        """Return latents (B, H, W, D) for codes of the first levels, whose values are not checked:
        the sum of the codewords at each position before it stops.
        """
        return sum(self._codewords(codes), torch.zeros((), device=codes[0].device))

    def prefix_latents(self, codes: Codes) -> Tensor:
        """Return the latents of the first 1, 2, ... levels of codes, (levels, B, H, W, D)."""
        return torch.stack([*accumulate(self._codewords(codes))])

    def _codewords(self, codes: Codes) -> list[Tensor]:
        """Return the codewords (B, H, W, D) of each level, 0 where a position has stopped."""
        pairs = zip(self.levels, self.codeword_indices(codes), strict=False)
        return [level.lookup(index) * (index >= 0).unsqueeze(-1) for level, index in pairs]

    def prefix_distances(self, latents: Tensor, codes: Codes) -> Tensor:
        """Return the squared distances of latents (B, H, W, D) from the first 1, 2, ... levels of
        codes, (levels, B, H, W).
        """
        return (self.prefix_latents(codes) - latents).square().sum(-1)

    def price_bits(self, bits: Tensor, quality: Tensor) -> Tensor:
        """Return the squared distance that the first 1, 2, ... levels must save.

        Args:
            bits: Bits of each code, (levels, B, H, W) or what can be broadcast to it.
            quality: From 0, the coarsest, on, (B,). Each step halves the price of a bit. With 0,
                level 2 saves as much in the mean as it costs.
        """
        second = self.levels[1]
        gain = (second.codewords.square().sum(-1) * second.count).sum() / second.count.sum()
        price = gain / math.log2(second.size) * 0.5**quality
        return bits.cumsum(0) * price.view(-1, 1, 1)

    def codeword_indices(self, codes: Codes) -> Codes:
        """Return, in the shapes of the codes, the index of each codeword among all codewords of its
        level; -1 where a position has stopped.
        """
        indices: list[Tensor] = []
        for code, codebooks in zip(codes, self.levels, strict=False):
            parent = indices[-1] if codebooks.num_books > 1 else 0
            indices.append(torch.where(code < 0, -1, parent * codebooks.size + code))
        return tuple(indices)

    @torch.no_grad()
    def initialize(
        self,
        latents: Tensor,
        rng: torch.Generator,
        weight: float = 1.0,
        least: int = 0,
    ) -> None:
        """Start by k-means on the residuals of latents (..., D), level by level
        (`LevelCodebooks.initialize`).
        """
        # the vectors that a call of `search` gets: residuals after the levels of earlier calls
        vectors = latents.flatten(0, -2).float()
        for levels in split_levels(self.levels, self._levels_per_search):
            residual = vectors
            parent = torch.zeros_like(vectors[:, 0], dtype=torch.long)
            for count, codebooks in enumerate(levels, start=1):
                codebooks.initialize(residual, parent, rng, weight, least)

                # search again from the first level: a beam may change coarser levels too
                started = levels[:count]
                indices = self.search(vectors, [level.codewords for level in started])
                pairs = zip(started, indices, strict=True)
                codewords = torch.stack([level.lookup(index) for level, index in pairs])
                residual = vectors - codewords.sum(0)
                parent = indices[-1]
            vectors = residual

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, rng: torch.Generator) -> int:
        """Move dead codewords to vectors of living ones, with a copy of their subtrees; return how
        many moved.
        """
        z = latents.flatten(0, -2).float()
        indices, _, residuals = self.descend(z)  # before any codeword moves
        restarted = 0

        # vectors that may be drawn; on a GPU the search does not refuse those that are not finite
        usable = z.square().sum(1).isfinite()
        below = self.config.restart_below
        for level, codebooks in enumerate(self.levels):
            index = indices[level]
            residual = residuals[level][usable]
            moved, source = codebooks.restart_dead_codes(residual, index[usable], below, rng)
            self.copy_subtrees(level, source, moved)

            # The codebooks below a moved codeword are new. So the finer indices and residuals of
            # its vectors are no longer right.
            usable &= ~torch.isin(index, moved)
            restarted += len(moved)
        return restarted

    def copy_subtrees(self, level: int, source: Tensor, target: Tensor) -> None:
        """Copy the subtrees of codewords `source` (K,) of a level to `target` (K,).

        Each copied count is multiplied by the ratio of the target's count to the source's.
        """
        count = self.levels[level].count.view(-1)
        ratio = count[target] / count[source]  # a source is alive, so its count is not zero
        for finer in self.levels[level + 1 :]:
            if finer.num_books == 1:
                break  # the first level of the next group
            source = finer.children_of(source)
            target = finer.children_of(target)
            ratio = ratio.repeat_interleave(finer.size)
            count = finer.count.view(-1)[source] * ratio
            finer.set_codewords(finer.lookup(source), count, target)
