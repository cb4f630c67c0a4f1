"""Unique indices of items: items that share a leaf are matched to different leaves near them.

Items alone in their leaf keep it. All others are matched to free leaves among the nearest few of
each, so that the sum of squared errors is least (scipy's minimum weight full matching). An item may
also stay without a leaf, at the cost of its farthest candidate; it takes part in the next round,
with four times as many candidates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_CANDIDATES = 16  # leaves per item in the first round
_MAX_EDGES = 2**18  # candidates of all items in a round; other items wait


def unique_indices(quantizer: ResidualQuantizer, vectors: Tensor, indices: Tensor) -> Tensor:
    """Return unique indices for the vectors (n, D) float32 of items with indices (n, L), on the
    CPU; see `TreeVQ.unique_indices`.
    """
    sizes = quantizer.config.sizes
    num_leaves = math.prod(sizes)
    device = quantizer.levels[0].count.device
    leaves = number_of(indices, sizes)
    if len(leaves) > num_leaves:
        raise InputError(
            f"{len(leaves)} vectors can't have unique indices: there are {num_leaves} leaves"
        )

    # items that share a leaf; the leaf is free until an item is matched to it
    _, inverse, counts = torch.unique(leaves, return_inverse=True, return_counts=True)
    is_shared = counts[inverse] > 1
    taken = leaves[~is_shared]
    shared = is_shared.nonzero().flatten()
    vectors = vectors[shared]

    unplaced = torch.arange(len(shared))
    count = max(_CANDIDATES, quantizer.config.beam)
    count = min(count, num_leaves)
    while len(unplaced):
        # match the items of this round to free leaves; those after them wait
        most_items = max(1, _MAX_EDGES // count)
        now, later = unplaced.tensor_split([most_items])
        candidates, costs = _nearest_leaves(quantizer, vectors[now].to(device), count)
        farthest = costs.amax(1)
        if count == num_leaves:  # the last round: each item must have a leaf
            farthest.fill_(torch.inf)
        is_taken = torch.isin(candidates, taken)
        costs = costs.masked_fill(is_taken, torch.inf)
        leaf = _match(candidates, costs, farthest)

        # items without a leaf go on, after those that have waited
        placed = leaf >= 0
        leaves[shared[now[placed]]] = leaf[placed]
        taken = torch.cat([taken, leaf[placed]])
        unplaced = torch.cat([later, now[~placed]])
        if not placed.all():
            count = min(count * 4, num_leaves)
    return torch.stack(torch.unravel_index(leaves, sizes), -1)


def _match(candidates: Tensor, costs: Tensor, farthest: Tensor) -> Tensor:
    """Assign different leaves to n items, so that the sum of the costs is least.

    Args:
        candidates: leaves (n, k).
        costs: costs (n, k) float64 of these leaves; infinity for none.
        farthest: cost (n,) of an item without a leaf; infinity if each item must have one.

    Returns:
        The leaf (n,) of each item, -1 for none.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    count = len(candidates)
    leaves, leaf_at = torch.unique(candidates, return_inverse=True)

    # columns of the matrix: all leaves, then for each item the choice of no leaf
    no_leaf = len(leaves) + torch.arange(count)
    all_columns = torch.cat([leaf_at, no_leaf.unsqueeze(1)], 1)
    all_costs = torch.cat([costs, farthest.unsqueeze(1)], 1)

    # its entries
    item, place = all_costs.isfinite().nonzero(as_tuple=True)
    columns = all_columns[item, place]
    weights = all_costs[item, place]
    # A weight of zero would be no edge. All matchings have as many edges: a constant changes none.
    # A constant of the weights' own size rounds away little of them.
    weights += weights.max() + 1e-30

    shape = (count, len(leaves) + count)
    places = (item.numpy(), columns.numpy())
    matrix = csr_matrix((weights.numpy(), places), shape=shape)
    _, chosen = min_weight_full_bipartite_matching(matrix)
    leaf_of_column = torch.cat([leaves, torch.full((count,), -1)])
    return leaf_of_column[torch.as_tensor(chosen, dtype=torch.long)]


def number_of(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the number (...) int64 of codes (..., l), below `sizes`, in lexicographic order: the
    inverse of torch.unravel_index. torch raises an error from 2^63 leaves on.
    """
    leaves_below = [math.prod(sizes[level:]) for level in range(len(sizes) + 1)]
    strides = torch.tensor(leaves_below, device=codes.device)
    return (codes * strides[1:]).sum(-1)


def _nearest_leaves(
    quantizer: ResidualQuantizer, vectors: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return `count` leaves (n, k) from a beam of this width, with squared distances (n, k)
    float64, on the CPU.
    """
    config = quantizer.config
    codebooks = [level.codewords for level in quantizer.levels]
    indices = search_tensors(vectors, codebooks, count, config.coarse_weight, count)
    codes = [index % size for index, size in zip(indices, config.sizes, strict=True)]
    leaf = number_of(torch.stack(codes, -1), config.sizes)
    quantized = quantizer.lookup(tuple(codes), check=False)
    distance = (vectors.unsqueeze(1) - quantized).square().sum(-1)
    return leaf.cpu(), distance.cpu().double()
