"""The search as it is written down, which the others must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.utils.errors import NonFiniteError


def require_finite(latents: Tensor, codebooks: Sequence[Tensor]) -> None:
    """Raises NonFiniteError with the count where a latent or a codeword is NaN or infinite: nothing is nearest."""
    named = {"latents": latents} | {f"codebook of level {level}": one for level, one in enumerate(codebooks, start=1)}
    for name, values in named.items():
        finite = torch.isfinite(values)
        if not finite.all():
            raise NonFiniteError(f"{name}: {int((~finite).sum())} of {values.numel()} values are NaN or infinite")


def search_reference(
    latents: Tensor, codebooks: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0
) -> Tensor:
    """As `search`: at each level, the cost of every child of the paths that are kept, one child after the other."""
    require_finite(latents, codebooks)
    size, rows = codebooks[0].shape[1], torch.arange(len(latents), device=latents.device).unsqueeze(1)
    residuals = latents.unsqueeze(1)  # (N, w, D), of the w paths that are kept
    paths = torch.zeros_like(residuals[..., 0], dtype=torch.long)
    before = torch.zeros_like(residuals[..., 0])  # what the levels before add to the cost
    for level, codebook in enumerate(codebooks, start=1):
        distances = torch.stack(
            [
                (residuals[:, kept] - codebook[:, child][paths[:, kept]]).square().sum(-1)
                for kept in range(paths.shape[1])
                for child in range(size)
            ],
            dim=1,
        )  # (N, w * m)
        costs = distances + before.repeat_interleave(size, dim=1)
        number = min(width, costs.shape[1]) if level < len(codebooks) else 1
        best = costs.sort(dim=1, stable=True).indices[:, :number]  # of equals, the first
        parent, child = best // size, best % size
        before = before[rows, parent] + coarse_weight * distances[rows, best]
        paths = paths[rows, parent] * size + child
        residuals = residuals[rows, parent] - codebook.flatten(0, 1)[paths]
    leaf = paths[:, 0]
    return torch.stack([leaf // size**finer for finer in reversed(range(len(codebooks)))])
