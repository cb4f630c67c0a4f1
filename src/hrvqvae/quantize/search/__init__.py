"""Find the nearest codewords through several levels, by a greedy search or by a beam.

The greedy search of the paper takes the nearest child at each level. It need not find the nearest leaf, since a farther
codeword may have better children. A beam keeps the `width` branches of the least cost at each level. A branch is a
choice of one codeword per level so far, and its cost after level l is

    ||r_l||^2 + coarse_weight * (||r_1||^2 + ... + ||r_{l-1}||^2)

A small coarse weight keeps prefixes of the levels good (docs/method.md). A beam of width 1 is the greedy search, and a
beam as wide as there are branches before the last level finds the least cost of all leaves.

Two forms give the same results: `compiled` runs on a CPU, `tensors` on a GPU and in graphs. Of equal costs the branch
with the cheaper parent wins, then the branch with the lower child.

Shapes: N vectors of width D, L levels; the codebooks of a level are (num_books, m, D). A level has one codebook if it
is not linked to the coarser level, and otherwise a codebook for each codeword of the coarser level. If these share
codebooks, a table (K,) int64 holds the codebook of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tables = Sequence[Tensor | None]
Search = Callable[..., Tensor]
"""A search takes vectors (N, D), the codebooks of L levels and `tables`, and returns indices (L, N) int64."""


def search(
    latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0, tables: Tables = ()
) -> Tensor:
    """Search on the vectors' device; return indices (L, N).

    Args:
        latents: (N, D) float32.
        codebooks: codebooks of the levels to search, on the same device.
        width: number of branches kept at each level.
        coarse_weight: weight of the squared residuals of all levels but the last.
        tables: the table of each level, or None; () for none at all.

    Raises:
        NonFiniteError: A latent or a codeword is NaN or infinite. On a GPU and in graphs nothing is raised; NaN
            reaches the loss, which stops the training.
    """
    if latents.device.type != "cpu" or torch.compiler.is_compiling():
        from hrvqvae.quantize.search.tensors import search_tensors

        return search_tensors(latents, codebooks, width, coarse_weight, tables)
    from hrvqvae.quantize.search.compiled import search_compiled  # numba takes most of a second

    return search_compiled(latents, codebooks, width, coarse_weight, tables)
