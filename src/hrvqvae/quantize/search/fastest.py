"""The fastest search with the same answers: compiled on the CPU, chunked on a GPU, in one piece in a graph.

numba is imported by the first search on a CPU, since it takes most of a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.quantize.search.chunked import search_flat_chunked, search_tree_chunked
from hrvqvae.quantize.search.reference import TreeSearch
from hrvqvae.quantize.search.traced import search_flat_traced, search_tree_traced


def search_flat_fastest(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`, on the device of the latents."""
    if torch.compiler.is_compiling():
        return search_flat_traced(latents, codebook)
    if latents.device.type != "cpu":
        return search_flat_chunked(latents, codebook)
    from hrvqvae.quantize.search.compiled import search_flat_compiled

    return search_flat_compiled(latents, codebook)


def search_tree_fastest(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`, on the device of the latents."""
    if torch.compiler.is_compiling():
        return search_tree_traced(latents, codebooks)
    if latents.device.type != "cpu":
        return search_tree_chunked(latents, codebooks)
    from hrvqvae.quantize.search.compiled import search_tree_compiled

    return search_tree_compiled(latents, codebooks)
