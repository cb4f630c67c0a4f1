"""The plain sampler: the whole network anew for every code. The reference that the cached ones must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.priors.base import Prior
from hrvqvae.priors.guidance import guidance_of
from hrvqvae.priors.sampling_params import NO_CODE, SamplingParams, draw_code, no_distribution


@torch.inference_mode()
def sample_plain(
    prior: Prior, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None,
    uniforms: Sequence[Tensor], draw: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, in raster order, and level after level at a position.

    Args:
        prior: in evaluation mode.
        codes: (B, H, W) int64 of each level that it covers: known ones are kept; what stands at the others does not
            matter. On the prior's device, as are `coarser` and `label`.
        known: (B, H, W) bool of each, on the CPU, where codes are drawn, as are `uniforms`.
        coarser: paths of the levels that are coarser than these.
        label: (B,) or None.
        uniforms: (B, H, W) float64 in [0, 1) of each, one for each draw.

    Raises:
        InputError: guidance that the prior can't give.
        NonFiniteError: a logit is NaN or infinite; the position is named.
    """
    batch, height, width = codes[0].shape
    guidance = guidance_of(prior.level, label, draw)
    seen = [guidance.each(paths) for paths in coarser]
    for row in range(height):
        for column in range(width):
            for index, level in enumerate(prior.levels):
                every = prior.level_logits([guidance.each(one) for one in codes], seen, guidance.label)[index]
                logits = guidance.mixed(every[:, :, row, column].cpu()).numpy()
                drawn = codes[index][:, row, column].tolist()
                for image in range(batch):
                    if not known[index][image, row, column]:
                        uniform = float(uniforms[index][image, row, column])
                        code = draw_code(logits[image], uniform, *draw.values())
                        if code == NO_CODE:
                            raise no_distribution(level.number, row, column)
                        drawn[image] = code
                codes[index][:, row, column] = torch.tensor(drawn, device=codes[index].device)
