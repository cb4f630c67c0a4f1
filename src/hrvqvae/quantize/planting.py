"""Plant a tree on a trained flat codebook.

The K codewords of a flat codebook are divided into m groups of equal size, each group again, and so
on. They become the leaves of a tree: a group's vector is the mean of its leaves, and the codeword
of a child is the difference between its vector and its parent's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.residual import ResidualQuantizer

_ITERATIONS = 15
_LEAST_WEIGHT = 1e-3  # of an unused codeword, in mean weights


def plant(levels: Sequence[LevelCodebooks], codebook: Tensor, counts: Tensor) -> Tensor:
    """Make the rows of a codebook (K, D) the leaves of linked levels; return the row of each leaf.

    Counts (K,) tell how often each codeword is used. Leaves beyond K repeat a sibling before them,
    so that the search never chooses them; their row is the sibling's plus K.
    """
    words = codebook.double()
    weights = (counts.double() / counts.double().mean()).clamp(min=_LEAST_WEIGHT)
    sizes = [level.size for level in levels]
    marked = _order(words, weights, torch.arange(len(words)), sizes)
    rows = marked % len(words)
    weights /= rows.bincount()

    # from the first level to the leaves; sums as `lookup` rounds them
    nodes = torch.zeros(1, words.shape[1])
    for level in levels:
        members = rows.view(level.num_codewords, -1)
        share = weights[members].unsqueeze(-1)
        count = share.sum(1)
        means = (share * words[members]).sum(1) / count
        parents = nodes.repeat_interleave(level.size, 0)
        codewords = means.float() - parents
        level.set_codewords(slice(None), codewords, count.flatten())
        nodes = parents + codewords
    return marked


def plant_tree(flat: ResidualQuantizer, config: QuantizerConfig) -> ResidualQuantizer:
    """Return the tree of `config`. The codewords of a flat codebook become the leaves of each group
    of linked levels. A quantizer that was trained as a tree keeps its codewords.
    """
    tree = ResidualQuantizer(config)
    if not config.is_flat_at_first:
        tree.load_state_dict(flat.state_dict())
    else:
        for group, stage in zip(_groups(tree), flat.levels, strict=True):
            plant(group, stage.codewords[0].cpu(), stage.count[0].cpu())
    return tree.to(flat.levels[0].count.device)


def read_leaves(tree: ResidualQuantizer) -> ResidualQuantizer:
    """Return flat codebooks, one per group of linked levels, whose codewords are the leaves of a
    tree: the inverse of `plant_tree`.
    """
    flat = ResidualQuantizer(tree.config.replace(planted=True).trained)
    for group, stage in zip(_groups(tree), flat.levels, strict=True):
        leaves = torch.zeros(1, tree.config.dim)
        for level in group:
            leaves = leaves.repeat_interleave(level.size, 0) + level.codewords.flatten(0, 1)
        stage.set_codewords(slice(None), leaves, group[-1].count.flatten())
    return flat


def _groups(tree: ResidualQuantizer) -> list[list[LevelCodebooks]]:
    """Return the groups of linked levels."""
    size = tree.config.group_size
    return [tree.levels[start:][:size] for start in range(0, len(tree.levels), size)]


def _order(words: Tensor, weights: Tensor, rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return rows (n,) in the order of the leaves of their tree."""
    size, *finer = sizes
    if not finer:
        repeated = rows[:1].repeat(size - len(rows)) + len(words)
        return torch.cat([rows, repeated])
    group = divide(words[rows], weights[rows], size)
    parts = [_order(words, weights, rows[group == index], finer) for index in range(size)]
    return torch.cat(parts)


def divide(points: Tensor, weights: Tensor, num_groups: int) -> Tensor:
    """Divide points (n, D) into groups whose sizes differ by one at most, by k-means with even
    clusters; return the group (n,) of each.
    """
    room = (len(points) + torch.arange(num_groups)) // num_groups
    centers = points[:num_groups]
    prices = weights.new_zeros(num_groups)
    for _ in range(_ITERATIONS):
        costs = torch.cdist(points, centers).square() * weights.unsqueeze(-1)
        group = assign_evenly(costs, room.tolist(), prices)
        shares = one_hot(group, num_groups).T * weights
        centers = shares @ points / shares.sum(1, keepdim=True)
    return group


def assign_evenly(costs: Tensor, room: Sequence[int], prices: Tensor) -> Tensor:
    """Return the group (n,) of each point, which has costs (n, m), so that groups are full and the
    sum of the costs is nearly the least.

    A point takes the group of least cost plus price. Prices (m,) are changed in place, once each,
    so that just as many points take its group as have room there; further calls improve them.
    """
    for group, size in enumerate(room):
        losses = _losses(costs + prices, group).sort().values
        prices[group] -= losses[size - 1 : size + 1].mean()

    # each group takes the points that would lose most elsewhere
    total = costs + prices
    chosen = total.argmin(1)
    for group, size in enumerate(room):
        members = _losses(total, group).argsort()[:size]
        chosen[members] = group
        total[:, group] = torch.inf
        total[members] = torch.nan  # last in every order
    return chosen


def _losses(total: Tensor, group: int) -> Tensor:
    """Return by how much a group is dearer for each point than the best other group."""
    others = total.index_fill(1, torch.tensor(group), torch.inf)
    return total[:, group] - others.amin(1)
