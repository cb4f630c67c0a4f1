"""The codebooks of one level: start, update and restart of their codewords.

Shapes: a level has num_books codebooks of m codewords of width D. The index of a codeword in its
level is book * m + child. N is the number of vectors, K a number of codewords.

Moving averages (docs/method.md): n is `count`, s is `total`, and a codeword is s / n. A codeword
without vectors stays where it is, since n and s decay alike. At every time s = n * codeword, so a
large level does not keep s: it moves each codeword that gets vectors to the new s / n, and on a CPU
it reads no other codeword. Small levels keep s, so that their results stay those of earlier
versions, to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.quantize.search import search

_LARGE = 2**21  # values of a level, 8 MiB, above which it does not keep `total`


class LevelCodebooks(nn.Module):
    """All codebooks of one level: codewords are moving averages, total / count."""

    codewords: Tensor  # (num_books, m, D)
    count: Tensor  # (num_books, m): moving average of the number of vectors per batch
    #: (num_books, m, D): moving average of the sum of these vectors; None for a large level
    total: Any

    def __init__(self, config: QuantizerConfig, num_books: int, size: int) -> None:
        super().__init__()
        self.decay = config.decay
        self.num_books = num_books
        self.size = size
        self.num_codewords = num_books * size
        count = torch.ones(num_books, size, dtype=torch.float32)
        codewords = torch.zeros(num_books, size, config.dim, dtype=torch.float32)
        is_large = codewords.numel() > _LARGE
        self.register_buffer("count", count)
        self.register_buffer("codewords", codewords)
        self.register_buffer("total", None if is_large else torch.zeros_like(codewords))

    def reset_parameters(self) -> None:
        """Reset to the state of new codebooks, also after `to_empty`."""
        # codewords of zeros, with counts of 1
        zero = self.count.new_zeros(())
        self.set_codewords(slice(None), zero, zero + 1)

    def children_of(self, parents: Tensor) -> Tensor:
        """Return the indices of the children of codewords (K,) of the coarser level: (K * m,)."""
        children = torch.arange(self.size, device=parents.device)
        indices = parents.unsqueeze(-1) * self.size + children
        return indices.flatten()

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codewords of indices (...) int64: (..., D)."""
        return self.codewords.flatten(0, 1)[index]

    def set_codewords(self, index: Tensor | slice, vectors: Tensor, count: Tensor) -> None:
        """Set the codewords of indices (K,) to vectors (K, D), with counts (K,), or to what can be
        broadcast to these shapes; sums follow from both.
        """
        self.codewords.flatten(0, 1)[index] = vectors
        self.count.view(-1)[index] = count
        if self.total is not None:
            total = vectors * count.unsqueeze(-1)
            self.total.flatten(0, 1)[index] = total

    def average(self, batch_counts: Tensor, rows: Any, sums: Tensor) -> None:
        """Update averages and codewords (docs/method.md, "Moving averages").

        Args:
            batch_counts: vectors (num_codewords,) of each codeword in the batch.
            rows: indices (K,) of the codewords that may move, or a slice of all.
            sums: sums (K, D) of the residuals of these codewords.

        A codeword and its averages stay as they are if its sum is not finite: on a GPU the search
        lets NaN and infinity pass.
        """
        rate = 1 - self.decay
        finite = sums.sum(-1, keepdim=True).isfinite()

        # n moves towards the count in the batch, or towards itself if the sum is not finite
        count = self.count.view(-1, 1)
        batch_counts = batch_counts.unsqueeze(-1)
        target = torch.where(finite, batch_counts[rows], count[rows])
        batch_counts[rows] = target
        count.lerp_(batch_counts, rate)

        # s, and s / n; a codeword whose n has decayed to zero is kept
        codewords = self.codewords.flatten(0, 1)
        if self.total is not None:
            total = self.total.flatten(0, 1)
            total.lerp_(torch.where(finite, sums, total), rate)
            means = vq.means_or_kept(count[:, 0], total, codewords)
            codewords.copy_(means)
            return

        # s / n = c + rate * (sums - batch_counts * c) / n, with c before and n after the batch
        step = rate / count[rows].clamp(min=1e-5)
        change = sums - batch_counts[rows] * codewords[rows]
        change = change.masked_fill(~finite, 0)
        codewords[rows] += change * step

    def initialize(
        self,
        residual: Tensor,
        parent: Tensor,
        rng: torch.Generator,
        weight: float,
        shared: bool,
    ) -> None:
        """Run k-means in each codebook that gets vectors; start the others with small random
        codewords.

        Takes residuals (N, D) and the coarser codeword `parent` (N,) of each. The count of a
        codeword starts at the size of its cluster times `weight` (vectors per training batch,
        divided by N), so that the first batches refine the codeword instead of replacing it. With
        `shared`, all codebooks start from one k-means.
        """
        books = parent if self.num_books > 1 else torch.zeros_like(parent)
        if shared:
            # all codebooks start from the same centers; a vector counts in its own codebook
            centers, _ = kmeans(residual, self.size, rng)
            start = centers.repeat(self.num_books, 1)
            (nearest,) = search(residual, [centers[None]])
            index = books * self.size + nearest
            count = vq.counts(index, self.num_codewords).float()
        else:
            count = residual.new_zeros(self.num_codewords)
            spread = residual.std(0, correction=0) * 0.1
            noise = torch.randn(len(count), len(spread), generator=rng, dtype=torch.float32)
            start = noise.to(residual).mul_(spread)
            for book, members in vq.members_of_books(books):
                first = book * self.size
                children = slice(first, first + self.size)
                centers, sizes = kmeans(residual[members], self.size, rng)
                start[children] = centers
                count[children] = sizes
        self.set_codewords(slice(None), start, count * weight)

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
        is_living = ~dead.view(-1)[index]
        has_dead = dead.any(1)[book_of_vector]
        is_candidate = is_living & has_dead
        candidates = is_candidate.nonzero().flatten()
        for book, positions in vq.members_of_books(book_of_vector[candidates]):
            vectors = candidates[positions]
            children = dead[book].nonzero().flatten()
            target = book * self.size + children[: len(vectors)]
            order = torch.randperm(len(vectors), generator=rng)
            drawn = vectors[order[: len(target)]]
            mean_count = book_count[book] / self.size
            self.set_codewords(target, residual[drawn], mean_count)
            moved.append(target)
            source.append(index[drawn])
        return torch.cat(moved), torch.cat(source)


@torch.no_grad()
def update_codebooks(
    levels: Sequence[LevelCodebooks],
    residuals: Sequence[Tensor],
    indices: Sequence[Tensor],
) -> None:
    """Update all levels from the residuals (N, D) and indices (N,) of each, over all processes."""
    batch = list(zip(levels, residuals, indices, strict=True))
    counts = []
    for level, _, index in batch:
        chosen = vq.counts(index, level.num_codewords)
        counts.append(chosen.float())
    counts = distributed.all_reduce(counts)

    # per level, the codewords (K,) that the batch may move, the same in all processes, and the sums
    # (K, D) of this process's vectors
    rows: list[Any] = []
    sums = []
    for (level, residual, index), level_counts in zip(batch, counts, strict=True):
        moved: Any = slice(None)
        num_moved = level.num_codewords

        # in a large level only those with vectors; on a GPU all, since `nonzero` would wait for it
        if level.total is None and level_counts.device.type == "cpu":
            moved = level_counts.nonzero().flatten()
            num_moved = len(moved)
            index = torch.searchsorted(moved, index)  # the vectors' rows in the sums
        rows.append(moved)
        zeros = residual.new_zeros(num_moved, residual.shape[1])
        sums.append(zeros.index_add_(0, index, residual))
    sums = distributed.all_reduce(sums)
    reduced = zip(levels, counts, rows, sums, strict=True)
    for level, level_counts, moved, level_sums in reduced:
        level.average(level_counts, moved, level_sums)
