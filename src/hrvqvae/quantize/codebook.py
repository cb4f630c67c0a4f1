"""The codebooks of one level: start, update and restart of their codewords.

Shapes: a level has num_books codebooks of m codewords of width D. The index of a codeword in its
level is book * m + child. N is the number of vectors, K a number of codewords.

Moving averages (docs/method.md): n is `count`, s is `total`, and a codeword is s / n. A codeword
without vectors stays where it is, since n and s decay alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans


class LevelCodebooks(nn.Module):
    """All codebooks of one level: codewords are moving averages, total / count."""

    def __init__(self, config: QuantizerConfig, num_books: int, size: int) -> None:
        super().__init__()
        self.decay = config.decay
        self.num_books = num_books
        self.size = size
        self.num_codewords = num_books * size
        shape = (num_books, size, config.dim)
        # moving averages of the number of vectors per batch, and of the sum of these vectors
        self.count = nn.Buffer(torch.ones(shape[:2], dtype=torch.float32))
        self.codewords = nn.Buffer(torch.zeros(shape, dtype=torch.float32))
        self.total = nn.Buffer(torch.zeros(shape, dtype=torch.float32))

    def children_of(self, parents: Tensor) -> Tensor:
        """Return the indices of the children of codewords (K,) of the coarser level: (K * m,)."""
        children = torch.arange(self.size, device=parents.device)
        return (parents.unsqueeze(-1) * self.size + children).flatten()

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codewords of indices (...) int64: (..., D)."""
        return self.codewords.flatten(0, 1)[index]

    def set_codewords(self, vectors: Tensor, count: Tensor, index: Any = ...) -> None:
        """Set the codewords of indices (K,) (default: all) to vectors (K, D), with counts (K,), or
        to what can be broadcast to these shapes; sums follow from both.
        """
        self.codewords.flatten(0, 1)[index] = vectors
        self.count.view(-1)[index] = count
        self.total.flatten(0, 1)[index] = vectors * count.unsqueeze(-1)

    def initialize(
        self,
        residual: Tensor,
        parent: Tensor,
        rng: torch.Generator,
        weight: float = 1.0,
        least: int = 0,
    ) -> None:
        """Run k-means in each codebook that gets vectors; start the others with small random
        codewords.

        Takes residuals (N, D) and the coarser codeword `parent` (N,) of each. The count of a
        codeword starts at the size of its cluster times `weight` (vectors per training batch,
        divided by N), so that the first batches refine the codeword instead of replacing it. With
        fewer than `least` vectors per codeword, all codebooks start from one k-means.
        """
        books = parent if self.num_books > 1 else torch.zeros_like(parent)
        if len(residual) < least * self.num_codewords:
            centers, nearest = kmeans(residual, self.size, rng)
            start = centers.repeat(self.num_books, 1)
            index = books * self.size + nearest
        else:
            spread = residual.std(0, correction=0) * 0.1
            noise = torch.randn(self.num_codewords, len(spread), generator=rng, dtype=torch.float32)
            start = noise.to(residual).mul_(spread)
            index = torch.empty_like(parent)
            for book, members in vq.members_of_books(books):
                first = book * self.size
                centers, nearest = kmeans(residual[members], self.size, rng)
                start[first : first + self.size] = centers
                index[members] = first + nearest
        count = vq.counts(index, self.num_codewords).float()
        self.set_codewords(start, count * weight)

    def restart_dead_codes(
        self, residual: Tensor, index: Tensor, below: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move dead codewords to random vectors of living codewords of the same codebook.

        Takes residuals (N, D) and the index (N,) of the codeword that each chose. A codeword is
        dead when its share of its codebook's count is less than `below` / m. A moved codeword
        begins with the mean count of its codebook, so that the next update does not undo the move.
        Return the indices (K,) of the moved codewords and of the codewords whose
        residuals they took.
        """
        book_count = self.count.sum(1, keepdim=True)
        dead = self.count < book_count * (below / self.size)
        moved = [index[:0]]
        source = [index[:0]]

        # vectors of living codewords, in codebooks that have dead ones
        book_of_vector = index // self.size
        is_candidate = dead.any(1)[book_of_vector] & ~dead.view(-1)[index]
        candidates = is_candidate.nonzero().flatten()
        for book, positions in vq.members_of_books(book_of_vector[candidates]):
            vectors = candidates[positions]
            children = dead[book].nonzero().flatten()
            target = book * self.size + children[: len(vectors)]
            order = torch.randperm(len(vectors), generator=rng)
            drawn = vectors[order[: len(target)]]
            self.set_codewords(residual[drawn], book_count[book] / self.size, target)
            moved.append(target)
            source.append(index[drawn])
        return torch.cat(moved), torch.cat(source)


def split_levels(levels: Sequence[LevelCodebooks], size: int) -> list[Sequence[LevelCodebooks]]:
    """Split levels into groups of `size`; the last group may be shorter."""
    return [levels[start : start + size] for start in range(0, len(levels), size)]


@torch.no_grad()
def update_codebooks(
    levels: Sequence[LevelCodebooks],
    residuals: Sequence[Tensor],
    indices: Sequence[Tensor],
) -> None:
    """Update all levels from the residuals (N, D) and indices (N,) of each, over all processes
    (docs/method.md, "Moving averages").

    A codeword stays as it is if the sum of its residuals is not finite: on a GPU the search lets
    NaN and infinity pass.
    """
    # of each codeword: the number and the sum of its residuals in the batch
    counts = []
    sums = []
    for level, residual, index in zip(levels, residuals, indices, strict=True):
        counts.append(vq.counts(index, level.num_codewords).float())
        zeros = residual.new_zeros(level.num_codewords, residual.shape[1])
        sums.append(zeros.index_add_(0, index, residual))
    counts = distributed.all_reduce(counts)
    sums = distributed.all_reduce(sums)

    for level, batch_count, batch_sum in zip(levels, counts, sums, strict=True):
        count = level.count.view(-1)
        total = level.total.flatten(0, 1)
        codewords = level.codewords.flatten(0, 1)

        # n and s move towards those of the batch, or to where they are
        is_finite = batch_sum.sum(-1).isfinite()
        new_count = torch.where(is_finite, batch_count, count)
        new_total = torch.where(is_finite.unsqueeze(-1), batch_sum, total)
        count.lerp_(new_count, 1 - level.decay)
        total.lerp_(new_total, 1 - level.decay)

        codewords.copy_(vq.means_or_kept(count, total, codewords))
