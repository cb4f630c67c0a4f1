"""Residual quantization, from one flat codebook to the tree of HR-VQVAE (docs/method.md).

Shapes: (B, H, W, D) latents, L levels, m codewords a codebook; N = B * H * W. With three levels, all linked:

    z = r_0 --+--> level 1: nearest of m in the one codebook --> e_1 --+
              |                                                        | k_1 names the codebook below
    r_1 = r_0 - e_1 --> level 2: nearest of m in codebook p_1 --> e_2 --+
    r_2 = r_1 - e_2 --> level 3: nearest of m in codebook p_2 --> e_3 --+--> z_q = e_1 + e_2 + e_3

Levels that are not linked have one codebook each. Between the two lie groups of linked levels: a group searches what
the groups before it left, and its paths begin at its own root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks, follow, random_latents
from hrvqvae.quantize.losses import residual_losses
from hrvqvae.quantize.quantized import Codes, Quantized, Quantizer, check_codes, require_finite
from hrvqvae.quantize.search import Search, search
from hrvqvae.utils.errors import NonFiniteError

_LARGEST_ALIGNED = 64  # codewords of a codebook: their pairs are gone through

Start = Callable[[LevelCodebooks, Tensor, Tensor, torch.Generator, float], None]
"""As `LevelCodebooks.initialize`."""


class ResidualQuantizer(Quantizer):
    """L levels on one latent grid: VQ with one level, RQ where none are linked, HR-VQVAE where all are.

    The codebooks of a group's level l, counted from 0, are (m^l, m, D). Codewords change in training mode alone.
    Everything is computed in float32, whatever autocast says.
    """

    config: QuantizerConfig

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.search: Search = partial(search, width=config.beam, coarse_weight=config.coarse_weight)
        numbers = config.num_codebooks[:1] if config.shared else config.num_codebooks
        each = (config.codewords, config.dim, config.decay, config.update)
        books = nn.ModuleList(LevelCodebooks(number, *each) for number in numbers)
        if config.levels == 1:
            self.codebook = books[0]  # the name of its weights in all files, whose digests depend on it
        else:
            self.codebooks = books

    @property
    def levels(self) -> Sequence[LevelCodebooks]:
        """The codebooks of each level, coarse first; a shared one stands for every level."""
        books: list[Any] = [self.codebook] if self.config.levels == 1 else [*self.codebooks]
        return books * self.config.levels if self.config.shared else books

    @property
    def _groups(self) -> list[Sequence[LevelCodebooks]]:
        """The codebooks of each group of linked levels, coarse first."""
        size = self.config.group_size
        return [self.levels[first : first + size] for first in range(0, self.config.levels, size)]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (B, H, W, D); in training mode, let the codewords follow.

        Raises NonFiniteError where a latent is NaN or infinite.
        """
        with torch.autocast(latents.device.type, enabled=False):
            flat = self._flat(latents)
            paths = self._search(flat)
            chosen = list(zip(self.levels, paths, strict=True))
            quantized, losses = residual_losses(flat, chosen, self.config.beta, self.config.beta_of_levels)
            if self.training:
                follow(self._assigned(flat.detach(), paths))
            through = vq.straight_through(flat, quantized).view(latents.shape)
        return Quantized(through, self._codes(paths, latents.shape[:-1]), losses)

    def encode(self, latents: Tensor) -> Codes:
        return self._codes(self._search(self._flat(latents)), latents.shape[:-1])

    def lookup(self, codes: Codes) -> Tensor:
        """Sum of the codewords of the levels that are given."""
        check_codes(codes, (self.config.codewords,) * self.config.levels)
        quantized = torch.zeros((), device=codes[0].device)
        for codebook, path in zip(self.levels, self.codeword_indices(codes), strict=False):
            quantized = quantized + codebook.lookup(path)
        return quantized

    def codeword_indices(self, codes: Codes) -> Codes:
        """Numbers are counted from the root of a group."""
        found: list[Tensor] = []
        for level, code in enumerate(codes):
            begins = level % self.config.group_size == 0
            found.append(code if begins else found[-1] * self.config.codewords + code)
        return tuple(found)

    @torch.no_grad()
    def initialize(
        self, latents: Tensor, generator: torch.Generator, weight: float = 1.0, start: Start | None = None
    ) -> None:
        """k-means, level by level and codebook by codebook, on what the coarser ones leave; or, random codewords.

        A shared codebook is fitted to what all levels so far have to code, once for each level: fitted to the latents
        alone, it would hold no codeword as short as the finer levels' residuals.
        """
        if not self.config.init_vectors:
            latents, weight = random_latents(latents, max(self.config.num_codewords), generator), 1.0
        left = self._flat(latents)
        for level in range(1, self.config.levels + 1) if self.config.shared else ():
            ((codebook, vectors, _),) = self._assigned(left, self._search(left)[:level])
            codebook.initialize(vectors, vectors.new_zeros(len(vectors)).long(), generator, weight)
        for books in () if self.config.shared else self._groups:
            residual, path = left, left.new_zeros(len(left)).long()  # the root of a group
            for number, codebook in enumerate(books, start=1):
                (start or LevelCodebooks.initialize)(codebook, residual, path, generator, weight)
                paths = self.search(left, [book.codewords.detach() for book in books[:number]])
                path = paths[-1]  # a beam may change its mind at any level
                residual = left - sum(book.lookup(chosen) for book, chosen in zip(books, paths, strict=False))
            left = residual

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        """Move dead codewords to latents of a training batch.

        The subtree below a restarted codeword begins as a copy of the one below the codeword that had its vector: what
        it held before belongs to the place that was left.
        """
        flat = self._flat(latents)
        assigned = self._assigned(flat, self._search(flat))  # before any codeword moves
        kept = torch.ones_like(assigned[0][2], dtype=torch.bool)
        restarted = 0
        for level, (codebook, residual, path) in enumerate(assigned):
            known = path[kept]
            moved, source = codebook.restart_dead_codes(
                residual[kept], known // self.config.codewords, known, self.config.restart_below, generator
            )
            self.copy_subtrees(level, source, moved)
            kept &= ~torch.isin(path, moved)  # what a finer level has to code there is of the place that was left
            restarted += len(moved)
        return restarted

    def copy_subtrees(self, level: int, source: Tensor, target: Tensor) -> None:
        """Let the subtrees below codewords `target` (K,) of a level be copies of those below `source` (K,).

        Counts are in proportion to the codewords' own. A source is alive, so its count is not zero.
        """
        size, levels, linked = self.config.codewords, self.levels, self.config.group_size
        count = levels[level].count.view(-1)
        weight = count[target] / count[source]
        children = torch.arange(size, device=source.device)
        for codebook in levels[level + 1 : level - level % linked + linked]:
            source, target = ((path[:, None] * size + children).flatten() for path in (source, target))
            weight = weight.repeat_interleave(size)
            codebook.set_codewords(target, codebook.lookup(source), codebook.count.view(-1)[source] * weight)

    @torch.no_grad()
    def align(self) -> None:
        """Renumber the children of every codeword, so that a number means about the same below each of them.

        Children keep the subtrees below them: images have other codes, which a prior learns more easily, and the same
        reconstructions. Codebooks of more than 64 codewords are left as they are.
        """
        size = self.config.codewords
        for books in self._groups if size <= _LARGEST_ALIGNED and not self.config.shared else ():
            for level, codebook in enumerate(books[1:], start=1):
                order = vq.alignment(codebook.codewords, codebook.count)
                path = (torch.arange(len(order), device=order.device)[:, None] * size + order).flatten()
                for finer in books[level:]:
                    finer.reorder(path)
                    path = (path[:, None] * size + torch.arange(size, device=path.device)).flatten()

    def _flat(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, latents.shape[-1]).float()

    def _search(self, flat: Tensor) -> list[Tensor]:
        """Paths of vectors (N, D) at each level, (N,) each."""
        residual = flat.detach()
        paths: list[Tensor] = []
        for books in self._groups:
            try:
                found = self.search(residual, [book.codewords.detach() for book in books])
            except NonFiniteError:  # it counts the levels of a group
                require_finite(flat, [book.codewords for book in self.levels])
                raise
            paths.extend(found)
            for book, path in zip(books, found, strict=True) if len(paths) < self.config.levels else ():
                residual = residual - book.lookup(path).detach()
        return paths

    def _assigned(self, flat: Tensor, paths: Sequence[Tensor]) -> list[tuple[LevelCodebooks, Tensor, Tensor]]:
        """Codebooks with the vectors (n, D) that they coded at the levels of these paths, and their paths (n,)."""
        residuals = [flat]
        for codebook, path in zip(self.levels, paths[:-1], strict=False):
            residuals.append(residuals[-1] - codebook.lookup(path).detach())
        if self.config.shared:
            return [(self.levels[0], torch.cat(residuals), torch.cat(list(paths)))]
        return list(zip(self.levels, residuals, paths, strict=True))

    def _codes(self, paths: Sequence[Tensor], shape: Sequence[int]) -> Codes:
        return tuple((path % self.config.codewords).view(shape) for path in paths)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """As torch's, and take the one codebook of weights that were written where every quantizer had a list."""
        if self.config.levels == 1:
            listed = f"{prefix}codebooks.0."
            for name in [name for name in state_dict if name.startswith(listed)]:
                state_dict[f"{prefix}codebook.{name[len(listed) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *others)
