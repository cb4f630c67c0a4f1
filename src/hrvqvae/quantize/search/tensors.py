"""The search in a few large tensor operations: the specification, and the form for a GPU and for
graphs.

NaN is not an error here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK_VALUES = 2**26  # most values per tensor: 256 MiB
_DIRECT = 64  # largest single codebook for which differences are computed instead of products


def search_tensors(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int = 1,
    coarse_weight: float = 0.0,
    leaves: int = 1,
) -> Tensor:
    """Search as `search` does, in chunks of vectors. Several `leaves` of least cost are returned as
    (L, N, leaves).
    """
    branches = 1  # before the last level; torch.compile can't trace math.prod
    for codebook in codebooks[:-1]:
        branches *= codebook.shape[1]
    width = min(width, branches)
    leaves = min(leaves, branches * codebooks[-1].shape[1])
    coarse_weight = coarse_weight if width > 1 else 0.0  # a single branch has one cost
    options = (codebooks, width, coarse_weight, leaves)
    with torch.autocast(latents.device.type, enabled=False):  # no products in bfloat16
        if torch.compiler.is_compiling():
            return _beam(latents, *options)
        values = max(width * min(book[..., 0].numel(), book[0].numel()) for book in codebooks)
        direct = max(min(book.shape[1], _DIRECT) for book in codebooks if len(book) == 1)
        values = max(values, max(direct, width) * latents.shape[1])
        chunks = torch.split(latents, max(1, _CHUNK_VALUES // values))
        return torch.cat([_beam(chunk, *options) for chunk in chunks], 1)


def _beam(
    latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float, leaves: int
) -> Tensor:
    """Return the indices (L, n), or (L, n, leaves), of latents (n, D)."""
    residual = latents.unsqueeze(1)  # (n, w, D), w branches so far
    index = torch.zeros_like(residual[..., 0], dtype=torch.long)
    coarser_cost = torch.zeros_like(residual[..., :1])
    indices: list[Tensor] = []
    for level, codebook in enumerate(codebooks, start=1):
        num_books, size, _ = codebook.shape
        is_finest = level == len(codebooks)

        # the cost of each child of each branch, (n, w * m)
        book = index % num_books
        distance = _distances(residual, codebook, book)
        cost = (distance + coarser_cost).flatten(1)

        # the children of least cost are the next branches
        kept = _least(cost, leaves if is_finest else min(width, cost.shape[1]))
        parent = kept // size
        index = book.gather(1, parent) * size + kept % size
        indices = [*(coarser.gather(1, parent) for coarser in indices), index]

        # what is left of the vector, and what its branches have cost
        if not is_finest:
            cost = (coarse_weight * distance + coarser_cost).flatten(1)
            coarser_cost = cost.gather(1, kept).unsqueeze(-1)
            codeword = codebook.flatten(0, 1)[index]
            residual = residual.gather(1, parent.unsqueeze(-1).expand_as(codeword)) - codeword
    return torch.stack(indices).squeeze(-1)  # without the dimension of a single leaf


def _distances(residual: Tensor, codebook: Tensor, book: Tensor) -> Tensor:
    """Return squared distances (n, w, m) of residuals (n, w, D) to the codewords of their books (n,
    w).

    With a single small codebook these are sums of squared differences, and otherwise matrix
    products. A small level is multiplied whole, so that no codebook is copied per residual.
    """
    if len(codebook) * residual.shape[1] == 1 and codebook.shape[1] <= _DIRECT:
        return (residual.unsqueeze(2) - codebook).square().sum(-1)
    if (
        len(codebook) == 1 and codebook.shape[1] > _DIRECT
    ):  # far from the origin products lose the differences
        center = codebook.nan_to_num(0.0, 0.0, 0.0).mean(1)
        residual = residual - center
        codebook = codebook - center
    squares = codebook.square().sum(-1)  # (books, m)
    if torch.compiler.is_compiling() or squares.numel() > codebook[0].numel():
        products = (codebook[book] @ residual.unsqueeze(-1)).squeeze(-1)
    else:
        products = (residual @ codebook.flatten(0, 1).T).view(*book.shape, *squares.shape)
        products = products.take_along_dim(book[..., None, None], 2).squeeze(2)
    return residual.square().sum(-1, keepdim=True) + squares[book] - 2 * products


def _least(cost: Tensor, count: int) -> Tensor:
    """Return the positions (n, count) of the least values of each row (n, k), in order, the first
    of equals.
    """
    if count == 1:
        return cost.argmin(1, keepdim=True)
    if torch.compiler.is_compiling():  # graphs have no stable sort: any of equals
        return cost.topk(count, dim=1, largest=False).indices
    return cost.sort(dim=1, stable=True).indices[:, :count]
