"""The search by few and large tensor operations, for a GPU, and in the form that a graph can hold.

A GPU is not waited for, and values are not known while a graph is traced, so NaN is no error here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

_CHUNK_VALUES = 2**24  # of the largest tensor: 64 MiB


def search_tensors(latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0) -> Tensor:
    """As `search`, in chunks of the vectors; in a graph, where their number is not known, in one piece."""
    _, size, dim = codebooks[0].shape
    width = min(width, len(codebooks[-1]))  # the paths that there are before the last level
    values, find = width * size * dim, partial(_beam, codebooks=codebooks, width=width, coarse_weight=coarse_weight)
    if len(codebooks) == 1:
        values, find = size, partial(_flat, codebook=codebooks[0][0])
    if torch.compiler.is_compiling():
        return find(latents)
    with torch.autocast(latents.device.type, enabled=False):  # which would round matrix products to bfloat16
        chunks = torch.split(latents, max(1, _CHUNK_VALUES // values))
        return torch.cat([find(some) for some in chunks], 1)


def _flat(latents: Tensor, codebook: Tensor) -> Tensor:
    """argmin of |c|^2 - 2 r c, by a matrix product: (n, D) and (K, D) -> (1, n)."""
    return torch.addmm(codebook.square().sum(-1), latents, codebook.T, alpha=-2).argmin(-1).unsqueeze(0)


def _beam(latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float) -> Tensor:
    residual = latents.unsqueeze(1)  # (n, w, D), w paths so far
    path = torch.zeros_like(residual[..., 0], dtype=torch.long)
    before = torch.zeros_like(residual[..., 0])  # what the levels before add to the cost
    count, size = len(codebooks), codebooks[0].shape[1]
    coarse_weight = coarse_weight if width > 1 else 0.0  # one path leaves it no choice
    for level, codebook in enumerate(codebooks, start=1):
        distance = (residual.unsqueeze(2) - codebook[path]).square().sum(-1)  # (n, w, m)
        earlier = before.unsqueeze(-1)
        cost = (distance + earlier).flatten(1)
        kept = _least(cost, min(width, cost.shape[1]) if level < count else 1)
        parent = kept // size
        before = (coarse_weight * distance + earlier).flatten(1).gather(1, kept)
        path = path.gather(1, parent) * size + kept % size
        codeword = codebook.flatten(0, 1)[path]
        residual = residual.gather(1, parent.unsqueeze(-1).expand_as(codeword)) - codeword
    leaf = path[:, 0]
    return torch.stack([leaf // size ** (count - level) for level in range(1, count + 1)])


def _least(cost: Tensor, number: int) -> Tensor:
    """Places of so many least values of each row, in order, the first of equals: (n, k) -> (n, number)."""
    if number == 1:
        return cost.argmin(1, keepdim=True)
    if torch.compiler.is_compiling():  # graphs have no stable sort; of equals, which one is left to what runs them
        return cost.topk(number, dim=1, largest=False).indices
    return cost.sort(dim=1, stable=True).indices[:, :number]
