"""Which codeword is nearest: a plain reference, loops compiled for the CPU, tensor operations for a GPU.

Ties go to the lowest index everywhere.
"""

from collections.abc import Sequence

from torch import Tensor

from hrvqvae.quantize.search.beam import Beam
from hrvqvae.quantize.search.fastest import search_flat_fastest, search_tree_fastest
from hrvqvae.quantize.search.reference import FlatSearcher, TreeSearch, TreeSearcher, search_flat, search_tree

__all__ = [
    "Beam",
    "FlatSearcher",
    "TreeSearch",
    "TreeSearcher",
    "search",
    "search_flat",
    "search_flat_fastest",
    "search_tree",
    "search_tree_fastest",
]


def search(latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0) -> Tensor:
    """Paths (L, N) of vectors (N, D) in L levels of linked codebooks, (m^l, m, D) each, on their device.

    Args:
        width: paths that a beam keeps at each level; 1 is the greedy search.
        coarse_weight: weight of the squared residuals of all levels but the last in what a beam minimizes.

    Raises:
        NonFiniteError: a latent or a codeword is NaN or infinite; on a GPU, which is not waited for, nothing is raised.
    """
    if len(codebooks) == 1:
        return search_flat_fastest(latents, codebooks[0][0]).unsqueeze(0)
    return Beam(width, coarse_weight)(latents, codebooks).paths
