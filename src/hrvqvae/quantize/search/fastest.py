"""The fastest search with the same answers: compiled on the CPU, chunked on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hrvqvae.quantize.search.chunked import search_flat_chunked, search_tree_chunked
from hrvqvae.quantize.search.compiled import search_flat_compiled, search_tree_compiled
from hrvqvae.quantize.search.reference import TreeSearch


def search_flat_fastest(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`, on the device of the latents."""
    search = search_flat_compiled if latents.device.type == "cpu" else search_flat_chunked
    return search(latents, codebook)


def search_tree_fastest(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`, on the device of the latents."""
    search = search_tree_compiled if latents.device.type == "cpu" else search_tree_chunked
    return search(latents, codebooks)
