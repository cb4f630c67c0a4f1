"""The codebooks of one level: start, update and restart of their codewords.

Shapes: a level has num_books codebooks of m codewords of width D. The index of a codeword in its
level is book * m + child. N is the number of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.quantize.search import search

_LONGEST_WAIT = 16  # at levels with a table, most steps that a codebook waits for an update
_CACHED_VALUES = 2**17  # of codebooks that are updated together on a CPU


class LevelCodebooks(nn.Module):
    """All codebooks of one level, (num_books, m, D), with a moving average of how often each
    codeword is chosen.

    With the update "ema" codewords are a buffer of moving averages. With "gradient" they are a
    parameter, which the codebook loss moves. With `shrinkage` they lean towards the shared codebook
    of the level (docs/method.md).

    Args:
        coarser: the coarser level, if some of its codewords share a codebook here. Then `table`
            gives the codebook of each coarser codeword. Coarser codewords without a codebook of
            their own share codebook 0.
    """

    codewords: Tensor
    count: Tensor  # (num_books, m): moving average of the number of vectors per batch
    total: Any  # (num_books, m, D): moving average of the sum of these vectors; only with "ema"
    shared: Any  # (m, D): means over all codebooks; only with `shrinkage` and several codebooks
    table: Any  # (K,) int64: codebook of each coarser codeword; only with `coarser`
    age: Any  # (num_books,): steps since the last update of each codebook; only with `coarser`

    def __init__(
        self, config: QuantizerConfig, num_books: int, size: int, coarser: LevelCodebooks | None
    ) -> None:
        super().__init__()
        self.decay = config.decay
        self.shrinkage = config.shrinkage
        is_ema = config.update == "ema"
        self.num_books = num_books
        self.size = size
        self.num_codewords = num_books * size
        self.register_buffer("count", torch.ones(num_books, size, dtype=torch.float32))
        codewords = torch.zeros(num_books, size, config.dim, dtype=torch.float32)
        self.codewords = nn.Buffer(codewords) if is_ema else nn.Parameter(codewords)
        self.register_buffer("total", torch.zeros_like(codewords) if is_ema else None)
        self.register_buffer(
            "shared", torch.zeros_like(codewords[0]) if self.shrinkage and num_books > 1 else None
        )
        self.register_buffer(
            "table", torch.zeros(coarser.num_codewords, dtype=torch.long) if coarser else None
        )
        self.register_buffer(
            "age", torch.zeros(num_books, dtype=torch.float32) if coarser else None
        )
        self._num_shared_parents = coarser.size if coarser and coarser.table is not None else 0

    def reset_parameters(self) -> None:
        """Reset to the state of new codebooks, also after `to_empty`."""
        for values in (self.shared, self.table, self.age):
            if values is not None:
                values.zero_()
        self.set_codewords(slice(None), self.count.new_zeros(()), self.count.new_ones(()))

    def books_below(self, index: Tensor) -> Tensor:
        """Return the codebook below each codeword `index` of the coarser level, in the same
        shape.
        """
        if self.table is None:
            return index % self.num_books
        return self.table[index.to(self.table.device)].to(index.device)  # type: ignore[no-any-return]

    def codewords_of(self, books: Tensor) -> Tensor:
        """Return the indices of all codewords of codebooks (K,): (K * m,)."""
        return (
            books.unsqueeze(-1) * self.size + torch.arange(self.size, device=books.device)
        ).flatten()

    def reassign_books(self, counts: Tensor, reassigned_parents: Tensor) -> Tensor:
        """Give the least used codebooks to coarser codewords that use them more; return the
        reassigned codebooks.

        `counts` (K,), which this changes: vectors of a batch at each coarser codeword.
        `reassigned_parents`: codebooks that the coarser level reassigned.
        """
        if self._num_shared_parents:
            self.table.view(-1, self._num_shared_parents)[reassigned_parents] = (
                0  # below new codewords
            )
        counts.masked_fill_(self.table > 0, 0)  # they have their own codebook
        counts[: self._num_shared_parents] = 0  # their children stay shared
        busiest = counts.nonzero().flatten()
        busiest = busiest[counts[busiest].argsort(descending=True, stable=True)][
            : self.num_books - 1
        ]
        usage = self.count.sum(1) * self.decay**self.age
        books: Tensor = usage[1:].argsort(stable=True)[: len(busiest)] + 1
        exceeds = counts[busiest] * (1 - self.decay) > usage[books]
        busiest = busiest[exceeds]
        books = books[exceeds]
        reassigned = torch.zeros_like(usage, dtype=torch.bool).index_fill_(0, books, True)
        self.table.masked_fill_(reassigned[self.table], 0)
        self.table[busiest] = books
        self.codewords[books], self.count[books], self.total[books], self.age[books] = (
            self.shared,
            0,
            0,
            0,
        )
        return books

    def lookup(self, index: Tensor) -> Tensor:
        """Return the codewords of indices (...) int64: (..., D)."""
        return self.codewords.flatten(0, 1)[index]

    def set_codewords(self, index: Tensor | slice, vectors: Tensor, count: Tensor) -> None:
        """Set the codewords of indices (K,) to vectors (K, D), with counts (K,) and sums that give
        these codewords.
        """
        self.codewords.data.flatten(0, 1)[index] = vectors
        self.count.view(-1)[index] = count
        if self.total is not None:
            self.total.flatten(0, 1)[index] = vectors * count.unsqueeze(-1)
        if self.shared is not None:
            rows = (
                index
                if isinstance(index, Tensor)
                else torch.arange(self.num_codewords, device=vectors.device)
            )
            self.total.flatten(0, 1)[index] += self.shrinkage * (
                vectors - self.shared[rows % self.size]
            )

    def reorder(self, index: Tensor) -> None:
        """Renumber the codewords, with their averages: new[i] = old[index[i]], for index
        (num_codewords,).
        """
        for values in (self.codewords.data, self.count, self.total):
            if values is not None:
                flat = values.view(self.num_codewords, -1)
                flat.copy_(flat[index])

    def counts(self, index: Tensor) -> Tensor:
        """Count the vectors of each codeword by index (N,): (num_books, m) float32."""
        return vq.counts(index, self.num_codewords).to(self.count.dtype).view_as(self.count)

    def books_to_update(self, counts: Tensor) -> Tensor | None:
        """Return the codebooks (K,) that a batch with these counts updates; None for all.

        With a table only codebooks that got vectors are updated, so that the time does not grow
        with the table. The others wait for at most `_LONGEST_WAIT` steps.
        """
        if self.age is None:
            return None
        self.age += 1
        due: Tensor = counts.any(1) | (self.age >= _LONGEST_WAIT)
        due[0] = True
        return due.nonzero().flatten()

    def sums(self, residual: Tensor, index: Tensor, books: Tensor | None = None) -> Tensor:
        """Return the sum of residuals (N, D) per codeword of `books` (K,) or of all, by index (N,):
        (K, m, D).
        """
        num_books = self.num_books if books is None else len(books)
        if books is not None:
            position = books.new_zeros(self.num_books).scatter_(
                0, books, torch.arange(num_books, device=books.device)
            )
            index = position[index // self.size] * self.size + index % self.size
        return vq.sums(residual, index, num_books * self.size).view(num_books, self.size, -1)

    def average(
        self, counts: Tensor, sums: Tensor | None = None, books: Tensor | None = None
    ) -> None:
        """Update averages and codewords from `counts` of all codebooks and `sums` of `books` (None
        for all).

        Sums that overflowed on a GPU are skipped.
        """
        if self.total is None or sums is None:
            self.count.lerp_(counts, 1 - self.decay)
            return
        finite = sums.sum(-1).isfinite()
        if books is not None:
            self._average_books(
                counts[books] * finite, sums.masked_fill_(~finite.unsqueeze(-1), 0), books
            )
            return
        self.count.lerp_(torch.where(finite, counts, self.count), 1 - self.decay)
        self.total.lerp_(torch.where(finite.unsqueeze(-1), sums, self.total), 1 - self.decay)
        if self.shared is None:
            self.codewords.copy_(
                vq.moving_average_codewords(self.count, self.total, self.codewords)
            )
        else:
            self.shared.copy_(
                vq.moving_average_codewords(self.count.sum(0), self.total.sum(0), self.shared)
            )
            self.codewords.copy_(vq.shrink(self.count, self.total, self.shared, self.shrinkage))

    def _average_books(self, counts: Tensor, sums: Tensor, books: Tensor) -> None:
        """Update codebooks (K,), of which the first is the shared one, from counts (K, m) and sums
        (K, m, D).
        """
        counts[0], sums[0] = counts.sum(0), sums.sum(0)  # the shared codebook follows all vectors
        decays = self.decay ** self.age[books]
        self.age[books] = 0
        step = (
            max(1, _CACHED_VALUES // sums[0].numel()) if sums.device.type == "cpu" else len(books)
        )
        for part in (
            slice(0, 1),
            *(slice(first, first + step) for first in range(1, len(books), step)),
        ):
            some = books[part]
            decay = decays[part].view(-1, 1, 1)
            count = (self.count[some] * decay[..., 0]).add_(counts[part], alpha=1 - self.decay)
            total = self.total[some].mul_(decay).add_(sums[part], alpha=1 - self.decay)
            if part.start == 0:
                self.shared.copy_(vq.moving_average_codewords(count[0], total[0], self.shared))
            self.count[some], self.total[some] = count, total
            self.codewords[some] = vq.shrink(count, total, self.shared, self.shrinkage)
        self.codewords[0] = self.shared

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Leave out the codebooks after the last one in use."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.table is not None and not self.table.is_meta:
            last = int(torch.cat([self.count.any(1).nonzero().flatten(), self.table]).max())
            names = (f"{prefix}{name}" for name in ("codewords", "count", "total"))
            destination.update({name: destination[name][: last + 1] for name in names})

    def pad(self, state: dict[str, Any], prefix: str) -> None:
        """Add the codebooks that a saved state leaves out: copies of the shared one, never
        chosen.
        """
        if self.table is not None and (shared := state.get(f"{prefix}shared")) is not None:
            for name, default in (("codewords", shared), ("count", 0), ("total", 0)):
                stored = state.get(f"{prefix}{name}")
                whole = getattr(self, name).shape
                if stored is not None and stored.shape[1:] == whole[1:] and len(stored) < whole[0]:
                    state[f"{prefix}{name}"] = padded = stored.new_empty(whole)
                    padded[: len(stored)], padded[len(stored) :] = stored, default

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        self.pad(state_dict, prefix)
        table = state_dict.get(f"{prefix}table")
        if (
            self.table is not None
            and table is not None
            and not ((table >= 0) & (table < self.num_books)).all()
        ):
            arguments[-1].append(f"{prefix}table names codebooks that are missing")  # error_msgs
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def initialize(
        self,
        residual: Tensor,
        parent: Tensor,
        rng: torch.Generator,
        weight: float,
        even: bool,
        shared: bool,
    ) -> None:
        """Run k-means in each codebook that gets vectors; start the others with small random
        codewords.

        Takes residuals (N, D) and the coarser codeword `parent` (N,) of each. The count of a
        codeword starts at the size of its cluster times `weight` (vectors per training batch,
        divided by N), so that the first batches refine the codeword instead of replacing it. With
        `even`, clusters have about the same size. With `shared`, and always with `shrinkage`, all
        codebooks start from one k-means.
        """
        size = self.size
        num_codewords = self.num_codewords
        if shared or self.shared is not None:
            centers, _ = kmeans(residual, size, rng)
            start = centers.repeat(self.num_books, 1)
            if self.shared is not None:
                self.shared.copy_(centers)
            if self.table is not None:
                self.table.zero_()
                self.count.zero_()
                self.reassign_books(vq.counts(parent, len(self.table)), parent[:0])
            index = self.books_below(parent) * size + search(residual, [centers[None]])[0]
            count = vq.counts(index, num_codewords).to(centers.dtype)
            if self.table is not None:
                count[:size] = count.view(-1, size).sum(
                    0
                )  # the shared codebook follows all vectors
        else:
            noise = torch.randn(
                num_codewords, residual.shape[-1], generator=rng, dtype=torch.float32
            )
            start = noise.to(residual) * (residual.std(0, correction=0) * 0.1)
            count = residual.new_zeros(num_codewords)
            for book, members in vq.group_by_book(self.books_below(parent)):
                children = slice(book * size, (book + 1) * size)
                start[children], count[children] = kmeans(residual[members], size, rng, even)
        self.set_codewords(slice(None), start, count * weight)

    def restart_dead_codes(
        self, residual: Tensor, index: Tensor, below: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move dead codewords to random residuals (N, D) of living codewords, by index (N,), in the
        same codebook.

        A codeword is dead when its share of its codebook's count is less than `below` / m. A moved
        codeword begins with the mean count of its codebook, so that the next update does not undo
        the move. Return the indices (K,) of the moved codewords and of the codewords whose
        residuals they took.
        """
        book_count = self.count.sum(1, keepdim=True)
        dead = self.count < book_count * (below / self.size)
        moved = [index[:0]]
        source = [index[:0]]
        candidates = (~dead.view(-1)[index] & dead.any(1)[index // self.size]).nonzero().flatten()
        for book, positions in vq.group_by_book(index[candidates] // self.size):
            members = candidates[positions]
            target = book * self.size + dead[book].nonzero().flatten()[: len(members)]
            drawn = members[
                torch.randperm(len(members), generator=rng)[: len(target)].to(members.device)
            ]
            self.set_codewords(target, residual[drawn], book_count[book] / self.size)
            moved.append(target)
            source.append(index[drawn])
        return torch.cat(moved), torch.cat(source)


def pad_codebooks(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a model with the codebooks that a saved state leaves out."""
    padded = dict(weights)
    for name, book in model.named_modules():
        if isinstance(book, LevelCodebooks):
            book.pad(padded, f"{name}.")
    return padded


@torch.no_grad()
def update_codebooks(
    levels: Sequence[LevelCodebooks],
    residuals: Sequence[Tensor],
    indices: Sequence[Tensor],
    group: Any = None,
) -> None:
    """Update all levels from residuals (N, D) and codeword indices (N,) per level, summed over the
    ranks of `group`.
    """
    updated = list[Tensor]()
    counts = list[Tensor]()
    reassigned = indices[0][:0]

    def count() -> None:
        """Count at the levels that are updated and not yet counted."""
        uncounted = [*zip(levels, updated, strict=False)][len(counts) :]
        counts.extend(
            distributed.all_reduce([level.counts(index) for level, index in uncounted], group)
        )

    for level, index in zip(levels, indices, strict=True):
        if level.table is not None:  # never at the first level
            count()
            reassigned = level.reassign_books(counts[-1].flatten().clone(), reassigned)
            index = level.books_below(updated[-1]) * level.size + index % level.size
        updated.append(index)
    count()
    books = [level.books_to_update(values) for level, values in zip(levels, counts, strict=True)]
    batch = (
        zip(levels, residuals, updated, books, strict=True) if levels[0].total is not None else ()
    )
    sums: Any = distributed.all_reduce(
        [level.sums(values, index, due) for level, values, index, due in batch], group
    )
    for level, *statistics in zip(levels, counts, sums or [None] * len(levels), books, strict=True):
        level.average(*statistics)  # type: ignore[arg-type]
