"""The searches in the form that a graph can hold: tensor operations alone, of any number of vectors, in one piece.

Neither sizes nor values are known while `torch.export` or `torch.compile` traces a model, so nothing is cut into chunks
and nothing is checked. NaN is no error here.

Shapes: N vectors, D their width, L levels, m codewords a codebook, K codewords of a flat codebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.search.chunked import descend, nearest_by_products
from hrvqvae.quantize.search.reference import TreeSearch


def search_tree_traced(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`; a tensor (N, m, D) exists."""
    residual, quantized = latents, torch.zeros_like(latents)
    path, paths = torch.zeros_like(latents[:, 0], dtype=torch.long), []
    for codebook in codebooks:
        residual, quantized, path = descend(residual, quantized, path, codebook)
        paths.append(path)
    return TreeSearch(torch.stack(paths), quantized)


def search_flat_traced(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`, by one matrix product; a tensor (N, K) exists."""
    return nearest_by_products(latents, codebook, codebook.square().sum(-1))
