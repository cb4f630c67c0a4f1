"""The equations of vector quantization, as functions of tensors.

Shapes: N vectors of width D; the codebooks of a level are (num_books, m, D), and the index of a
codeword in its level is book * m + child.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_ROUNDS = 20  # most rounds of an alignment
_CHUNK_VALUES = 2**24  # most exchange costs in memory at once


def means_or_kept(count: Tensor, total: Tensor, codewords: Tensor) -> Tensor:
    """Return the means total (..., m, D) / count (..., m) (VQVAE's appendix A.1, equations 6 to 8).

    A codeword whose count has decayed to zero stays as it is in `codewords` (..., m, D).
    """
    absent = (count <= 1e-5).unsqueeze(-1)
    count = count.unsqueeze(-1).masked_fill(absent, 1.0)
    means = total / count
    return means.lerp_(codewords, absent.to(means.dtype))  # up to 30 times faster than `where`


def counts(index: Tensor, num_codewords: int) -> Tensor:
    """Count how often each codeword occurs in `index` (N,) int64: (num_codewords,) int64."""
    # not `bincount`, which waits for the device
    index = index.reshape(-1)
    zeros = index.new_zeros(num_codewords)
    return zeros.scatter_add_(0, index, torch.ones_like(index))


def perplexity(count: Tensor) -> float:
    """Return exp(entropy) of the shares of the counts, from 1 to the number of codewords."""
    share = count.double() / count.sum().clamp(min=1)
    entropy = torch.special.entr(share).sum()
    return float(torch.exp(entropy))


def alignment(codewords: Tensor, count: Tensor) -> Tensor:
    """Return the order (num_books, m) that makes codewords (num_books, m, D) at the same position
    similar.

    Two codewords of a codebook are exchanged as long as this brings them nearer to the mean
    codewords of their positions, weighted by the counts (num_books, m). Aligned codebooks keep
    their order.
    """
    books, size = count.shape
    order = torch.arange(size, device=count.device)
    order = order.repeat(books, 1)
    step = max(1, _CHUNK_VALUES // size**2)
    for _ in range(_ROUNDS):
        before = order.clone()

        # the mean codeword of each position, in the order so far
        rows = order.unsqueeze(-1).expand_as(codewords)
        moved = codewords.gather(1, rows)
        weight = count.gather(1, order).unsqueeze(-1)
        total = (moved * weight).sum(0)
        means = total / weight.sum(0).clamp(min=1e-9)

        # `arranged` are views of `order`
        chunks = (torch.split(values, step) for values in (order, codewords, count))
        for arranged, vectors, weights in zip(*chunks, strict=True):
            # cost of each codeword at each position, (books, codeword, position)
            distance = torch.cdist(vectors, means).square()
            cost = distance * weights.unsqueeze(-1)
            book = torch.arange(len(cost), device=cost.device)
            book = book.unsqueeze(-1)
            for left, right in _pairings(size, cost.device):
                first = arranged[:, left]
                second = arranged[:, right]
                kept = cost[book, first, left] + cost[book, second, right]
                exchanged = cost[book, second, left] + cost[book, first, right]
                is_better = exchanged < kept
                arranged[:, left] = torch.where(is_better, second, first)
                arranged[:, right] = torch.where(is_better, first, second)
        if torch.equal(order, before):
            break
    return order


def _pairings(size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield disjoint pairs of positions (2, k), in which every pair occurs once (circle method)."""
    last = size + size % 2 - 1
    for turn in range(last):
        circle = torch.arange(last + 1, device=device)
        circle[1:] = circle[1:].roll(turn)
        opposite = torch.stack([circle, circle.flip(0)])
        pairs = opposite[:, : len(circle) // 2]
        is_pair = (pairs < size).all(0)  # with an odd size, one position has no partner
        yield pairs[:, is_pair]


def members_of_books(books: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Return each codebook that occurs in `books` (N,), with the positions where it occurs."""
    present, sizes = torch.unique(books, return_counts=True)
    sorted_by_book = torch.argsort(books, stable=True)
    positions = torch.split(sorted_by_book, sizes.tolist())
    return zip(present.tolist(), positions, strict=True)
