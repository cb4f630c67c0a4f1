"""The search by few and large tensor operations, for a GPU, and in the form that a graph can hold.

A GPU is not waited for, and values are not known while a graph is traced, so NaN is no error here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK_VALUES = 2**26  # of the largest tensor: 256 MiB
_DIRECT = 64  # codewords of a single codebook whose differences to the vectors are taken


def search_tensors(
    latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0, leaves: int = 1
) -> Tensor:
    """As `search`, in chunks of the vectors; in a graph, where their number is not known, in one piece.

    Args:
        leaves: how many of the best paths to return: with more than one, (L, N, leaves), in the order of their costs.
    """
    paths = 1  # before the last level
    for book in codebooks[:-1]:
        paths *= book.shape[1]
    width, leaves = min(width, paths), min(leaves, paths * codebooks[-1].shape[1])
    if torch.compiler.is_compiling():
        return _beam(latents, codebooks, width, coarse_weight, leaves)
    values = max(width * min(book[..., 0].numel(), book[0].numel()) for book in codebooks)
    values = max(values, min(codebooks[0].shape[1], _DIRECT) * latents.shape[1])
    with torch.autocast(latents.device.type, enabled=False):  # which would round matrix products to bfloat16
        chunks = torch.split(latents, max(1, _CHUNK_VALUES // values))
        return torch.cat([_beam(chunk, codebooks, width, coarse_weight, leaves) for chunk in chunks], 1)


def _beam(latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float, leaves: int) -> Tensor:
    residual = latents.unsqueeze(1)  # (n, w, D), w paths so far
    index = torch.zeros_like(residual[..., 0], dtype=torch.long)
    before = torch.zeros_like(residual[..., 0])  # what the levels before add to the cost
    coarse_weight = coarse_weight if width > 1 else 0.0  # one path leaves it no choice
    indices: list[Tensor] = []
    for level, codebook in enumerate(codebooks, start=1):
        books, size, _ = codebook.shape
        book = index if books > 1 else torch.zeros_like(index)
        distance = _distances(residual, codebook, book)
        earlier = before.unsqueeze(-1)
        cost = (distance + earlier).flatten(1)
        finest = level == len(codebooks)
        kept = _least(cost, leaves if finest else min(width, cost.shape[1]))
        parent = kept // size
        index = book.gather(1, parent) * size + kept % size
        indices = [*(coarser.gather(1, parent) for coarser in indices), index]
        if not finest:
            before = (coarse_weight * distance + earlier).flatten(1).gather(1, kept)
            codeword = codebook.flatten(0, 1)[index]
            residual = residual.gather(1, parent.unsqueeze(-1).expand_as(codeword)) - codeword
    found = torch.stack(indices)
    return found if leaves > 1 else found[..., 0]


def _distances(residual: Tensor, codebook: Tensor, book: Tensor) -> Tensor:
    """Return squared distances (n, w, m) of residuals (n, w, D) to the codewords of their books (n, w).

    A single small codebook takes the direct form, which is accurate far from the origin; the others take matrix
    products. A level of few codewords is multiplied whole, which needs no copy of a codebook for each residual.
    """
    if len(codebook) * residual.shape[1] == 1 and codebook.shape[1] <= _DIRECT:
        return (residual.unsqueeze(2) - codebook).square().sum(-1)
    squares = codebook.square().sum(-1)  # (books, m)
    if torch.compiler.is_compiling() or squares.numel() > codebook[0].numel():
        products = (codebook[book] @ residual.unsqueeze(-1)).squeeze(-1)
    else:
        products = (residual @ codebook.flatten(0, 1).T).view(*book.shape, *squares.shape)
        products = products.take_along_dim(book[..., None, None], 2).squeeze(2)
    return residual.square().sum(-1, keepdim=True) + squares[book] - 2 * products


def _least(cost: Tensor, number: int) -> Tensor:
    """Return the places (n, number) of the least values of each row (n, k), in order, the first of equals."""
    if number == 1:
        return cost.argmin(1, keepdim=True)
    if torch.compiler.is_compiling():  # graphs have no stable sort; of equals, which one is left to what runs them
        return cost.topk(number, dim=1, largest=False).indices
    return cost.sort(dim=1, stable=True).indices[:, :number]
