"""The equations of vector quantization, as functions of tensors.

Shapes: N vectors of width D; the codebooks of a level are (num_books, m, D), and a codeword's index in its level is
book * m + child.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROUNDS = 20  # of an alignment, which ends before them as a rule
_CHUNK_VALUES = 2**24  # of the costs of an alignment


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Return the value of `quantized` with the gradient of `latents` (van den Oord et al. 2017, section 3.2)."""
    return latents + (quantized - latents).detach()


def moving_average_codewords(count: Tensor, total: Tensor, codewords: Tensor) -> Tensor:
    """Return codewords as the mean of what they stand for: total / count (VQVAE's appendix A.1, equations 6 to 8).

    A codeword whose count has decayed to nothing keeps its place.

    Args:
        count: (num_books, m), moving average of the vectors assigned.
        total: (num_books, m, D), moving average of their sum.
        codewords: (num_books, m, D), as they are now.
    """
    present = count > 1e-5
    means = total / torch.where(present, count, 1.0).unsqueeze(-1)
    return means.lerp_(codewords, (~present).to(means.dtype).unsqueeze(-1))  # `where` took up to thirty times as long


def counts(index: Tensor, num_codewords: int) -> Tensor:
    """Return how often each codeword was chosen, (num_codewords,) int64, from indices (N,) int64."""
    flat = index.reshape(-1)
    return flat.new_zeros(num_codewords).scatter_add_(0, flat, torch.ones_like(flat))  # bincount waits for the device


def sums(vectors: Tensor, index: Tensor, num_codewords: int) -> Tensor:
    """Return the sum of the vectors (N, D) assigned to each codeword by index (N,): (num_codewords, D)."""
    return vectors.new_zeros(num_codewords, vectors.shape[-1]).index_add_(0, index, vectors)


def perplexity(count: Tensor) -> float:
    """Return exp(entropy) of the distribution that counts describe: between 1 and the number of codewords."""
    share = count.double() / count.sum().clamp(min=1)
    return float(torch.exp(torch.special.entr(share).sum()))


def alignment(codewords: Tensor, count: Tensor) -> Tensor:
    """Return an order (P, m) of the codewords of P codebooks in which codewords of one number are similar.

    Two codewords of a codebook are exchanged as long as that brings them nearer to the means of their numbers over all
    codebooks, weighted by how often they are used. So codebooks that are aligned already keep their order.

    Args:
        codewords: (P, m, D).
        count: (P, m), how often each is used.
    """
    books, size = count.shape
    order = torch.arange(size, device=count.device).repeat(books, 1)
    chunk = max(1, _CHUNK_VALUES // size**2)
    for _ in range(_ROUNDS):
        moved = codewords.gather(1, order[..., None].expand_as(codewords))
        used = count.gather(1, order)[..., None]
        means = (moved * used).sum(0) / used.sum(0).clamp(min=1e-9)
        before = order.clone()
        for first in range(0, books, chunk):
            part = slice(first, first + chunk)
            cost = torch.cdist(codewords[part], means).square() * count[part, :, None]  # of a codeword with a number
            for left, right in _pairings(size):
                _exchange(order[part], cost, left.to(order.device), right.to(order.device))
        if torch.equal(order, before):
            break
    return order


def _pairings(size: int) -> list[tuple[Tensor, Tensor]]:
    """Return rounds of disjoint pairs in which each two of `size` numbers meet once (the circle method)."""
    numbers, rounds = list(range(size + size % 2)), list[tuple[Tensor, Tensor]]()
    for _ in range(len(numbers) - 1):
        half = len(numbers) // 2
        pairs = [pair for pair in zip(numbers[:half], reversed(numbers[half:]), strict=True) if max(pair) < size]
        left, right = torch.tensor(pairs).T
        rounds.append((left, right))
        numbers.insert(1, numbers.pop())
    return rounds


def _exchange(order: Tensor, cost: Tensor, left: Tensor, right: Tensor) -> None:
    """Exchange the codewords of pairs of numbers in `order` (P, m) if that lowers the cost (P, codewords, numbers)."""
    first, second = order[:, left], order[:, right]
    every = torch.arange(len(order), device=order.device)[:, None]
    now = cost[every, first, left] + cost[every, second, right]
    better = cost[every, second, left] + cost[every, first, right] < now
    order[:, left], order[:, right] = torch.where(better, second, first), torch.where(better, first, second)


def nodes(book: Tensor, num_books: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (book, positions of its vectors) for each codebook that gets data, in order.

    One sort instead of a scan per book. `book` is (N,), the codebook of each vector.
    """
    order = torch.argsort(book, stable=True)
    sizes = counts(book, num_books).tolist()
    start = 0
    for number, size in enumerate(sizes):
        if size:
            yield number, order[start : start + size]
            start += size
