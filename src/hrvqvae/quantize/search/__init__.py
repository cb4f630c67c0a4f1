"""Find the nearest codewords through several levels: the greedy search, and a beam of several paths.

The greedy search, which the paper has, takes the nearest child at each level. The leaf that it ends in need not be the
nearest of all, since a codeword that is a little farther may have better children. A beam keeps the `width` paths of
the least cost at each level; one as wide as there are paths before the last level finds the leaf of the least cost.

    cost of a path = ||r_L||^2 + coarse_weight * (||r_1||^2 + ... + ||r_{L-1}||^2)

With a coarse weight of 0 a beam gives up the coarser levels for the sake of the finest; a little weight keeps prefixes
of the levels good (docs/method.md). A beam of one path is the greedy search, and one level is a flat codebook.

There are two forms with the same answers: `compiled` runs on a CPU, `tensors` on a GPU and in graphs. Of equal costs
the path is taken whose parent costs less, then the path with the lower child.

Shapes: N vectors of width D, L levels; a level's codebooks are (num_books, m, D). A level with one codebook is not
linked to the level before it; any other level has a codebook for each codeword of the level before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Search = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""From vectors (N, D) and the codebooks of L levels to the index of a codeword in each level: (L, N) int64."""


def search(latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0) -> Tensor:
    """Search by the form that is fastest on the vectors' device; return indices (L, N).

    Args:
        latents: (N, D) float32.
        codebooks: codebooks of the levels to search, on the same device.
        width: paths that are kept at each level, as far as there are so many.
        coarse_weight: weight of the squared residuals of all levels but the last.

    Raises:
        NonFiniteError: a latent or a codeword is NaN or infinite. A GPU is not waited for, and graphs hold no check:
            NaN goes into the loss there, which stops the training step.
    """
    if latents.device.type != "cpu" or torch.compiler.is_compiling():
        from hrvqvae.quantize.search.tensors import search_tensors

        return search_tensors(latents, codebooks, width, coarse_weight)
    from hrvqvae.quantize.search.compiled import search_compiled  # numba takes most of a second

    return search_compiled(latents, codebooks, width, coarse_weight)
