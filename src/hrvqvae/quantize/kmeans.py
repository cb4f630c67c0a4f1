"""k-means for the start of codebooks."""

import torch
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.search import search

# with more clusters, k-means takes less time: fewer iterations, and several seeds per round
_MANY = 512


def seed_clusters(vectors: Tensor, num_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw seeds (num_clusters, D) from vectors (N, D) by k-means++ (Arthur and Vassilvitskii
    2007): a vector far from all seeds so far is likely to be the next one.

    More than 512 seeds are drawn in about 64 rounds. With fewer distinct vectors than seeds there
    are duplicates.
    """
    seeds_per_round = num_clusters // 64 if num_clusters > _MANY else 1
    # far from the origin float32 loses the distances
    centered = vectors - vectors.mean(0)
    squares = centered.square().sum(-1)
    new = torch.randint(len(vectors), (1,), generator=rng).to(vectors.device)
    chosen = new
    distance = torch.full_like(squares, torch.inf)  # squared, from each vector to the nearest seed
    while True:
        # the seeds of the last round may be nearer than the others
        seeds = centered[new]
        if len(new) == 1:
            to_new = (centered - seeds).square().sum(-1)
        else:  # |v|^2 - 2 v s + |s|^2 needs less memory than the differences
            norms = seeds.square().sum(-1)
            products = torch.addmm(norms, centered, seeds.T, alpha=-2)
            to_new = products.amin(1) + squares
            to_new = to_new.clamp(min=0)
        distance = torch.minimum(distance, to_new)

        # Stop with enough seeds, or when every vector lies on a seed; the first seed is then
        # repeated. The sum is made on the CPU, since torch has no deterministic one on CUDA.
        mass = distance.cpu().double().cumsum(0)
        missing = num_clusters - len(chosen)
        if missing == 0 or mass[-1] <= 0:
            repeated = chosen[:1].expand(missing)
            return vectors[torch.cat([chosen, repeated])]

        # Draw vectors in proportion to their distance. Seeds of one round may lie close together,
        # so a round adds at most half as many as there are.
        count = min(seeds_per_round, len(chosen) // 2, missing)
        shares = torch.rand(max(1, count), generator=rng, dtype=torch.float64)
        drawn = torch.searchsorted(mass, shares * mass[-1]).clamp(max=len(vectors) - 1)
        new = torch.unique(drawn).to(vectors.device)
        chosen = torch.cat([chosen, new])


def kmeans(vectors: Tensor, num_clusters: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm on vectors (N, D) from k-means++ seeds, without N x num_clusters
    distances in memory.

    Return centers (num_clusters, D) and the nearest center (N,) of each vector.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        centers = seed_clusters(vectors, num_clusters, rng)
    (nearest,) = search(vectors, [centers.unsqueeze(0)])
    for _ in range(5 if num_clusters > _MANY else 20):
        sizes = vq.counts(nearest, num_clusters).to(vectors.dtype)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        means = vq.means_or_kept(sizes, sums, centers)  # an empty cluster keeps its center
        if torch.equal(means, centers):
            break
        centers = means
        (nearest,) = search(vectors, [centers.unsqueeze(0)])
    return centers, nearest
