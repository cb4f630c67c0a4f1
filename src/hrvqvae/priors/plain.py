"""The plain sampler: the whole network anew for every position. The reference that the cached ones must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.priors.base import Prior
from hrvqvae.priors.draw import NO_CODE, Draw, draw_code, no_distribution


@torch.inference_mode()
def sample_plain(
    prior: Prior, codes: Tensor, known: Tensor, coarser: Sequence[Tensor], label: Tensor | None, uniforms: Tensor,
    draw: Draw,
) -> None:  # fmt: skip
    """Fill in the codes (B, H, W) int64 that are not known, in raster order; arguments as every sampler's.

    Args:
        prior: in evaluation mode.
        codes: known ones are kept; what stands at the others does not matter. On the prior's device, as are `coarser`
            and `label`.
        known: (B, H, W) bool, on the CPU, where codes are drawn, as are `uniforms`.
        coarser: paths of the coarser levels.
        label: (B,) or None.
        uniforms: (B, H, W) float64 in [0, 1), one for each draw.

    Raises:
        NonFiniteError: a logit is NaN or infinite; the position is named.
    """
    batch, height, width = codes.shape
    for row in range(height):
        for column in range(width):
            logits = prior.logits(codes, coarser, label)[:, :, row, column].float().cpu().numpy()
            drawn = codes[:, row, column].tolist()
            for image in range(batch):
                if not known[image, row, column]:
                    uniform = float(uniforms[image, row, column])
                    code = draw_code(logits[image], uniform, *draw.values())
                    if code == NO_CODE:
                        raise no_distribution(prior.level.number, row, column)
                    drawn[image] = code
            codes[:, row, column] = torch.tensor(drawn, device=codes.device)
