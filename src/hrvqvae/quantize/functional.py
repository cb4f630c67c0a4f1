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
    return torch.where(present.unsqueeze(-1), means, codewords)


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


def kmeans(vectors: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds: (N, D) -> (num_clusters, D).

    Fewer distinct vectors than clusters leave duplicates, which revival moves later.
    """
    first = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    centers = vectors[first].repeat(num_clusters, 1)
    distance = (vectors - centers[0]).square().sum(-1)
    for cluster in range(1, num_clusters):
        mass = distance.double().cumsum(0)
        if mass[-1] <= 0:
            break  # every vector is a center already
        draw = torch.rand(1, generator=generator, dtype=torch.float64).to(mass.device) * mass[-1]
        centers[cluster] = vectors[torch.searchsorted(mass, draw).clamp(max=len(vectors) - 1)]
        distance = torch.minimum(distance, (vectors - centers[cluster]).square().sum(-1))
    for _ in range(iterations):
        nearest = torch.cdist(vectors, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        count = counts(nearest, num_clusters).to(vectors.dtype)
        centers = moving_average_codewords(count, sums(vectors, nearest, num_clusters), centers)
    return centers
