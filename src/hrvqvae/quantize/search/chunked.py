"""The searches by few and large tensor operations, which suit a GPU.

The device is not waited for, so NaN is no error here: it goes on into the loss, which stops the training step.

Shapes: N vectors, D their width, L levels, m codewords a codebook, K codewords of a flat codebook.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from hrvqvae.quantize.search.reference import TreeSearch

_CHUNK_VALUES = 2**24  # of a gathered tensor (vectors, m, D): 64 MiB


def descend(residual: Tensor, quantized: Tensor, path: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One level for a chunk of vectors: (n, D), (n, D), (n,) and (m^(l-1), m, D) -> the same three, one level on."""
    code = (residual.unsqueeze(1) - codebook[path]).square().sum(-1).argmin(-1)
    path = path * codebook.shape[1] + code
    codeword = codebook.flatten(0, 1)[path]
    return residual - codeword, quantized + codeword, path


@cache
def _descend_compiled(
    device: torch.device,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One level as one compiled function; as it is, with a warning, where torch can't compile for that device.

    torch looks for its compilers, one for the GPU and one for C, when a function is first called: so a call is tried.
    """
    compiled = torch.compile(descend, dynamic=True)
    vectors, codebook = torch.zeros(3, 5, device=device), torch.zeros(2, 4, 5, device=device)
    try:
        compiled(vectors, vectors, torch.zeros(3, dtype=torch.long, device=device), codebook)
    except Exception as error:  # whatever the compilers raise
        reason = " ".join(str(error).split())[:160]
        warnings.warn(f"torch.compile does not work here ({reason}): the search is slower", stacklevel=2)
        return descend
    return compiled


def search_tree_chunked(latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
    """As `search_tree`, by tensor operations that suit a GPU: few and large, the gathered codewords in bounded chunks.

    On a GPU each level is one compiled function. The device is not waited for, so NaN is no error here: it goes on into
    `quantized`, from there into the loss, and the training step stops before its update.
    """
    step = _descend_compiled(latents.device) if latents.is_cuda else descend
    size, dim = codebooks[0].shape[1], latents.shape[1]
    paths, quantized = [], []
    for residual in torch.split(latents, max(1, _CHUNK_VALUES // (size * dim))):
        total, path, chosen = torch.zeros_like(residual), torch.zeros_like(residual[:, 0], dtype=torch.long), []
        for codebook in codebooks:
            residual, total, path = step(residual, total, path, codebook)
            chosen.append(path)
        paths.append(torch.stack(chosen))
        quantized.append(total + residual * 0)  # NaN and infinity stay visible
    return TreeSearch(torch.cat(paths, 1), torch.cat(quantized))


def nearest_by_products(latents: Tensor, codebook: Tensor, lengths: Tensor) -> Tensor:
    """argmin of |c|^2 - 2 r c: (n, D), (K, D) and the squared lengths of its codewords (K,) -> (n,) int64."""
    return torch.addmm(lengths, latents, codebook.T, alpha=-2).argmin(-1)


def search_flat_chunked(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `search_flat`, by matrix products of bounded chunks, for a GPU, where NaN is no error."""
    with torch.autocast(latents.device.type, enabled=False):  # which would round the products to bfloat16
        lengths = codebook.square().sum(-1)
        chunks = torch.split(latents, max(1, _CHUNK_VALUES // len(codebook)))
        return torch.cat([nearest_by_products(some, codebook, lengths) for some in chunks])
