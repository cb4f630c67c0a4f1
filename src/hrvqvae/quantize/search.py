"""Which codeword is nearest: the plain searches, their signatures, and the choice of the fastest with the same answers.

Shapes: N vectors, D their width, L levels, m codewords a codebook, K codewords of a flat codebook. Ties go to the
lowest index everywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hrvqvae.errors import NonFiniteError


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

_CHUNK_VALUES = 2**24  # of a gathered tensor (vectors, m, D): 64 MiB


def require_finite(latents: Tensor) -> None:
    """Raises NonFiniteError with the count where a latent is NaN or infinite: it has no nearest codeword."""
    finite = torch.isfinite(latents)
    if not finite.all():
        bad = int((~finite).sum())
        raise NonFiniteError(f"latents: {bad} of {latents.numel()} values are NaN or infinite")


def search_tree(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """k_l = argmin over the m codewords c of codebook p_{l-1} of ||r_{l-1} - c||^2, level by level.

    The plain reference. It goes through the m children one after the other, so that nothing larger than (N, D) exists.

    Args:
        latents: (N, D) float32, r_0.
        codebooks: level l's at index l - 1, (m^(l-1), m, D).

    Raises:
        NonFiniteError: a latent is NaN or infinite.
    """
    require_finite(latents)
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


def _descend(residual: Tensor, quantized: Tensor, path: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One level for a chunk of vectors: (n, D), (n, D), (n,) and (m^(l-1), m, D) -> the same three, one level on."""
    code = (residual.unsqueeze(1) - codebook[path]).square().sum(-1).argmin(-1)
    path = path * codebook.shape[1] + code
    codeword = codebook.flatten(0, 1)[path]
    return residual - codeword, quantized + codeword, path


@cache
def _descend_compiled() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_descend, dynamic=True)


def search_tree_chunked(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`, by tensor operations that suit a GPU: few and large, the gathered codewords in bounded chunks.

    On a GPU each level is one compiled function. The device is not waited for, so NaN is no error here: it goes on into
    `quantized`, from there into the loss, and the training step stops before its update.
    """
    descend = _descend_compiled() if latents.is_cuda else _descend
    size, dim = codebooks[0].shape[1], latents.shape[1]
    paths, quantized = [], []
    for residual in torch.split(latents, max(1, _CHUNK_VALUES // (size * dim))):
        total, path, chosen = torch.zeros_like(residual), torch.zeros_like(residual[:, 0], dtype=torch.long), []
        for codebook in codebooks:
            residual, total, path = descend(residual, total, path, codebook)
            chosen.append(path)
        paths.append(torch.stack(chosen))
        quantized.append(total + residual * 0)  # NaN and infinity stay visible
    return TreeSearch(torch.cat(paths, 1), torch.cat(quantized))


def search_flat(latents: Tensor, codebook: Tensor) -> Tensor:
    """Nearest of K codewords: (N, D) and (K, D) -> (N,) int64. The plain reference, codeword by codeword.

    Raises:
        NonFiniteError: a latent is NaN or infinite.
    """
    return search_tree(latents, [codebook.unsqueeze(0)]).paths[0]


def search_flat_chunked(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`, by matrix products of bounded chunks, for a GPU, where NaN is no error."""
    lengths = codebook.square().sum(-1)
    chunks = torch.split(latents, max(1, _CHUNK_VALUES // len(codebook)))
    return torch.cat([torch.addmm(lengths, some, codebook.T, alpha=-2).argmin(-1) for some in chunks])


def search_flat_fastest(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`: compiled on the CPU (where numba is installed), chunked on a GPU."""
    if latents.device.type != "cpu":
        return search_flat_chunked(latents, codebook)
    if _compiled_is_there():
        from hrvqvae.quantize.compiled import search_flat_compiled

        return search_flat_compiled(latents, codebook)
    return search_flat(latents, codebook)


@cache
def _compiled_is_there() -> bool:
    return importlib.util.find_spec("numba") is not None


def search_tree_fastest(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`: compiled on the CPU (where numba is installed), chunked on a GPU."""
    if latents.device.type != "cpu":
        return search_tree_chunked(latents, codebooks)
    if _compiled_is_there():
        from hrvqvae.quantize.compiled import search_tree_compiled

        return search_tree_compiled(latents, codebooks)
    return search_tree(latents, codebooks)
