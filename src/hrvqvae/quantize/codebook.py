"""The codebooks of one level: start, update and restart of their codewords.

Shapes: a level has num_books codebooks of m codewords of width D. The index of a codeword in its level is
book * m + child. N is the number of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.quantize.search import search


def random_latents(latents: Tensor, num_leaves: int, rng: torch.Generator) -> Tensor:
    """Return normal vectors (N, D) for a random start, four per leaf, with mean and deviation of latents (..., D).

    Codewords from N(0, 1) would lie far from the latents of an untrained encoder, and few would ever be chosen
    (docs/comparison.md).
    """
    flat = latents.reshape(-1, latents.shape[-1]).float()
    noise = torch.randn(max(1024, 4 * num_leaves), flat.shape[-1], generator=rng, dtype=torch.float32)
    return noise.to(flat.device) * flat.std(0, correction=0) + flat.mean(0)


class LevelCodebooks(nn.Module):
    """The codebooks of one level, (num_books, m, D), with a moving average of how often each codeword is used.

    With the update "ema" the codewords are a buffer: the moving average of the vectors that chose them (appendix A.1 of
    VQVAE). With "gradient" they are a parameter, which the codebook loss moves (docs/method.md). With `shrinkage` each
    codeword leans towards the mean of all codewords with the same code; a codeword without vectors is this mean.
    """

    codewords: Tensor
    count: Tensor  # (num_books, m): moving average of the number of vectors per batch
    total: Tensor | None  # (num_books, m, D): moving average of the sum of these vectors; only with "ema"
    shared: Tensor | None  # (m, D): mean of all vectors with the same code; only with `shrinkage` and several codebooks

    def __init__(
        self, num_books: int, size: int, dim: int, decay: float, update: Literal["ema", "gradient"] = "ema",
        shrinkage: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.decay, self.num_books, self.size, self.shrinkage = decay, num_books, size, shrinkage
        self.num_codewords = num_books * size
        self.register_buffer("count", torch.ones(num_books, size, dtype=torch.float32))
        codewords, follows = torch.zeros(num_books, size, dim, dtype=torch.float32), update == "ema"
        if follows:
            self.register_buffer("codewords", codewords)
        else:
            self.codewords = nn.Parameter(codewords)
        self.register_buffer("total", torch.zeros_like(codewords) if follows else None)
        self.register_buffer("shared", torch.zeros_like(codewords[0]) if shrinkage and num_books > 1 else None)

    def reset_parameters(self) -> None:
        """Reset to the state of new codebooks, also after `to_empty`."""
        every = torch.arange(self.num_codewords, device=self.count.device)
        self.set_codewords(every, self.count.new_zeros(()), self.count.new_ones(()))
        if self.shared is not None:
            self.shared.zero_()

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codewords of indices (...) int64: (..., D)."""
        return self.codewords.flatten(0, 1)[index]

    def set_codewords(self, index: Tensor, vectors: Tensor, count: Tensor) -> None:
        """Set the codewords of indices (K,) to vectors (K, D), with counts (K,)."""
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
        """Return counts and sums of residuals (N, D) by index (N,). The statistics of several batches add up."""
        counts = vq.counts(index, self.num_codewords).to(self.count.dtype).view_as(self.count)
        if self.total is None:
            return [counts]
        return [counts, vq.sums(residual, index, self.num_codewords).view_as(self.total)]

    def average(self, counts: Tensor, sums: Tensor | None = None) -> None:
        """Update the moving averages and the codewords by the statistics of a batch.

        A codeword whose sum is not finite stays as it is, for example after an overflow on a GPU.
        """
        if self.total is not None and sums is not None:
            finite = sums.isfinite().all(-1)
            counts = torch.where(finite, counts, self.count)
            self.total.lerp_(torch.where(finite.unsqueeze(-1), sums, self.total), 1 - self.decay)
        self.count.lerp_(counts, 1 - self.decay)
        if self.shared is not None:
            assert self.total is not None
            self.shared.copy_(vq.moving_average_codewords(self.count.sum(0), self.total.sum(0), self.shared))
            self.codewords.copy_(vq.shrink(self.count, self.total, self.shared, self.shrinkage))
        elif self.total is not None:
            self.codewords.copy_(vq.moving_average_codewords(self.count, self.total, self.codewords))

    @torch.no_grad()
    def initialize(
        self, residual: Tensor, parent: Tensor, rng: torch.Generator, weight: float = 1.0, even: bool = False,
        shared: bool = False,
    ) -> None:  # fmt: skip
        """Run k-means in each codebook that gets vectors; start the others with small random codewords.

        Each codeword begins with the count of its cluster, so that the first batches refine it instead of replacing it.
        With `shrinkage` all codebooks begin with the clusters of one k-means.

        Args:
            residual: (N, D), input of this level.
            parent: (N,), codebook of each vector.
            rng: random generator.
            weight: weight of a vector in the counts: vectors per training batch, divided by N.
            even: codewords get about equally many vectors (`kmeans`).
            shared: all codebooks begin with the clusters of one k-means.
        """
        size, dim = self.size, residual.shape[-1]
        if shared or self.shared is not None:
            centers, _ = kmeans(residual, size, rng)
            count = vq.counts(parent * size + search(residual, [centers[None]])[0], self.num_codewords)
            every = torch.arange(self.num_codewords, device=residual.device)
            self.set_codewords(every, centers.repeat(self.num_books, 1), count.to(centers.dtype) * weight)
            if self.shared is not None:
                self.shared.copy_(centers)
            return
        scale = residual.std(0, correction=0) * 0.1
        start = torch.randn(self.num_codewords, dim, generator=rng, dtype=torch.float32).to(residual.device) * scale
        count = torch.zeros(self.num_codewords, device=residual.device, dtype=torch.float32)
        for book, members in vq.group_by_book(parent, self.num_books):
            children = slice(book * size, (book + 1) * size)
            start[children], count[children] = kmeans(residual[members], size, rng, even)
        self.set_codewords(torch.arange(self.num_codewords, device=residual.device), start, count * weight)

    @torch.no_grad()
    def restart_dead_codes(
        self, residual: Tensor, index: Tensor, below: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move dead codewords to random vectors of their codebook.

        The vectors are drawn from those of living codewords. A moved codeword begins with the mean count of its
        codebook, so that the next update does not undo the move.

        Args:
            residual: (N, D), input of this level.
            index: (N,), codeword of each vector.
            below: a codeword is dead when its share of its codebook's count is below this / m.
            rng: random generator.

        Returns:
            Indices (K,) of the moved codewords, and indices (K,) of the codewords whose vectors they took.
        """
        total = self.count.sum(1, keepdim=True)
        dead = self.count < total * (below / self.size)
        moved, source = [index[:0]], [index[:0]]
        candidates = (~dead.view(-1)[index]).nonzero().flatten()
        for book, positions in vq.group_by_book(index[candidates] // self.size, self.num_books) if dead.any() else ():
            members = candidates[positions]
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
    """Update the codebooks of all levels by a batch.

    Args:
        levels: codebooks of each level.
        residuals: (N, D), input of each level.
        indices: (N,), codewords that the residuals chose, per level.
        group: processes that sum their statistics, by one all-reduce.
    """
    statistics = [level.statistics(*batch) for level, *batch in zip(levels, residuals, indices, strict=True)]
    summed = iter(distributed.all_reduce([values for level in statistics for values in level], group))
    for level, values in zip(levels, statistics, strict=True):
        level.average(*(next(summed) for _ in values))
