"""A beam over the levels of linked codebooks: a few paths are kept at each level, and the best one is taken.

The greedy search, which the paper has, takes the nearest child at each level. The leaf that it ends in need not be the
nearest of all, since a codeword that is a little farther may have better children. A beam keeps the `width` paths of
the least cost at each level; one as wide as the level before the last has codewords finds the leaf of the least cost.

    cost of a path = ||r_L||^2 + coarse_weight * (||r_1||^2 + ... + ||r_{L-1}||^2)

With a coarse weight of 0 a beam gives up the coarser levels for the sake of the finest; a little weight keeps prefixes
of the levels good (docs/method.md).

Shapes: N vectors, D their width, L levels, m codewords a codebook, W the width of the beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.quantize.search.fastest import search_tree_fastest
from hrvqvae.quantize.search.reference import TreeSearch, require_finite
from hrvqvae.utils.errors import InputError

_CHUNK_VALUES = 2**24  # of a gathered tensor (vectors, W, m, D): 64 MiB


@dataclass(frozen=True)
class Beam:
    """A search with a beam: a `TreeSearcher`.

    Attributes:
        width: W, paths that are kept at each level, as far as there are so many; 1 is the greedy search.
        coarse_weight: weight of the squared residuals of all levels but the last one that is searched.

    Raises:
        InputError: no width, or a weight below 0.
    """

    width: int
    coarse_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"the width of a beam is {self.width}; it must be at least 1")
        if not self.coarse_weight >= 0:
            raise InputError(f"the weight of coarser residuals is {self.coarse_weight}; it must be at least 0")

    def __call__(self, latents: Tensor, codebooks: Sequence[Tensor]) -> TreeSearch:
        """Search (N, D) latents; codebooks as `search_tree` takes them, of all levels or of the first ones.

        Raises:
            NonFiniteError: a latent or a codeword is NaN or infinite.
        """
        width = min(self.width, len(codebooks[-1]))  # the paths that there are before the last level
        if width == 1:  # with one path the weight has no choice to make
            return search_tree_fastest(latents, codebooks)
        if latents.device.type != "cpu" or torch.compiler.is_compiling():
            return search_beam(latents, codebooks, width, self.coarse_weight)
        from hrvqvae.quantize.search.compiled_beam import search_beam_compiled

        return search_beam_compiled(latents, codebooks, width, self.coarse_weight)


def search_beam(latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float) -> TreeSearch:
    """The search with a beam by tensor operations: the plain reference, and what runs on a GPU and in graphs.

    Of paths of the same cost the one is taken whose parent costs less, then the one with the lower child.

    Raises:
        NonFiniteError: a latent or a codeword is NaN or infinite; on a GPU, which is not waited for, NaN goes on into
            `quantized` instead.
    """
    if not latents.is_cuda:
        require_finite(latents, codebooks)
    size, dim = codebooks[0].shape[1], latents.shape[1]
    if torch.compiler.is_compiling():
        return TreeSearch(*_beam(latents, codebooks, width, coarse_weight))
    chunks = torch.split(latents, max(1, _CHUNK_VALUES // (width * size * dim)))
    found = [_beam(some, codebooks, width, coarse_weight) for some in chunks]
    paths, quantized = zip(*found, strict=True)
    return TreeSearch(torch.cat(paths, 1), torch.cat(quantized))


def _least(cost: Tensor, number: int) -> Tensor:
    """Places of so many least values of each row, in order, the first of equals: (N, n) -> (N, number)."""
    if torch.compiler.is_compiling():  # graphs have no stable sort; of equals, which one is left to what runs them
        return cost.topk(number, dim=1, largest=False).indices
    return cost.sort(dim=1, stable=True).indices[:, :number]


def _beam(latents: Tensor, codebooks: Sequence[Tensor], width: int, coarse_weight: float) -> tuple[Tensor, Tensor]:
    """Paths (L, N) and z_q (N, D) of some vectors."""
    residual = latents.unsqueeze(1)  # (N, w, D), w paths so far
    path = torch.zeros_like(residual[..., 0], dtype=torch.long)  # (N, w)
    before = torch.zeros_like(residual[..., 0])  # (N, w), what the levels before add to the cost
    count, size = len(codebooks), codebooks[0].shape[1]
    for level, codebook in enumerate(codebooks, start=1):
        distance = (residual.unsqueeze(2) - codebook[path]).square().sum(-1)  # (N, w, m)
        earlier = before.unsqueeze(-1)
        cost = (distance + earlier).flatten(1)
        kept = _least(cost, min(width, cost.shape[1]) if level < count else 1)  # (N, w')
        parent = kept // size
        before = (coarse_weight * distance + earlier).flatten(1).gather(1, kept)
        path = path.gather(1, parent) * size + kept % size
        codeword = codebook.flatten(0, 1)[path]
        residual = residual.gather(1, parent.unsqueeze(-1).expand_as(codeword)) - codeword
    leaf = path[:, 0]
    paths = torch.stack([leaf // size ** (count - level) for level in range(1, count + 1)])
    quantized = latents * 0  # NaN and infinity stay visible
    for codebook, chosen in zip(codebooks, paths, strict=True):
        quantized = quantized + codebook.flatten(0, 1)[chosen]
    return paths, quantized
