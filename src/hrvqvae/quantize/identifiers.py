"""Unique indices of items: items that share a leaf are matched to different leaves near them.

Items alone in their leaf keep it. The others are matched in rounds to free leaves, so that the sum
of squared errors is least (scipy's minimum weight full matching). A round knows the nearest leaves
of each item, its candidates. An item may also stay without a leaf, at the cost of its farthest
candidate; it takes part in the next round, with four times as many candidates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_CANDIDATES = 16  # per item in the first round
_MAX_EDGES = 2**18  # candidates of all items in a round; other items wait


def unique_indices(quantizer: ResidualQuantizer, vectors: Tensor, indices: Tensor) -> Tensor:
    """Return unique indices for the vectors (n, D) float32 of items with indices (n, L), on the
    CPU; see `TreeVQ.unique_indices`.
    """
    sizes = quantizer.config.sizes
    num_leaves = math.prod(sizes)
    if len(vectors) > num_leaves:
        raise InputError(
            f"{len(vectors)} vectors can't have unique indices: there are {num_leaves} leaves"
        )
    leaves = number_of(indices, sizes)

    # items that share a leaf; none of them has it yet
    _, inverse, counts = torch.unique(leaves, return_inverse=True, return_counts=True)
    is_shared = counts[inverse] > 1
    taken = leaves[~is_shared]
    waiting = is_shared.nonzero().flatten()

    count = min(max(_CANDIDATES, quantizer.config.beam), num_leaves)
    while len(waiting):
        # candidates of the items of this round, the taken ones at infinite cost
        most_items = max(1, _MAX_EDGES // count)
        items, later = waiting.tensor_split([most_items])
        candidates, costs = _nearest_leaves(quantizer, vectors[items], count)
        farthest = costs.amax(1)
        is_taken = torch.isin(candidates, taken)
        costs = costs.masked_fill(is_taken, torch.inf)
        if count == num_leaves:  # the last round: each item must have a leaf
            farthest.fill_(torch.inf)
        leaf = _match(candidates, costs, farthest)

        # items without a leaf go on, after those that have waited
        has_leaf = leaf >= 0
        leaves[items[has_leaf]] = leaf[has_leaf]
        taken = torch.cat([taken, leaf[has_leaf]])
        waiting = torch.cat([later, items[~has_leaf]])
        if not has_leaf.all():
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

    # The matrix of costs has a row per item. Its columns are all leaves, and after them one column
    # per item: the choice of no leaf.
    no_leaf = len(leaves) + torch.arange(count)
    all_columns = torch.cat([leaf_at, no_leaf.unsqueeze(1)], 1)
    all_costs = torch.cat([costs, farthest.unsqueeze(1)], 1)

    # Only finite costs are in the matrix. scipy takes a zero for an absent cost, so a constant is
    # added. It changes no choice, since every item gets one column. It is as large as the costs,
    # since a larger one would round their digits away.
    item, choice = all_costs.isfinite().nonzero(as_tuple=True)
    column = all_columns[item, choice]
    cost = all_costs[item, choice]
    cost += cost.max() + 1e-30

    entries = (cost.numpy(), (item.numpy(), column.numpy()))
    matrix = csr_matrix(entries, shape=(count, len(leaves) + count))
    _, chosen = min_weight_full_bipartite_matching(matrix)
    leaf_of_column = torch.cat([leaves, torch.full((count,), -1)])
    return leaf_of_column[torch.as_tensor(chosen, dtype=torch.long)]


def number_of(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the number (...) int64 of codes (..., l), below `sizes`, in lexicographic order: the
    inverse of torch.unravel_index. torch raises an error from 2^63 leaves on.
    """
    leaves_below = [math.prod(sizes[level:]) for level in range(len(sizes) + 1)]
    strides = torch.tensor(leaves_below, device=codes.device)[1:]
    return (codes * strides).sum(-1)


def _nearest_leaves(
    quantizer: ResidualQuantizer, vectors: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return `count` leaves (n, k) from a beam of this width, with squared distances (n, k)
    float64, on the CPU.
    """
    config = quantizer.config
    codebooks = [level.codewords for level in quantizer.levels]
    vectors = vectors.to(codebooks[0].device)
    indices = search_tensors(vectors, codebooks, count, config.coarse_weight, count)
    codes = [index % size for index, size in zip(indices, config.sizes, strict=True)]
    leaf = number_of(torch.stack(codes, -1), config.sizes)
    quantized = quantizer.lookup(tuple(codes))
    distance = (vectors.unsqueeze(1) - quantized).square().sum(-1)
    return leaf.cpu(), distance.cpu().double()
