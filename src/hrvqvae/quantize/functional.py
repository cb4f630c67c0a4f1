"""The equations of vector quantization, as functions of tensors.

Shapes: N vectors of width D; a set of codebooks is (num_books, m, D), and its codewords are numbered book * m + child.
Squared errors are sums over D, as printed; the caller decides how to average over vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

_ROUNDS = 20  # of an alignment, which ends before them as a rule


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Value of `quantized`, gradient of `latents` (van den Oord et al. 2017, section 3.2). Same shape as both."""
    return latents + (quantized - latents).detach()


def squared_error(target: Tensor, value: Tensor) -> Tensor:
    """||target - value||^2 summed over all vectors, a scalar; gradients as the caller detached them."""
    return (target - value).square().sum()


def moving_average_codewords(count: Tensor, total: Tensor, codewords: Tensor) -> Tensor:
    """Codewords as the mean of what they stand for: total / count (VQVAE's appendix A.1, equations 6 to 8).

    A codeword whose count has decayed to nothing keeps its place.

    Args:
        count: (num_books, m), moving average of the vectors assigned.
        total: (num_books, m, D), moving average of their sum.
        codewords: (num_books, m, D), as they are now.
    """
    present = count > 1e-5
    means = total / torch.where(present, count, 1.0).unsqueeze(-1)
    return means.lerp_(codewords, (~present).to(means.dtype).unsqueeze(-1))  # `where` took up to thirty times as long


def counts(path: Tensor, num_codewords: int) -> Tensor:
    """How often each codeword was chosen: (N,) int64 -> (num_codewords,) int64."""
    flat = path.reshape(-1)
    return flat.new_zeros(num_codewords).scatter_add_(0, flat, torch.ones_like(flat))  # bincount waits for the device


def sums(vectors: Tensor, path: Tensor, num_codewords: int) -> Tensor:
    """Sum of the vectors assigned to each codeword: (N, D), (N,) -> (num_codewords, D)."""
    return vectors.new_zeros(num_codewords, vectors.shape[-1]).index_add_(0, path, vectors)


def perplexity(count: Tensor) -> float:
    """exp(entropy) of the distribution that counts describe: between 1 and the number of codewords."""
    share = count.double() / count.sum().clamp(min=1)
    return float(torch.exp(torch.special.entr(share).sum()))


def alignment(codewords: Tensor, count: Tensor) -> Tensor:
    """An order (P, m) of the codewords of each of P codebooks by which those of one number lie near each other.

    Two codewords of a codebook are exchanged as long as that brings them nearer to the means of their numbers over all
    codebooks, weighted by how often they are used. So what is aligned already keeps its order.

    Args:
        codewords: (P, m, D).
        count: (P, m), how often each is used.
    """
    every = torch.arange(len(count), device=count.device)
    order = torch.arange(count.shape[1], device=count.device).repeat(len(count), 1)
    for _ in range(_ROUNDS):
        moved = codewords.gather(1, order[..., None].expand_as(codewords))
        used = count.gather(1, order)[..., None]
        means = (moved * used).sum(0) / used.sum(0).clamp(min=1e-9)
        cost = torch.cdist(codewords, means).square() * count[..., None]  # of a codeword with a number
        before = order.clone()
        for one, other in combinations(range(count.shape[1]), 2):
            first, second = order[:, one], order[:, other]
            now = cost[every, first, one] + cost[every, second, other]
            better = cost[every, second, one] + cost[every, first, other] < now
            order[:, one], order[:, other] = torch.where(better, second, first), torch.where(better, first, second)
        if torch.equal(order, before):
            break
    return order


def nodes(path: Tensor, num_books: int) -> Iterator[tuple[int, Tensor]]:
    """(book, indices of the vectors whose path leads there) for each codebook that gets data, in order.

    One sort instead of a scan a book. `path` is (N,), the path before the level at hand.
    """
    order = torch.argsort(path, stable=True)
    sizes = counts(path, num_books).tolist()
    start = 0
    for book, size in enumerate(sizes):
        if size:
            yield book, order[start : start + size]
            start += size
