"""The loss of residual quantization, whether its codebooks are linked or not; of one level, that of VQ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks


def residual_losses(
    latents: Tensor, levels: Sequence[tuple[LevelCodebooks, Tensor]], beta: float, level_betas: Sequence[float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the chosen codewords, and the terms of docs/method.md after the reconstruction error.

    The residual is of the encoder's own output minus detached codewords, never of a straight-through tensor: so
    every level's commitment reaches the encoder, and no level's reaches another level's codewords.

    Args:
        latents: (N, D), r_0.
        levels: of each level its codebook and the codewords that were chosen, (N,) int64.
        beta: weight of the commitment to the sum of the codewords.
        level_betas: weight of the commitment of each level's residual; a term of weight 0 is left out. None: the terms
            of the sum alone, as in VQ (van den Oord et al. 2017, equation 3).

    Returns:
        z_q (N, D), and the terms by name; each a scalar, summed over the latents.
    """
    residual, quantized = latents, torch.zeros_like(latents)
    losses: dict[str, Tensor] = {}
    for level, (codebook, chosen) in enumerate(levels, start=1):
        codeword = codebook.lookup(chosen)
        loss = codebook.codebook_loss(residual, codeword)
        if loss is not None and level_betas:
            losses[f"codebook_{level}"] = loss
        quantized = quantized + codeword
        residual = residual - codeword.detach()
        if level_betas and level_betas[level - 1]:
            error = vq.squared_error(residual, torch.zeros_like(residual))
            losses[f"commitment_{level}"] = level_betas[level - 1] * error
    if loss is not None:
        losses["codebook"] = vq.squared_error(latents.detach(), quantized)
    losses["commitment"] = beta * vq.squared_error(latents, quantized.detach())
    return quantized, losses
