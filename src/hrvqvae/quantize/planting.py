"""Plant a tree on a trained flat codebook: make its codewords the leaves of a tree.

The K codewords of a flat codebook are divided into m groups of equal size. Each group is divided
again, and so on, until a group is a single codeword: a leaf of the tree. The vector of a group is
the mean of its leaves. The codeword of a child is the vector of the child minus that of its parent.
Such a tree is known from tree-structured vector quantization (Gersho and Gray 1992, chapter 12).

The row of a codeword is its number in the flat codebook, 0 to K - 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize.codebook import LevelCodebooks, split_levels
from hrvqvae.quantize.residual import ResidualQuantizer

_ITERATIONS = 15
_LEAST_WEIGHT = 1e-3  # of an unused codeword; the mean weight is 1


def plant(levels: Sequence[LevelCodebooks], codebook: Tensor, counts: Tensor) -> Tensor:
    """Make the rows of a flat codebook the leaves of a tree.

    Args:
        levels: linked levels with at least K leaves, coarse first; their codewords are overwritten.
        codebook: (K, D) float32.
        counts: (K,), how often each row is used.

    Returns:
        The row of each leaf, (leaves,). If there are more than K leaves, some repeat the row of an
        earlier child of the same node. The search takes the first of equal children, so it never
        chooses a repetition. The row of a repetition is returned plus K.
    """
    vectors = codebook.double()
    num_rows, dim = vectors.shape
    weights = counts.double()
    weights = (weights / weights.mean()).clamp(min=_LEAST_WEIGHT)

    # the row of each leaf
    sizes = [level.size for level in levels]
    marked_rows = _order_rows(vectors, weights, torch.arange(num_rows), sizes)
    rows = marked_rows % num_rows

    # leaves of the same row share its weight
    leaf_vectors = vectors[rows]
    leaf_weights = (weights / rows.bincount())[rows]

    parent_vectors = torch.zeros(1, dim)  # of the root
    for level in levels:
        # the vector of a node: the weighted mean of the leaves below it
        members = leaf_vectors.view(level.num_codewords, -1, dim)
        member_weights = leaf_weights.view(level.num_codewords, -1, 1)
        node_weights = member_weights.sum(1)
        means = (member_weights * members).sum(1) / node_weights

        # Its codeword is what it adds to its parent. The next level continues from the float32 sum
        # of the codewords, as `lookup` does, so that rounding does not add up.
        parent_vectors = parent_vectors.repeat_interleave(level.size, 0)
        codewords = means.float() - parent_vectors
        level.set_codewords(codewords, node_weights.flatten())
        parent_vectors = parent_vectors + codewords
    return marked_rows


def plant_tree(flat: ResidualQuantizer, config: QuantizerConfig) -> ResidualQuantizer:
    """Return the quantizer of `config` after a training of the quantizer of `config.trained`.

    Each flat codebook is planted as a group of linked levels. Codewords that were trained as a tree
    are copied.
    """
    tree = ResidualQuantizer(config)
    if config.is_flat_at_first:
        groups = split_levels(tree.levels, config.group_size)
        for group, stage in zip(groups, flat.levels, strict=True):
            plant(group, stage.codewords[0].cpu(), stage.count[0].cpu())
    else:
        tree.load_state_dict(flat.state_dict())
    return tree.to(flat.levels[0].count.device)


def read_leaves(tree: ResidualQuantizer) -> ResidualQuantizer:
    """Return the leaves of a tree as flat codebooks, one per group of linked levels: the inverse of
    `plant_tree`.
    """
    config = tree.config.replace(planted=True)
    flat = ResidualQuantizer(config.trained)
    groups = split_levels(tree.levels, config.group_size)
    for group, stage in zip(groups, flat.levels, strict=True):
        # from the root down, the vector of a node is that of its parent plus its codeword
        vectors = torch.zeros(1, config.dim)
        for level in group:
            vectors = vectors.repeat_interleave(level.size, 0)
            vectors = vectors + level.codewords.flatten(0, 1)
        stage.set_codewords(vectors, group[-1].count.flatten())
    return flat


def _order_rows(vectors: Tensor, weights: Tensor, rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return rows (n,) in the order of the leaves of a tree, with repetitions as `plant` returns
    them.

    Vectors (K, D) and weights (K,) are those of all rows, `sizes` the children per node at each
    level of the tree.
    """
    size, *finer_sizes = sizes
    if not finer_sizes:
        # the rows are the children of one node, and its missing children repeat the first row
        repetitions = rows[:1].repeat(size - len(rows)) + len(vectors)
        return torch.cat([rows, repetitions])

    # each group of rows is a subtree
    groups = divide(vectors[rows], weights[rows], size)
    ordered = []
    for group in range(size):
        members = rows[groups == group]
        ordered.append(_order_rows(vectors, weights, members, finer_sizes))
    return torch.cat(ordered)


def divide(points: Tensor, weights: Tensor, num_groups: int) -> Tensor:
    """Divide points (n, D) into groups by k-means with even clusters, whose sizes differ by one at
    most; return the group (n,) of each point.
    """
    sizes = (len(points) + torch.arange(num_groups)) // num_groups
    centers = points[:num_groups]
    prices = weights.new_zeros(num_groups)
    for _ in range(_ITERATIONS):
        distances = torch.cdist(points, centers).square()
        costs = distances * weights.unsqueeze(-1)
        groups = assign_evenly(costs, sizes.tolist(), prices)

        # the weighted mean of each group
        shares = one_hot(groups, num_groups).T * weights
        centers = shares @ points / shares.sum(1, keepdim=True)
    return groups


def assign_evenly(costs: Tensor, sizes: Sequence[int], prices: Tensor) -> Tensor:
    """Assign points to groups of given sizes, so that the sum of the costs is nearly the least.

    Args:
        costs: (n, m), what each point costs in each group.
        sizes: number of points of each group, n in all.
        prices: (m,), added to the costs of each group: a high price keeps points out of a group
            that too many prefer. Zeros at first; a call improves them in place, for the next call.

    Returns:
        The group (n,) of each point.
    """
    # A point prefers a group whose cost plus price is the least, so `excess` is negative for it.
    # Sorted by excess, the points of a group of `size` should end where the excess is zero. So the
    # price moves by the excess midway between the last point inside and the first outside.
    for group, size in enumerate(sizes):
        excess = _compare_with_others(costs + prices, group).sort().values
        prices[group] -= excess[size - 1 : size + 1].mean()

    # A price that moved later has changed what points prefer, so the groups are not yet even. Fill
    # one after the other, each with the points that gain most by it.
    priced = costs + prices
    groups = torch.zeros(len(costs), dtype=torch.long)
    for group, size in enumerate(sizes):
        members = _compare_with_others(priced, group).argsort()[:size]
        groups[members] = group

        # The group is no choice for other points. Its points, now NaN, come last in every order.
        priced[:, group] = torch.inf
        priced[members] = torch.nan
    return groups


def _compare_with_others(priced: Tensor, group: int) -> Tensor:
    """Return for each point the price of a group minus the least price of the other groups."""
    others = priced.index_fill(1, torch.tensor(group), torch.inf)
    return priced[:, group] - others.amin(1)
