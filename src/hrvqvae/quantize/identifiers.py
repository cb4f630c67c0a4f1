"""Identifiers of items: unique indices, and the indices that may follow a prefix in decoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_LEAVES = 16  # candidates of a moved item in the first round
_CHUNK_VALUES = 2**24  # of the candidates' codewords, per chunk of items


def unique_indices(quantizer: ResidualQuantizer, batches: Iterable[Tensor]) -> Tensor:
    """Return unique indices for batches of vectors (n, D) float32; see `TreeVQ.unique_indices`."""
    sizes, device = quantizer.config.sizes, quantizer.levels[0].count.device
    rows = list[tuple[Tensor, Tensor, Tensor]]()
    for batch in batches:
        require_finite(batch, ())
        codes = quantizer.encode(batch.to(device))
        distance = (batch - quantizer.lookup(codes).to(batch.device)).square().sum(-1)
        rows.append((batch, _leaf_of(torch.stack(codes, -1), sizes).cpu(), distance))
    if sum(len(batch) for batch, *_ in rows) == 0:
        return torch.empty(0, len(sizes), dtype=torch.long)
    vectors, leaves, distances = (torch.cat(column) for column in zip(*rows, strict=True))
    if len(vectors) > math.prod(sizes):
        raise InputError(f"{len(vectors)} vectors can't have unique indices: there are {math.prod(sizes)} leaves")
    keepers = _nearest_per_leaf(leaves, distances)
    taken, count = leaves[keepers], max(_LEAVES, quantizer.config.beam)
    unplaced = torch.ones(len(vectors), dtype=torch.bool).index_fill_(0, keepers, False).nonzero().flatten()
    while len(unplaced):
        candidates, cost = _nearest_leaves(quantizer, vectors[unplaced].to(device), count)
        while len(unplaced):  # every item bids for its nearest free leaf, and the nearest item gets it
            cost = cost.masked_fill(torch.isin(candidates, taken), torch.inf)
            least, position = cost.min(1)
            bidders = least.isfinite().nonzero().flatten()
            if not len(bidders):
                break
            winners = bidders[_nearest_per_leaf(candidates[bidders, position[bidders]], least[bidders])]
            leaves[unplaced[winners]] = candidates[winners, position[winners]]
            taken = torch.cat([taken, leaves[unplaced[winners]]])
            losers = torch.ones(len(unplaced), dtype=torch.bool).index_fill_(0, winners, False)
            unplaced, candidates, cost = unplaced[losers], candidates[losers], cost[losers]
        count *= 4
    return torch.stack([leaves // math.prod(sizes[level + 1 :]) % size for level, size in enumerate(sizes)], -1)


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


def _nearest_per_leaf(leaf: Tensor, distance: Tensor) -> Tensor:
    """Return, for each leaf that occurs, the position of its least distance; leaf and distance are (n,)."""
    order = distance.argsort(stable=True)
    order = order[leaf[order].argsort(stable=True)]
    ordered = leaf[order]
    return order[torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])]


def _nearest_leaves(quantizer: ResidualQuantizer, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leaves (n, k) of a beam as wide as `count`, and their squared distances (n, k), on the CPU."""
    config, books = quantizer.config, [book.codewords.detach() for book in quantizer.levels]
    leaves, distances, tables = [], [], [book.table for book in quantizer.levels]
    for chunk in torch.split(vectors, max(1, _CHUNK_VALUES // (count * config.dim))):
        indices = search_tensors(chunk, books, count, config.coarse_weight, tables, count)
        indices = indices.reshape(len(books), len(chunk), -1)
        codewords = [book.flatten(0, 1)[index] for book, index in zip(books, indices, strict=True)]
        codes = torch.stack([index % size for index, size in zip(indices, config.sizes, strict=True)], -1)
        leaves.append(_leaf_of(codes, config.sizes).cpu())
        distances.append((chunk.unsqueeze(1) - torch.stack(codewords).sum(0)).square().sum(-1).cpu())
    return torch.cat(leaves), torch.cat(distances)
