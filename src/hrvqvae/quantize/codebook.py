"""Codebooks of one level: how their codewords learn, start and are restarted.

Shapes: a level has num_books codebooks of m codewords of width D; N vectors r are quantized, and the path says which
codeword each one got (path = book * m + child).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans


def random_latents(latents: Tensor, num_leaves: int, generator: torch.Generator) -> Tensor:
    """(N, D) normal vectors for a random start, four a leaf, with mean and standard deviation of latents (..., D).

    So codewords begin apart from each other, in a tree and in a flat codebook alike, and no farther than latents are:
    from N(0, 1), far from the latents of an untrained encoder, few codewords are ever chosen (docs/comparison.md).
    """
    known = latents.reshape(-1, latents.shape[-1]).float()
    noise = torch.randn(max(1024, 4 * num_leaves), known.shape[-1], generator=generator, dtype=torch.float32)
    return noise.to(known.device) * known.std(0, correction=0) + known.mean(0)


class LevelCodebooks(nn.Module):
    """The codebooks of one level, (num_books, m, D), with the moving average of how often each codeword is used.

    With the update "ema" codewords are a buffer, the moving average of the vectors that chose them (VQVAE's appendix
    A.1; VQVAE-2); with "gradient" a parameter, which the codebook loss moves (docs/method.md, the loss as printed).
    """

    codewords: Tensor
    count: Tensor  # (num_books, m): moving average of assignments a batch
    total: Tensor | None  # (num_books, m, D): that of the sum of the vectors assigned, with "ema"

    def __init__(
        self, num_books: int, size: int, dim: int, decay: float, update: Literal["ema", "gradient"] = "ema"
    ) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("count", torch.ones(num_books, size, dtype=torch.float32))
        codewords, follows = torch.zeros(num_books, size, dim, dtype=torch.float32), update == "ema"
        if follows:
            self.register_buffer("codewords", codewords)
        else:
            self.codewords = nn.Parameter(codewords)
        self.register_buffer("total", torch.zeros_like(codewords) if follows else None)

    @property
    def num_codewords(self) -> int:
        """Codewords of the level in all: num_books * m."""
        return self.count.numel()

    def lookup(self, path: Tensor) -> Tensor:
        """Codewords that paths stand for: (...) int64 -> (..., D)."""
        return self.codewords.flatten(0, 1)[path]

    def codebook_loss(self, residual: Tensor, codeword: Tensor) -> Tensor | None:
        """||sg[residual] - codeword||^2, a scalar, where the gradient moves the codewords; None elsewhere."""
        return vq.squared_error(residual.detach(), codeword) if self.total is None else None

    def set_codewords(self, path: Tensor, vectors: Tensor, count: Tensor) -> None:
        """Place the codewords of those paths (K,) at vectors (K, D), with the count (K,) that they begin with."""
        self.codewords.data.flatten(0, 1)[path] = vectors
        self.count.view(-1)[path] = count
        if self.total is not None:
            self.total.flatten(0, 1)[path] = vectors * count.unsqueeze(-1)

    def reorder(self, path: Tensor) -> None:
        """Let each codeword, with its averages, be what the codeword of the path at its place (num_codewords,) was."""
        for one in (self.codewords.data, self.count, self.total):
            if one is not None:
                flat = one.view(self.num_codewords, -1)
                flat.copy_(flat[path])

    def statistics(self, residual: Tensor, path: Tensor) -> list[Tensor]:
        """What a batch of assignments adds to each moving average: residual (N, D), path (N,) -> the counts first.

        Those of several batches add up to those of all of them together.
        """
        found = [vq.counts(path, self.num_codewords).to(self.count.dtype).view_as(self.count)]
        if self.total is not None:
            found.append(vq.sums(residual, path, self.num_codewords).view_as(self.total))
        return found

    @torch.no_grad()
    def average(self, statistics: Sequence[Tensor]) -> None:
        """Take the statistics of a batch into the moving averages, and let the codewords follow.

        Sums that are not finite, as of a vector that overflowed on a GPU, are left out.
        """
        self.count.lerp_(statistics[0], 1 - self.decay)
        if self.total is not None:
            finite = statistics[1].isfinite().all(-1, keepdim=True)
            sums = torch.where(finite, statistics[1], self.total)
            self.total.lerp_(sums, 1 - self.decay)
            self.codewords.copy_(vq.moving_average_codewords(self.count, self.total, self.codewords))

    @torch.no_grad()
    def initialize(
        self, residual: Tensor, parent: Tensor, generator: torch.Generator, weight: float = 1.0, even: bool = False
    ) -> None:
        """k-means in each codebook that gets data; a codebook that gets none starts near zero residual.

        Each codeword begins with the count of its cluster, so that the first batches refine it instead of replacing it.

        Args:
            residual: (N, D), what this level has to code.
            parent: (N,), the codebook that each vector is searched in.
            weight: of a vector in the counts: vectors of a training batch over N, since counts are those of a batch.
            even: codewords get about equally many vectors (`kmeans`).
        """
        num_books, size = self.count.shape
        dim = residual.shape[-1]
        scale = residual.std(0, correction=0) * 0.1
        start = torch.randn(num_books * size, dim, generator=generator, dtype=torch.float32).to(residual.device) * scale
        count = torch.zeros(num_books * size, device=residual.device, dtype=torch.float32)
        for book, members in vq.nodes(parent, num_books):
            children = slice(book * size, (book + 1) * size)
            start[children], count[children] = kmeans(residual[members], size, generator, even)
        self.set_codewords(torch.arange(num_books * size, device=residual.device), start, count * weight)

    @torch.no_grad()
    def restart_dead_codes(
        self, residual: Tensor, parent: Tensor, path: Tensor, below: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move dead codewords of codebooks that get data to vectors of theirs, drawn at random.

        A codeword is dead when its moving average of assignments is below `below` / m of its codebook's. Vectors are
        drawn from those of codewords that are not dead. Those that are placed begin with the codebook's mean count, so
        that the next update does not undo it.

        Args:
            residual: (N, D), what this level has to code.
            parent: (N,), the codebook that each vector is searched in.
            path: (N,), the codeword that each vector has.

        Returns:
            Paths of the codewords that were moved, and of those that had the vectors they were moved to: (K,) each.
        """
        num_books, size = self.count.shape
        total = self.count.sum(1, keepdim=True)
        dead = self.count < total * (below / size)
        moved, source = [path[:0]], [path[:0]]
        drawable = (~dead.view(-1)[path]).nonzero().flatten()
        for book, places in vq.nodes(parent[drawable], num_books) if dead.any() else ():
            members = drawable[places]
            children = dead[book].nonzero().flatten()[: len(members)]
            if len(children) == 0:
                continue
            drawn = members[torch.randperm(len(members), generator=generator)[: len(children)].to(members.device)]
            count = (total[book] / size).expand(len(children))
            self.set_codewords(book * size + children, residual[drawn], count)
            moved.append(book * size + children)
            source.append(path[drawn])
        return torch.cat(moved), torch.cat(source)


@torch.no_grad()
def follow(assigned: Iterable[tuple[LevelCodebooks, Tensor, Tensor]]) -> None:
    """Let codebooks follow a batch: of each the residuals that it coded, (N, D), and their paths, (N,).

    Where several processes train together, the batch is that of all of them, and their statistics are added up in one
    all-reduce for all codebooks.
    """
    found = [(codebook, codebook.statistics(residual, path)) for codebook, residual, path in assigned]
    summed = iter(distributed.all_reduce([one for _, statistics in found for one in statistics]))
    for codebook, statistics in found:
        codebook.average([next(summed) for _ in statistics])
