"""How the error of a decoded image answers to its codewords: gradient and curvature.

Convolutions are in bfloat16 where the processor or GPU multiplies it: an error of 2% in a gradient changes no choice
that matters, and takes half of the time.

Shapes: B images, (H, W) positions, D channels of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.utils.device import computes_bf16

_PROJECTIONS = 2  # for the curvature


@dataclass(frozen=True)
class Decoding:
    """The decoder of the codewords of so many levels."""

    model: SingleGridAutoencoder
    levels: int

    def __call__(self, vectors: Tensor, size: Grid) -> Tensor:
        """(B, H, W, D) codewords -> (B, C, Y, X) on the scale [0, 1], not clamped; size as for `Autoencoder.decode`."""
        fewer = self.levels < self.model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self.model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def gradient(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Of the squared error of each image (B, C, Y, X), to its codewords (B, H, W, D)."""
        at, decoded = self._decoded(vectors, unit)
        (back,) = torch.autograd.grad((decoded.clamp(0, 1) - unit).square().sum(), at)
        return back

    @torch.enable_grad()
    def curvature(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """The mean of J^T J over the positions of each image: (B, D, D). An image's does not depend on the others."""
        at, decoded = self._decoded(vectors, unit)
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for number in range(_PROJECTIONS):
            direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
            (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=number < _PROJECTIONS - 1)
            rows = back.flatten(1, 2)
            total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decoded(self, vectors: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The codewords, and what is decoded from them."""
        at = vectors.detach().requires_grad_()
        with torch.autocast(at.device.type, torch.bfloat16, enabled=computes_bf16(at.device)):
            return at, self(at, (unit.shape[-2], unit.shape[-1]))
