"""The codebooks of one level: how their codewords learn, start and restart.

Shapes: a level has num_books codebooks of m codewords of width D; N vectors are quantized, and the index says which
codeword of the level each vector got: index = book * m + child.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans


def random_latents(latents: Tensor, num_leaves: int, rng: torch.Generator) -> Tensor:
    """Return normal vectors (N, D) for a random start, four per leaf, with mean and deviation of latents (..., D).

    So codewords begin apart from each other, in a tree and in a flat codebook alike, and no farther than latents are:
    from N(0, 1), far from the latents of an untrained encoder, few codewords are ever chosen (docs/comparison.md).
    """
    flat = latents.reshape(-1, latents.shape[-1]).float()
    noise = torch.randn(max(1024, 4 * num_leaves), flat.shape[-1], generator=rng, dtype=torch.float32)
    return noise.to(flat.device) * flat.std(0, correction=0) + flat.mean(0)


class LevelCodebooks(nn.Module):
    """The codebooks of one level, (num_books, m, D), with the moving average of how often each codeword is used.

    With the update "ema" codewords are a buffer, the moving average of the vectors that chose them (VQVAE's appendix
    A.1; VQVAE-2); with "gradient" a parameter, which the codebook loss moves (docs/method.md, the loss as printed).
    """

    codewords: Tensor
    count: Tensor  # (num_books, m): moving average of assignments per batch
    total: Tensor | None  # (num_books, m, D): that of the sum of the vectors assigned, with "ema"

    def __init__(
        self, num_books: int, size: int, dim: int, decay: float, update: Literal["ema", "gradient"] = "ema"
    ) -> None:
        super().__init__()
        self.decay, self.num_books, self.size = decay, num_books, size
        self.num_codewords = num_books * size
        self.register_buffer("count", torch.ones(num_books, size, dtype=torch.float32))
        codewords, follows = torch.zeros(num_books, size, dim, dtype=torch.float32), update == "ema"
        if follows:
            self.register_buffer("codewords", codewords)
        else:
            self.codewords = nn.Parameter(codewords)
        self.register_buffer("total", torch.zeros_like(codewords) if follows else None)

    def reset_parameters(self) -> None:
        """Begin anew; after `to_empty`, too."""
        every = torch.arange(self.num_codewords, device=self.count.device)
        self.set_codewords(every, self.count.new_zeros(()), self.count.new_ones(()))

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codewords of indices (...) int64: (..., D)."""
        return self.codewords.flatten(0, 1)[index]

    def set_codewords(self, index: Tensor, vectors: Tensor, count: Tensor) -> None:
        """Place the codewords of indices (K,) at vectors (K, D), with the count (K,) that they begin with."""
        self.codewords.data.flatten(0, 1)[index] = vectors
        self.count.view(-1)[index] = count
        if self.total is not None:
            self.total.flatten(0, 1)[index] = vectors * count.unsqueeze(-1)

    def reorder(self, index: Tensor) -> None:
        """Renumber the codewords, with their averages: new[i] = old[index[i]], for index (num_codewords,)."""
        for values in (self.codewords.data, self.count, self.total):
            if values is not None:
                flat = values.view(self.num_codewords, -1)
                flat.copy_(flat[index])

    def statistics(self, residual: Tensor, index: Tensor) -> list[Tensor]:
        """Return what a batch adds to each moving average: counts, then sums of residuals (N, D) by index (N,).

        The statistics of several batches add up to those of all of them together.
        """
        counts = vq.counts(index, self.num_codewords).to(self.count.dtype).view_as(self.count)
        if self.total is None:
            return [counts]
        return [counts, vq.sums(residual, index, self.num_codewords).view_as(self.total)]

    def average(self, counts: Tensor, sums: Tensor | None = None) -> None:
        """Take the statistics of a batch into the moving averages, and let the codewords follow.

        A codeword whose sum is not finite, as of a vector that overflowed on a GPU, stays as it is.
        """
        if self.total is not None and sums is not None:
            finite = sums.isfinite().all(-1)
            counts = torch.where(finite, counts, self.count)
            self.total.lerp_(torch.where(finite.unsqueeze(-1), sums, self.total), 1 - self.decay)
        self.count.lerp_(counts, 1 - self.decay)
        if self.total is not None:
            self.codewords.copy_(vq.moving_average_codewords(self.count, self.total, self.codewords))

    @torch.no_grad()
    def initialize(
        self, residual: Tensor, parent: Tensor, rng: torch.Generator, weight: float = 1.0, even: bool = False
    ) -> None:
        """Run k-means in each codebook that gets data; a codebook that gets none starts near zero residual.

        Each codeword begins with the count of its cluster, so that the first batches refine it instead of replacing it.

        Args:
            residual: (N, D), what this level has to code.
            parent: (N,), the codebook that each vector is searched in.
            weight: of a vector in the counts: vectors of a training batch over N, since counts are those of a batch.
            even: codewords get about equally many vectors (`kmeans`).
        """
        size, dim = self.size, residual.shape[-1]
        scale = residual.std(0, correction=0) * 0.1
        start = torch.randn(self.num_codewords, dim, generator=rng, dtype=torch.float32).to(residual.device) * scale
        count = torch.zeros(self.num_codewords, device=residual.device, dtype=torch.float32)
        for book, members in vq.nodes(parent, self.num_books):
            children = slice(book * size, (book + 1) * size)
            start[children], count[children] = kmeans(residual[members], size, rng, even)
        self.set_codewords(torch.arange(self.num_codewords, device=residual.device), start, count * weight)

    @torch.no_grad()
    def restart_dead_codes(
        self, residual: Tensor, index: Tensor, below: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move dead codewords of codebooks that get data to vectors of theirs, drawn at random.

        A codeword is dead when its moving average of assignments is below `below` / m of its codebook's. Vectors are
        drawn from those of codewords that are not dead. Those that are placed begin with the codebook's mean count, so
        that the next update does not undo it.

        Args:
            residual: (N, D), what this level has to code.
            index: (N,), the codeword that each vector has.

        Returns:
            Indices of the codewords that moved, and of those that had the vectors they moved to: (K,) each.
        """
        total = self.count.sum(1, keepdim=True)
        dead = self.count < total * (below / self.size)
        moved, source = [index[:0]], [index[:0]]
        drawable = (~dead.view(-1)[index]).nonzero().flatten()
        for book, places in vq.nodes(index[drawable] // self.size, self.num_books) if dead.any() else ():
            members = drawable[places]
            children = dead[book].nonzero().flatten()[: len(members)]
            if len(children) == 0:
                continue
            drawn = members[torch.randperm(len(members), generator=rng)[: len(children)].to(members.device)]
            count = (total[book] / self.size).expand(len(children))
            self.set_codewords(book * self.size + children, residual[drawn], count)
            moved.append(book * self.size + children)
            source.append(index[drawn])
        return torch.cat(moved), torch.cat(source)


@torch.no_grad()
def follow(
    levels: Sequence[LevelCodebooks], residuals: Sequence[Tensor], indices: Sequence[Tensor], group: Any = None
) -> None:
    """Let codebooks follow a batch: of each level the residuals (N, D) that it coded, and their indices (N,).

    The processes of a group add up their statistics in one all-reduce for all levels.
    """
    statistics = [level.statistics(*batch) for level, *batch in zip(levels, residuals, indices, strict=True)]
    summed = iter(distributed.all_reduce([values for level in statistics for values in level], group))
    for level, values in zip(levels, statistics, strict=True):
        level.average(*(next(summed) for _ in values))
