"""k-means for the start of codebooks."""

import torch
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.search import search

_MANY = 512  # with more clusters, there are few iterations, and seeds are drawn many at once
_ITERATIONS = 20
_ITERATIONS_OF_MANY = 5
_ROUNDS = 64


def seed_clusters(vectors: Tensor, num_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw k-means++ seeds (num_clusters, D) from vectors (N, D) (Arthur and Vassilvitskii 2007).

    More than 512 seeds are drawn in about 64 rounds. With fewer distinct vectors than seeds there
    are duplicates.
    """
    batch = num_clusters // _ROUNDS if num_clusters > _MANY else 1  # seeds per round
    squares = vectors.square().sum(-1)
    new = torch.randint(len(vectors), (1,), generator=rng)
    new = new.to(vectors.device)
    chosen = new
    distance = torch.full_like(squares, torch.inf)
    while True:
        # squared distances to the nearest of the new seeds, and to the nearest of all
        seeds = vectors[new]
        if len(new) == 1:
            to_new = (vectors - seeds).square().sum(-1)
        else:
            norms = seeds.square().sum(-1)
            products = torch.addmm(norms, vectors, seeds.T, alpha=-2)
            to_new = products.amin(1) + squares
            to_new = to_new.clamp(min=0)
        distance = torch.minimum(distance, to_new)

        # the end; if all vectors lie on seeds, the first seed fills up; on the CPU, since torch has
        # no deterministic sum on CUDA
        mass = distance.cpu().double().cumsum(0)
        missing = num_clusters - len(chosen)
        if missing == 0 or mass[-1] <= 0:
            fill = chosen[:1].expand(missing)
            return vectors[torch.cat([chosen, fill])]

        # seeds of one round do not know of each other: at most half as many as there are
        count = min(batch, len(chosen) // 2, missing)
        shares = torch.rand(max(1, count), generator=rng, dtype=torch.float64)
        drawn = torch.searchsorted(mass, shares * mass[-1])
        drawn = drawn.clamp(max=len(vectors) - 1)
        new = torch.unique(drawn).to(vectors.device)
        chosen = torch.cat([chosen, new])


def kmeans(vectors: Tensor, num_clusters: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm on vectors (N, D) from k-means++ seeds, without N x num_clusters
    distances in memory.

    Return centers (num_clusters, D) and the sizes (num_clusters,) float32 of their clusters.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        centers = seed_clusters(vectors, num_clusters, rng)
    iterations = _ITERATIONS_OF_MANY if num_clusters > _MANY else _ITERATIONS
    for iteration in range(iterations + 1):
        (nearest,) = search(vectors, [centers.unsqueeze(0)])
        sizes = vq.counts(nearest, num_clusters).to(vectors.dtype)
        if iteration == iterations:
            break  # the last pass only counts the clusters of the final centers
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        means = vq.means_or_kept(sizes, sums, centers)  # an empty cluster keeps its center
        if torch.equal(means, centers):
            break  # further iterations change nothing
        centers = means
    return centers, sizes
