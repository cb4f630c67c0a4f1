"""Which codeword is nearest: the plain searches, which the others must agree with, and their signatures.

Shapes: N vectors, D their width, L levels, m codewords a codebook, K codewords of a flat codebook. Ties go to the
lowest index everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.utils.errors import NonFiniteError


@dataclass(frozen=True)
class TreeSearch:
    """What a search of linked codebooks found.

    Attributes:
        paths: (L, N) int64; row l is p_l in [0, m^l), so the child index is p_l mod m.
        quantized: (N, D) float32, z_q = e_1 + ... + e_L.
    """

    paths: Tensor
    quantized: Tensor


TreeSearcher = Callable[[Tensor, Sequence[Tensor]], TreeSearch]
FlatSearcher = Callable[[Tensor, Tensor], Tensor]


def require_finite(latents: Tensor, codebooks: Sequence[Tensor]) -> None:
    """Raises NonFiniteError with the count where a latent or a codeword is NaN or infinite: nothing is nearest.

    Values are not known while a graph is traced, and are not looked at then.
    """
    if torch.compiler.is_compiling():
        return
    named = {"latents": latents} | {f"codebook of level {level}": one for level, one in enumerate(codebooks, start=1)}
    for name, values in named.items():
        finite = torch.isfinite(values)
        if not finite.all():
            raise NonFiniteError(f"{name}: {int((~finite).sum())} of {values.numel()} values are NaN or infinite")


def search_tree(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """k_l = argmin over the m codewords c of codebook p_{l-1} of ||r_{l-1} - c||^2, level by level.

    The plain reference. It goes through the m children one after the other, so that nothing larger than (N, D) exists.

    Args:
        latents: (N, D) float32, r_0.
        codebooks: level l's at index l - 1, (m^(l-1), m, D).

    Raises:
        NonFiniteError: a latent or a codeword is NaN or infinite.
    """
    require_finite(latents, codebooks)
    residual, quantized = latents, torch.zeros_like(latents)
    path = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    paths = []
    for codebook in codebooks:
        size = codebook.shape[1]
        nearest = torch.full_like(latents[:, 0], torch.inf)
        code = torch.zeros_like(path)
        for child in range(size):
            distance = (residual - codebook[:, child][path]).square().sum(-1)
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            code = torch.where(closer, child, code)
        path = path * size + code
        codeword = codebook.flatten(0, 1)[path]
        quantized = quantized + codeword
        residual = residual - codeword
        paths.append(path)
    return TreeSearch(torch.stack(paths), quantized)


def search_flat(latents: Tensor, codebook: Tensor) -> Tensor:
    """Nearest of K codewords: (N, D) and (K, D) -> (N,) int64. The plain reference, codeword by codeword.

    Raises:
        NonFiniteError: a latent or a codeword is NaN or infinite.
    """
    return search_tree(latents, [codebook.unsqueeze(0)]).paths[0]
