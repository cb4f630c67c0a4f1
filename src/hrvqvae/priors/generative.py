"""Draw the codes of samples and of completions of an image from priors, in float32.

Each prior draws its levels given the codes of the coarser levels, from the coarsest to the finest
level. `hrvqvae.model` decodes the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, cross_entropy

from hrvqvae.config import Grid
from hrvqvae.config.model import Geometry
from hrvqvae.priors.base import Prior
from hrvqvae.priors.sampling import SamplingParams, draw_positions
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True)
class KeptCodes:
    """Codes of an image to keep while the other codes are drawn."""

    codes: Codes  #: (1, H_l, W_l) int64 of each level
    masks: tuple[Tensor, ...]  #: (H_l, W_l) bool of each level, true where the codes are kept


def draw_labels(weights: Sequence[float], seed: int, indices: Sequence[int]) -> Tensor:
    """Draw the classes (B,) int64 of samples from the weights of the classes.

    The weights are the counts of the classes among the training images, or for a completion the
    result of `weigh_classes`.
    """
    cumulative = np.cumsum(weights) / np.sum(weights)
    uniforms = [np.random.default_rng((seed, index)).random() for index in indices]
    return torch.from_numpy(np.searchsorted(cumulative, uniforms, side="right"))


def sample_codes(
    priors: Sequence[Prior],
    codeword_indices: Callable[[Codes], tuple[Tensor, ...]],
    indices: Sequence[int],
    *,
    seed: int,
    label: Tensor | None,
    params: SamplingParams,
    kept: KeptCodes | None = None,
) -> Codes:
    """Draw the codes (B, H_l, W_l) int64 of all levels of the priors, the coarsest level first.

    The codes are drawn on the device of the priors and returned on the CPU.
    A sample depends on its index and the seed, not on the batch. Labels are (B,), None if the
    priors have no classes. Kept codes of levels without a prior are ignored. Raises InputError if a
    prior does not support guidance.
    """
    params.check(priors)
    levels = [level for prior in priors for level in prior.levels]
    device = next(priors[0].parameters()).device

    # (B, H_l, W_l) of each level: uniform numbers, codes, and whether they are kept
    draws = []
    for index in indices:
        rng = np.random.default_rng((seed, index))
        rng.random()  # skip the number that `draw_labels` takes
        draws.append([rng.random(level.grid) for level in levels])
    uniforms = [
        torch.from_numpy(np.stack(images)).to(device) for images in zip(*draws, strict=True)
    ]
    codes = [torch.zeros_like(level, dtype=torch.long) for level in uniforms]
    masks = [torch.zeros_like(level, dtype=torch.bool) for level in uniforms]
    if kept is not None:
        for index, mask in enumerate(kept.masks[: len(levels)]):
            codes[index].copy_(kept.codes[index])
            masks[index].copy_(mask)

    for prior in priors:
        first = prior.level.index
        covered = slice(first, first + len(prior.levels))
        draw_positions(
            prior,
            codes[covered],
            masks[covered],
            codeword_indices(tuple(codes[:first])),
            None if label is None else label.to(device),
            uniforms[covered],
            params,
        )
    return tuple(level_codes.cpu() for level_codes in codes)


@torch.inference_mode()
def weigh_classes(
    prior: Prior, class_counts: Sequence[int], kept: KeptCodes, *, seed: int = 0
) -> list[float]:
    """Return p(class | kept codes) of an image under the coarsest prior, by Bayes' rule.

    The codes that are not kept are drawn once per class. So p(kept codes | class) is exact if the
    kept codes come first in raster order; otherwise it is estimated without bias. The counts of the
    classes give p(class).
    """
    labels = torch.arange(len(class_counts), device="cpu")
    device = next(prior.parameters()).device
    codes = sample_codes(
        [prior],
        lambda _: (),
        labels.tolist(),
        seed=seed,
        label=labels,
        params=SamplingParams(),
        kept=kept,
    )
    scores = torch.tensor(class_counts, dtype=torch.float64, device="cpu").log()
    all_logits = prior.level_logits([level.to(device) for level in codes], [], labels.to(device))
    for logits, level_codes, mask in zip(all_logits, codes, kept.masks, strict=False):
        nats = cross_entropy(logits.cpu().double(), level_codes.cpu(), reduction="none")
        scores -= (nats * mask).sum((1, 2))
    return scores.softmax(0).tolist()


def paste_kept_part(
    images: Tensor, reconstructions: Tensor, kept: KeptCodes, geometry: Geometry
) -> Tensor:
    """Return images (B, C, Y, X) that show the reconstructions of all levels in the kept part."""
    start = geometry.margin // 2
    height, width = images.shape[-2:]
    mask = min(kept.masks, key=len)  # of the coarsest grid
    pixels = mask.repeat_interleave(geometry.unit, 0).repeat_interleave(geometry.unit, 1)
    pixels = pixels[start : start + height, start : start + width]
    return torch.where(pixels, reconstructions, images)


@dataclass(frozen=True)
class Sampled:
    """Sampled images with their classes and codes."""

    images: Tensor  #: (B, C, Y, X) float32 in [0, 1]
    classes: tuple[str, ...]  #: the name of each image's class, "" if the priors have no classes
    codes: Codes  #: (B, H_l, W_l) int64 of each drawn level


def mask_kept_codes(keep: float | str | Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """Return the masks (H_l, W_l) of the codes that are kept on each grid.

    All codes of a position of the coarsest grid are kept or drawn together, so a kept code never
    has a drawn parent. `keep` is a fraction of the rows from the top, as a number or as text, or a
    mask (Y, X) bool; a code is kept if the mask is true at all its pixels. Raises InputError if
    `keep` has another form.
    """
    rows, columns = min(grids)
    if isinstance(keep, Tensor):
        mask = adaptive_max_pool2d((~keep)[None].float(), (rows, columns))[0] == 0
    else:
        try:
            fraction = float(keep)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction < 1:
            forms = "a fraction between 0 and 1, or an image file"
            raise InputError(f"--keep is {keep}; it must be {forms}")
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        mask[: round(rows * fraction)] = True
    return tuple(
        mask.repeat_interleave(h // rows, 0).repeat_interleave(w // columns, 1) for h, w in grids
    )
