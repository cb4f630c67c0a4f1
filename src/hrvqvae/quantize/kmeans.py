"""k-means, which codebooks start from."""

from __future__ import annotations

import torch
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.search import search

ITERATIONS = 20


def seed_clusters(vectors: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeds (Arthur and Vassilvitskii 2007): (N, D) -> (num_clusters, D), each one of the vectors.

    Fewer distinct vectors than clusters leave duplicates.
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
    return centers


def kmeans(vectors: Tensor, num_clusters: int, generator: torch.Generator, even: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k-means++ seeds, with the search of training, so that no N x num_clusters matrix exists.

    (N, D) float32 -> centers (num_clusters, D), and the number of vectors that are nearest to each, (num_clusters,)
    float32. Of duplicate centers, which fewer distinct vectors than clusters leave, one gets all the vectors.

    Args:
        even: clusters get about equally many vectors: a center's squared distances are raised by a price, the square
            of one more coordinate, which rises while the cluster has too many. The numbers include the prices.
    """
    centers = seed_clusters(vectors, num_clusters, generator)
    if even:
        vectors, centers = (torch.nn.functional.pad(one, (0, 1)) for one in (vectors, centers))
    prices = centers.new_zeros(num_clusters)
    for iteration in range(ITERATIONS + 1):
        (nearest,) = search(vectors, [centers.unsqueeze(0)])
        sizes = vq.counts(nearest, num_clusters).to(vectors.dtype)
        if iteration < ITERATIONS:
            means = vq.moving_average_codewords(sizes, vq.sums(vectors, nearest, num_clusters), centers)
            if even:
                scale = (vectors - centers[nearest])[:, :-1].square().sum(-1).mean()
                prices = prices + 0.3 * scale * (sizes / sizes.mean() - 1).clamp(max=3)
                means[:, -1] = (prices - prices.min()).sqrt()
            centers = means
    return centers[:, :-1] if even else centers, sizes
