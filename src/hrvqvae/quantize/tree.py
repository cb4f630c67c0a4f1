"""Residual quantization with linked codebooks: the heart of HR-VQVAE (docs/method.md).

Shapes: (B, H, W, D) latents, L levels, m codewords a codebook; N = B * H * W.

    z = r_0 --+--> level 1: nearest of m in the one codebook --> e_1 --+
              |                                                        | k_1 names the codebook below
    r_1 = r_0 - e_1 --> level 2: nearest of m in codebook p_1 --> e_2 --+
    ...                                                                +--> z_q = e_1 + ... + e_L
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hrvqvae.config import TreeQuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import CODEBOOKS, Codebook, follow
from hrvqvae.quantize.flat import check_codes
from hrvqvae.quantize.losses import residual_losses
from hrvqvae.quantize.quantized import Codes, Quantized
from hrvqvae.quantize.search import Beam, TreeSearch, TreeSearcher
from hrvqvae.utils.errors import InputError


class TreeQuantizer(nn.Module):
    """L levels of linked codebooks on one latent grid.

    `codebooks[l]` holds (m^l, m, D) codewords; the path so far names the one codebook that is searched there. Codewords
    change in training mode alone. Everything is computed in float32, whatever autocast says.

    Args:
        config: of the codebooks, and of the search.
        search: instead of the beam or greedy search that the configuration asks for.
    """

    def __init__(self, config: TreeQuantizerConfig, search: TreeSearcher | None = None) -> None:
        super().__init__()
        self.config = config
        self.search = search or Beam(config.beam, config.coarse_weight)
        kind = CODEBOOKS[config.update]
        self.codebooks = nn.ModuleList(
            kind(config.codewords**level, config.codewords, config.dim, config.decay) for level in range(config.levels)
        )

    @property
    def levels(self) -> Sequence[Codebook]:
        """The codebooks of each level, coarse first."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (B, H, W, D); in training mode, let the codewords follow.

        Raises:
            NonFiniteError: a latent is NaN or infinite.
        """
        with torch.autocast(latents.device.type, enabled=False):
            flat = self._flat(latents)
            paths = self._search(flat).paths
            quantized, losses = self._losses(flat, paths)
            if self.training:
                walk = zip(self.levels, self._walk(flat.detach(), paths), strict=True)
                follow((codebook, residual, path) for codebook, (residual, path) in walk)
            through = vq.straight_through(flat, quantized).view(latents.shape)
        return Quantized(through, self._codes(paths, latents.shape[:-1]), losses)

    def encode(self, latents: Tensor) -> Codes:
        """Codes of (B, H, W, D) latents: L tensors (B, H, W) int64 in [0, m).

        Raises:
            NonFiniteError: a latent is NaN or infinite.
        """
        paths = self._search(self._flat(latents)).paths
        return self._codes(paths, latents.shape[:-1])

    def lookup(self, codes: Codes) -> Tensor:
        """Sum of the codewords of the levels that are given, any non-empty prefix: -> (B, H, W, D).

        Raises:
            InputError: no level, more levels than there are, different grids, or a code outside [0, m).
        """
        size, levels = self.config.codewords, self.levels
        if not 1 <= len(codes) <= len(levels):
            raise InputError(f"{len(codes)} levels of codes given; this model has 1 to {len(levels)}")
        path = torch.zeros_like(codes[0])
        quantized = torch.zeros((), device=path.device)
        for level, (codebook, code) in enumerate(zip(levels, codes, strict=False), start=1):
            check_codes(code, codes[0].shape, size, level)
            path = path * size + code
            quantized = quantized + codebook.lookup(path)
        return quantized

    def paths(self, codes: Codes) -> tuple[Tensor, ...]:
        """Path p_l of each level from child indices: same shapes, values in [0, m^l)."""
        found: list[Tensor] = []
        for code in codes:
            found.append(code if not found else found[-1] * self.config.codewords + code)
        return tuple(found)

    @torch.no_grad()
    def initialize(self, latents: Tensor, generator: torch.Generator, weight: float = 1.0) -> None:
        """k-means start of the tree from (..., D) latents, level by level, node by node.

        Each latent weighs `weight` in the codewords' counts.
        """
        flat = residual = self._flat(latents)
        path = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        books: list[Tensor] = []
        for codebook in self.levels:
            codebook.initialize(residual, path, generator, weight)
            books.append(codebook.codewords)
            found = self.search(flat, books)
            path, residual = found.paths[-1], flat - found.quantized  # a beam may change its mind at any level

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        """Revive dead codewords from (..., D) latents of a training batch; returns how many.

        What is left of a vector is much alike wherever its codeword lies. So the subtree below a restarted codeword
        begins as a copy of the one below the codeword that had its vector: what it held before belongs to the place
        that was left.
        """
        flat = self._flat(latents)
        paths = self._search(flat).paths
        residuals = [residual for residual, _ in self._walk(flat, paths)]  # before any codeword moves
        kept = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        restarted = 0
        for level, (codebook, residual) in enumerate(zip(self.levels, residuals, strict=True)):
            parent = paths[level - 1] if level else torch.zeros_like(paths[0])
            moved, source = codebook.restart_dead_codes(
                residual[kept], parent[kept], paths[level][kept], self.config.restart_below, generator
            )
            self._copy_subtrees(level, source, moved)
            kept &= ~torch.isin(paths[level], moved)  # their residual is of the place that was left
            restarted += len(moved)
        return restarted

    def _copy_subtrees(self, level: int, source: Tensor, target: Tensor) -> None:
        """Let the subtrees below codewords `target` (K,) of a level be copies of those below `source` (K,).

        Their counts are in proportion to the codewords' own. A source is alive, so its count is not zero.
        """
        count = self.levels[level].count.view(-1)
        weight = count[target] / count[source]
        size = self.config.codewords
        children = torch.arange(size, device=source.device)
        for codebook in self.levels[level + 1 :]:
            source, target = ((path[:, None] * size + children).flatten() for path in (source, target))
            weight = weight.repeat_interleave(size)
            codebook.copy(source, target, weight)

    def _flat(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, latents.shape[-1]).float()

    def _search(self, flat: Tensor) -> TreeSearch:
        return self.search(flat.detach(), [book.codewords.detach() for book in self.levels])

    def _codes(self, paths: Tensor, shape: Sequence[int]) -> Codes:
        return tuple((path % self.config.codewords).view(shape) for path in paths)

    def _walk(self, flat: Tensor, paths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(r_{l-1}, p_l) of each level, with the codewords as they were at the search."""
        books = [book.codewords.detach().flatten(0, 1) for book in self.levels]
        residual = flat
        for book, path in zip(books, paths, strict=True):
            after = residual - book[path]
            yield residual, path
            residual = after

    def _losses(self, flat: Tensor, paths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = list(zip(self.levels, paths, strict=True))
        return residual_losses(flat, chosen, self.config.beta, self.config.beta_of_levels)
