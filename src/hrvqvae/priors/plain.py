"""The plain sampler: the whole network anew for every position. The reference that the cached ones must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.priors.base import Prior
from hrvqvae.priors.draw import Draw, draw_code


@torch.inference_mode()
def sample_plain(
    prior: Prior, codes: Tensor, known: Tensor, coarser: Sequence[Tensor], label: Tensor | None, uniforms: Tensor,
    draw: Draw,
) -> None:  # fmt: skip
    """Fill in the codes (B, H, W) int64 that are not known, in raster order; arguments as every sampler's.

    Args:
        prior: in evaluation mode.
        codes: known ones are kept; what stands at the others does not matter.
        known: (B, H, W) bool.
        coarser: paths of the coarser levels.
        label: (B,) or None.
        uniforms: (B, H, W) float64 in [0, 1), one for each draw.
    """
    batch, height, width = codes.shape
    for row in range(height):
        for column in range(width):
            logits = prior.logits(codes, coarser, label)[:, :, row, column].float().numpy()
            for image in range(batch):
                if not known[image, row, column]:
                    uniform = float(uniforms[image, row, column])
                    codes[image, row, column] = draw_code(logits[image], uniform, *draw.values())
