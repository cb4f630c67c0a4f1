"""The search in a few large tensor operations: the specification, and the form for a GPU and for
traced or compiled graphs.

`compiled.py` gives the same indices up to rounding. It raises an error for NaN, this form does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK_VALUES = 2**26  # most values per tensor: 256 MiB
# codewords of a level's only codebook up to which distances are sums of squared differences
_DIRECT = 64


def search_tensors(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int = 1,
    coarse_weight: float = 0.0,
    leaves: int = 1,
) -> Tensor:
    """Search as `search` does, in chunks of vectors.

    With several `leaves` return (L, N, leaves), those of least cost in ascending order; fewer if
    the branches have fewer.
    """
    options = (codebooks, width, coarse_weight, leaves)
    device = "cpu" if latents.is_meta else latents.device.type
    with torch.autocast(device, enabled=False):  # no products in bfloat16
        if torch.compiler.is_compiling():
            return _beam(latents, *options)
        values = max(_values_per_vector(codebook, width) for codebook in codebooks)
        chunk_size = max(1, _CHUNK_VALUES // values)
        chunks = torch.split(latents, chunk_size)
        indices = [_beam(chunk, *options) for chunk in chunks]
        return torch.cat(indices, 1)


def _beam(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int,
    coarse_weight: float,
    leaves: int,
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
        book = index % num_books  # its own codebook, or the only one
        distance = _distances(residual, codebook, book)
        cost = (distance + coarser_cost).flatten(1)

        # the children of least cost are the next branches
        count = leaves if is_finest else min(width, cost.shape[1])
        kept = _least(cost, count)
        parent = kept // size
        index = book.gather(1, parent) * size + kept % size
        indices = [coarser.gather(1, parent) for coarser in indices]
        indices.append(index)

        # what is left of the vector, and its part of the next level's costs
        if not is_finest:
            next_cost = (coarse_weight * distance + coarser_cost).flatten(1)
            coarser_cost = next_cost.gather(1, kept).unsqueeze(-1)
            codeword = codebook.flatten(0, 1)[index]
            parents = parent.unsqueeze(-1).expand_as(codeword)
            residual = residual.gather(1, parents) - codeword
    return torch.stack(indices).squeeze(-1)  # without the dimension of a single leaf


def _distances(residual: Tensor, codebook: Tensor, book: Tensor) -> Tensor:
    """Return squared distances (n, w, m) of residuals (n, w, D) to the codewords of their books (n,
    w).

    They are sums of squared differences if a single branch meets a single small codebook, otherwise
    matrix products.
    """
    num_books, size, _ = codebook.shape
    is_large = size > _DIRECT
    if num_books == 1 and residual.shape[1] == 1 and not is_large:
        difference = residual.unsqueeze(2) - codebook
        return difference.square().sum(-1)

    # far from the origin products lose the differences
    if num_books == 1 and is_large:
        center = codebook.nan_to_num(0.0, 0.0, 0.0).mean(1)  # a bad codeword spoils no other
        residual = residual - center
        codebook = codebook - center

    squares = codebook.square().sum(-1)  # (books, m)
    if num_books == 1:
        products = residual @ codebook[0].T
    else:  # with a copy of the codebook per branch
        products = codebook[book] @ residual.unsqueeze(-1)
        products = products.squeeze(-1)
    residual_squares = residual.square().sum(-1, keepdim=True)
    return residual_squares + squares[book] - 2 * products


def _values_per_vector(codebook: Tensor, width: int) -> int:
    """Return the size per vector of the largest tensor that a level makes."""
    num_books, size, dim = codebook.shape
    is_product = num_books == 1 and size > _DIRECT
    return width * max(dim, size if is_product else size * dim)


def _least(cost: Tensor, count: int) -> Tensor:
    """Return the positions (n, count) of the least values of each row (n, k), ascending by value;
    of equals the first, in a graph any.
    """
    if count == 1:
        return cost.argmin(1, keepdim=True)
    if torch.compiler.is_compiling():  # graphs have no stable sort
        return cost.topk(count, dim=1, largest=False).indices
    return cost.sort(dim=1, stable=True).indices[:, :count]
