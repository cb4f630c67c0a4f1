"""Identifiers of items: unique indices, and the indices that may follow a prefix in decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_LEAVES = 16  # candidates of a moved item in the first round
_CHUNK_VALUES = 2**24  # of the candidates' codewords, per chunk of items


def unique_indices(quantizer: ResidualQuantizer, batches: Callable[[], Iterable[Tensor]]) -> Tensor:
    """Return unique indices for the vectors (n, D) float32 of `batches()`; see `TreeVQ.unique_indices`."""
    sizes, device = quantizer.config.sizes, quantizer.levels[0].count.device
    leaves = torch.empty(0, dtype=torch.long)
    for batch in batches():
        require_finite(batch, ())
        leaves = torch.cat([leaves, _leaf_of(torch.stack(quantizer.encode(batch.to(device)), -1), sizes).cpu()])
    if len(leaves) > math.prod(sizes):
        raise InputError(f"{len(leaves)} vectors can't have unique indices: there are {math.prod(sizes)} leaves")
    _, inverse, counts = torch.unique(leaves, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    taken, crowded, count = leaves[~shared], shared.nonzero().flatten(), max(_LEAVES, quantizer.config.beam)
    vectors, start = torch.empty(0, quantizer.config.dim), 0
    for batch in batches():
        vectors = torch.cat([vectors, batch.cpu()[shared[start : start + len(batch)]]])
        start += len(batch)
    while len(crowded):
        candidates, costs = _nearest_leaves(quantizer, vectors.to(device), count)
        limit = costs.amax(1, keepdim=True)
        if candidates.shape[1] == math.prod(sizes):  # there is no other leaf
            limit.fill_(torch.inf)
        chosen = _auction(candidates, costs.masked_fill(torch.isin(candidates, taken), torch.inf), limit)
        placed = chosen >= 0
        leaves[crowded[placed]] = candidates[placed].gather(1, chosen[placed, None]).squeeze(1)
        taken = torch.cat([taken, leaves[crowded[placed]]])
        vectors, crowded, count = vectors[~placed], crowded[~placed], count * 4
    return torch.stack([leaves // math.prod(sizes[level + 1 :]) % size for level, size in enumerate(sizes)], -1)


def _auction(candidates: Tensor, costs: Tensor, limit: Tensor) -> Tensor:
    """Give each item a leaf of its own so that the costs together are about least (Bertsekas 1988).

    Items without a leaf bid for the leaf that they find cheapest, price included, up to what makes another as cheap.
    The highest bid takes the leaf from its owner and is its price.

    Args:
        candidates: (n, k), leaves of each item.
        costs: (n, k).
        limit: (n, 1), cost beyond which an item leaves the auction.

    Returns:
        The position (n,) of each item's leaf among its candidates; -1 for none.
    """
    leaves, place = torch.unique(candidates, return_inverse=True)
    prices, owner = costs.new_zeros(len(leaves)), torch.full((len(leaves),), -1)
    chosen, bidders = torch.full((len(costs),), -1), torch.arange(len(costs))
    step = 1e-3 * costs[costs.isfinite()].mean().nan_to_num(1.0).clamp(min=1e-30)
    while len(bidders):
        values = torch.cat([costs[bidders] + prices[place[bidders]], limit[bidders]], 1)
        least, position = values.topk(2, largest=False)
        inside = (position[:, 0] < costs.shape[1]) & least[:, 0].isfinite()
        bidders, least, position = bidders[inside], least[inside], position[inside, 0]
        target = place[bidders, position]
        bids = prices[target] + (least[:, 1] - least[:, 0]).clamp(max=1e3 * step) + step
        order = bids.argsort(descending=True, stable=True)
        order = order[target[order].argsort(stable=True)]  # by leaf, the highest bid first
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = target[order][1:] != target[order][:-1]
        winners, losers = order[first], order[~first]
        earlier = owner[target[winners]]
        chosen[earlier[earlier >= 0]] = -1
        owner[target[winners]], prices[target[winners]] = bidders[winners], bids[winners]
        chosen[bidders[winners]] = position[winners]
        bidders, step = torch.cat([bidders[losers], earlier[earlier >= 0]]), step * 1.01  # items may be equal
    return chosen


def valid_next(prefixes: Tensor, indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the indices that may follow prefixes; see `TreeVQ.valid_next`. `sizes` holds m for each level."""
    length = prefixes.shape[-1]
    if length >= len(sizes) or indices.shape[-1] != len(sizes):
        raise InputError(
            f"prefixes have {length} levels and indices {indices.shape[-1]}; "
            f"give prefixes of fewer than {len(sizes)} levels, and indices of all {len(sizes)}"
        )
    existing = torch.unique(_leaf_of(indices[:, : length + 1], sizes[: length + 1]))
    parents = _leaf_of(prefixes, sizes[:length]) * sizes[length]
    children = parents.unsqueeze(-1) + torch.arange(sizes[length], device=prefixes.device)
    inside = ((prefixes >= 0) & (prefixes < torch.tensor(sizes[:length], device=prefixes.device))).all(-1, keepdim=True)
    return torch.isin(children, existing.to(children.device)) & inside


def _leaf_of(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the index of the leaf, among all leaves of l levels, for indices (..., l): (...) int64."""
    leaf = indices.new_zeros(indices.shape[:-1], dtype=torch.long)
    for index, size in zip(indices.unbind(-1), sizes, strict=True):
        leaf = leaf * size + index
    return leaf


def _nearest_leaves(quantizer: ResidualQuantizer, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leaves (n, k) of a beam as wide as `count`, and their squared distances (n, k) float64, on the CPU."""
    config, books = quantizer.config, [book.codewords.detach() for book in quantizer.levels]
    leaves, distances, tables = [], [], [book.table for book in quantizer.levels]
    for chunk in torch.split(vectors, max(1, _CHUNK_VALUES // (count * config.dim))):
        indices = search_tensors(chunk, books, count, config.coarse_weight, tables, count)
        indices = indices.reshape(len(books), len(chunk), -1)
        codewords = [book.flatten(0, 1)[index] for book, index in zip(books, indices, strict=True)]
        codes = torch.stack([index % size for index, size in zip(indices, config.sizes, strict=True)], -1)
        leaves.append(_leaf_of(codes, config.sizes).cpu())
        distances.append((chunk.unsqueeze(1) - torch.stack(codewords).sum(0)).square().sum(-1).cpu())
    return torch.cat(leaves), torch.cat(distances).double()
