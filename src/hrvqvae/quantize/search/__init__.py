"""Find the nearest codewords through several levels, by a greedy search or by a beam.

The greedy search of the paper takes the nearest child at each level. It need not find the nearest
sum, since a farther codeword may have better children. A beam keeps the `width` branches of least
cost at each level. A branch is a choice of one codeword per level so far, and its cost after level
l is

    ||r_l||^2 + coarse_weight * (||r_1||^2 + ... + ||r_{l-1}||^2)

A beam of width 1 is the greedy search, and a beam as wide as there are branches before the last
level finds the least cost of all sums. Of equal costs the branch with the cheaper parent wins, then
the branch with the lower child. Two forms give the same results up to rounding: `compiled` runs on
a CPU, `tensors` on a GPU and in graphs.

Shapes: N vectors of width D, L levels; the codebooks of a level are (num_books, m, D). Codeword i
of the coarser level has the codebook i modulo num_books: its own, or the only one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def search(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    width: int = 1,
    coarse_weight: float = 0.0,
) -> Tensor:
    """Search on the vectors' device; return indices (L, N).

    Args:
        latents: (N, D) float32.
        codebooks: codebooks of the levels to search, on the same device.
        width: number of branches kept at each level.
        coarse_weight: weight of the squared residuals of all levels but the last.

    Raises:
        NonFiniteError: On a CPU, a latent is NaN or infinite, or all codewords are with which it is
            compared. Elsewhere such a latent makes the loss NaN.
    """
    if width == 1:  # the only branch has one coarser cost: leave it out, and its rounding
        coarse_weight = 0.0

    # Compiled loops read memory. While a graph is made there is none, nor behind a fake tensor or
    # one of a transform such as `torch.func.vmap`.
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.is_functorch_wrapped_tensor(latents)
        or type(latents) not in (Tensor, nn.Parameter)
        or latents.device.type != "cpu"
    ):
        from hrvqvae.quantize.search.tensors import search_tensors

        return search_tensors(latents, codebooks, width, coarse_weight)
    from hrvqvae.quantize.search.compiled import search_compiled  # numba takes most of a second

    return search_compiled(latents, codebooks, width, coarse_weight)
