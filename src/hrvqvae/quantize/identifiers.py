"""Unique indices of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_LEAVES = 16  # candidate leaves per moved item in the first round
_CHUNK_VALUES = 2**24  # most candidates, and values of their codewords, in memory at once


def unique_indices(quantizer: ResidualQuantizer, batches: Callable[[], Iterable[Tensor]]) -> Tensor:
    """Return unique indices for the vectors (n, D) float32 of `batches()`; see
    `TreeVQ.unique_indices`.
    """
    sizes = quantizer.config.sizes
    device = quantizer.levels[0].count.device
    encoded = (torch.stack(quantizer.encode(batch.to(device)), -1) for batch in batches())
    leaves = torch.cat(
        [torch.empty(0, dtype=torch.long), *(leaf_of(indices, sizes).cpu() for indices in encoded)]
    )
    if len(leaves) > math.prod(sizes):
        raise InputError(
            f"{len(leaves)} vectors can't have unique indices: there are {math.prod(sizes)} leaves"
        )
    _, inverse, counts = torch.unique(leaves, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    taken = leaves[~shared]
    unplaced = shared.nonzero().flatten()
    count = max(_LEAVES, quantizer.config.beam)
    vectors = torch.empty(0, quantizer.config.dim, dtype=torch.float32)
    start = 0
    for batch in batches():
        vectors = torch.cat([vectors, batch.cpu()[shared[start : start + len(batch)]]])
        start += len(batch)
    vectors, row = torch.unique(vectors, dim=0, return_inverse=True)  # one row for all equal items
    while len(unplaced):
        most = max(1, _CHUNK_VALUES // count)  # rows of this round; the others wait
        candidates, costs = _nearest_leaves(quantizer, vectors[:most].to(device), count)
        limit = costs.amax(1, keepdim=True)
        if candidates.shape[1] == math.prod(sizes):  # these are all leaves
            limit.fill_(torch.inf)
        choice = torch.full_like(row, -1)
        now = row < most
        choice[now] = _auction(
            candidates, costs.masked_fill(torch.isin(candidates, taken), torch.inf), limit, row[now]
        )
        placed = choice >= 0
        leaves[unplaced[placed]] = candidates[row[placed], choice[placed]]
        taken = torch.cat([taken, leaves[unplaced[placed]]])
        kept, row = torch.unique(row[~placed], return_inverse=True)
        vectors = vectors[kept]
        unplaced = unplaced[~placed]
        count = min(count * 4, math.prod(sizes))
    return torch.stack(
        [leaves // math.prod(sizes[level + 1 :]) % size for level, size in enumerate(sizes)], -1
    )


def _auction(candidates: Tensor, costs: Tensor, limit: Tensor, row: Tensor) -> Tensor:
    """Assign unique leaves to n items so that the sum of the costs is about least (the auction of
    Bertsekas 1988).

    Items without a leaf bid for their cheapest leaf, price included; of equal items, which have the
    same `row` (n,) of the candidates, one at a time. A bid raises the price until the item's second
    choice would be as cheap. The highest bid takes the leaf from its owner. An item leaves the
    auction when each of its candidates (r, k) costs more than its `limit` (r, 1). Return the column
    (n,) of each item's leaf; -1 for none.
    """
    leaves, leaf_at = torch.unique(candidates, return_inverse=True)
    prices = costs.new_zeros(len(leaves))
    owner = torch.full((len(leaves),), -1)
    choice = torch.full((len(row),), -1)
    bidders = torch.arange(len(row))
    least_raise = 1e-3 * costs[costs.isfinite()].mean().nan_to_num(1.0).clamp(min=1e-30)
    while len(bidders):
        first = _first_of_each(row[bidders])
        waiting = bidders[~first]
        bidders = bidders[first]
        rows = row[bidders]
        total = torch.cat([costs[rows] + prices[leaf_at[rows]], limit[rows]], 1)
        cheapest, column = total.topk(2, largest=False)
        stays = (column[:, 0] < costs.shape[1]) & cheapest[:, 0].isfinite()
        waiting = waiting[~torch.isin(row[waiting], rows[~stays])]
        bidders = bidders[stays]
        rows = rows[stays]
        cheapest = cheapest[stays]
        column = column[stays, 0]
        leaf = leaf_at[rows, column]
        advantage = (cheapest[:, 1] - cheapest[:, 0]).clamp(
            max=1e3 * least_raise
        )  # finite without a second leaf
        bids = prices[leaf] + advantage + least_raise
        order = bids.argsort(descending=True, stable=True)
        first = _first_of_each(leaf[order])
        winners = order[first]
        losers = order[~first]
        outbid = owner[leaf[winners]]
        outbid = outbid[outbid >= 0]
        choice[outbid] = -1
        owner[leaf[winners]], prices[leaf[winners]] = bidders[winners], bids[winners]
        choice[bidders[winners]] = column[winners]
        bidders = torch.cat([bidders[losers], outbid, waiting])
        least_raise = least_raise * 1.01  # many equal items would bid for long
    return choice


def _first_of_each(values: Tensor) -> Tensor:
    """Return whether each of values (n,) differs from all before it: (n,) bool."""
    order = values.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[order[1:]] = values[order[1:]] != values[order[:-1]]
    return first


def leaf_of(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Number the leaves of l levels: return the leaf (...) int64 of indices (..., l). Raises
    InputError if too many.
    """
    if math.prod(sizes) > 2**63:
        raise InputError(
            f"there are {math.prod(sizes)} leaves of {len(sizes)} levels; at most 2^63 can be"
            " numbered"
        )
    strides = indices.new_tensor(
        [math.prod(sizes[level + 1 :]) for level in range(len(sizes))], dtype=torch.long
    )
    return (indices * strides).sum(-1)


def _nearest_leaves(
    quantizer: ResidualQuantizer, vectors: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return `count` leaves (n, k) from a beam of this width, with squared distances (n, k)
    float64, on the CPU.
    """
    config = quantizer.config
    books = [book.codewords.detach() for book in quantizer.levels]
    leaves = []
    distances = []
    for chunk in torch.split(vectors, max(1, _CHUNK_VALUES // (count * config.dim))):
        indices = search_tensors(chunk, books, count, config.coarse_weight, count)
        codewords = [book.flatten(0, 1)[index] for book, index in zip(books, indices, strict=True)]
        codes = torch.stack(
            [index % size for index, size in zip(indices, config.sizes, strict=True)], -1
        )
        leaves.append(leaf_of(codes, config.sizes).cpu())
        distances.append(
            (chunk.unsqueeze(1) - torch.stack(codewords).sum(0)).square().sum(-1).cpu()
        )
    return torch.cat(leaves), torch.cat(distances).double()
