"""The equations of vector quantization, as functions of tensors.

Shapes: N vectors of width D; a set of codebooks is (num_books, m, D), and its codewords are numbered book * m + child.
Squared errors are sums over D, as printed; the caller decides how to average over vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


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
