"""Identifiers of items: indices of which no two are equal, and which index may come next while one is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError

_LEAVES = 16  # that a moved item may choose from at first
_VALUES = 2**24  # of the leaves that items choose from together


def unique_indices(quantizer: ResidualQuantizer, batches: Iterable[Tensor]) -> Tensor:
    """As `TreeVQ.unique_indices`, for batches of vectors (n, D) float32."""
    sizes, device = quantizer.config.sizes, quantizer.levels[0].count.device
    parts, coded, squares = list[Tensor](), list[Tensor](), list[Tensor]()
    for part in batches:
        require_finite(part, ())
        codes = quantizer.encode(part.to(device))
        parts.append(part)
        coded.append(_numbered(torch.stack(codes, -1), sizes).cpu())
        squares.append((part - quantizer.lookup(codes).to(part.device)).square().sum(-1))
    if sum(map(len, parts)) == 0:
        return torch.empty(0, len(sizes), dtype=torch.long)
    vectors, leaves = torch.cat(parts), torch.cat(coded)
    if len(vectors) > math.prod(sizes):
        raise InputError(f"{len(vectors)} vectors can't have unique indices: there are {math.prod(sizes)} leaves")
    keeps = _first_of_each(leaves, torch.cat(squares))
    taken, count = leaves[keeps].sort().values, max(_LEAVES, quantizer.config.beam)
    moving = torch.ones(len(vectors), dtype=torch.bool).index_fill_(0, keeps, False).nonzero().flatten()
    while len(moving):
        leaf, cost = _nearest_leaves(quantizer, vectors[moving].to(device), count)
        while len(moving):  # every item asks for its best free leaf, and the nearest item gets it
            cost = cost.masked_fill(torch.isin(leaf, taken), torch.inf)
            best, place = cost.min(1)
            asking = best.isfinite().nonzero().flatten()
            if not len(asking):
                break
            wanted = leaf[asking, place[asking]]
            gets = asking[_first_of_each(wanted, best[asking])]
            leaves[moving[gets]] = leaf[gets, place[gets]]
            taken = torch.cat([taken, leaves[moving[gets]]])
            left = torch.ones(len(moving), dtype=torch.bool).index_fill_(0, gets, False)
            moving, leaf, cost = moving[left], leaf[left], cost[left]
        count *= 4
    return torch.stack([leaves // math.prod(sizes[level + 1 :]) % size for level, size in enumerate(sizes)], -1)


def valid_next(prefixes: Tensor, indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """As `TreeVQ.valid_next`; `sizes` are the codewords of a codebook of each level."""
    length = prefixes.shape[-1]
    if length >= len(sizes) or indices.shape[-1] != len(sizes):
        raise InputError(
            f"prefixes have {length} levels and indices {indices.shape[-1]}; of {len(sizes)}, less and all"
        )
    exist = torch.unique(_numbered(indices[:, : length + 1], sizes[: length + 1]))
    parents = _numbered(prefixes, sizes[:length]) * sizes[length]
    wanted = parents.unsqueeze(-1) + torch.arange(sizes[length], device=prefixes.device)
    inside = ((prefixes >= 0) & (prefixes < torch.tensor(sizes[:length], device=prefixes.device))).all(-1, keepdim=True)
    return torch.isin(wanted, exist.to(wanted.device)) & inside


def _numbered(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return indices (..., l) as one number each: (...) int64."""
    number = indices.new_zeros(indices.shape[:-1], dtype=torch.long)
    for index, size in zip(indices.unbind(-1), sizes, strict=True):
        number = number * size + index
    return number


def _first_of_each(leaf: Tensor, distance: Tensor) -> Tensor:
    """Return the positions of the least distance of each leaf, for leaves and distances (n,)."""
    order = distance.argsort(stable=True)
    order = order[leaf[order].argsort(stable=True)]
    ordered = leaf[order]
    return order[torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])]


def _nearest_leaves(quantizer: ResidualQuantizer, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leaves (n, k) that a beam of `count` paths ends in, and their squared distances (n, k), on the CPU."""
    config, books = quantizer.config, [book.codewords.detach() for book in quantizer.levels]
    leaves, costs = [], []
    for part in torch.split(vectors, max(1, _VALUES // (count * config.dim))):
        indices = search_tensors(part, books, count, config.coarse_weight, leaves=count).reshape(
            len(books), len(part), -1
        )
        left = part.unsqueeze(1) - torch.stack(
            [book.flatten(0, 1)[i] for book, i in zip(books, indices, strict=True)]
        ).sum(0)
        codes = torch.stack([i % size for i, size in zip(indices, config.sizes, strict=True)], -1)
        leaves.append(_numbered(codes, config.sizes).cpu())
        costs.append(left.square().sum(-1).cpu())
    return torch.cat(leaves), torch.cat(costs)
