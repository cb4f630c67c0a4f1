"""Which codeword is nearest: a plain reference, loops compiled for the CPU, tensor operations for a GPU.

Ties go to the lowest index everywhere.
"""

from hrvqvae.quantize.search.beam import Beam
from hrvqvae.quantize.search.fastest import search_flat_fastest, search_tree_fastest
from hrvqvae.quantize.search.reference import FlatSearcher, TreeSearch, TreeSearcher, search_flat, search_tree

__all__ = [
    "Beam",
    "FlatSearcher",
    "TreeSearch",
    "TreeSearcher",
    "search_flat",
    "search_flat_fastest",
    "search_tree",
    "search_tree_fastest",
]
