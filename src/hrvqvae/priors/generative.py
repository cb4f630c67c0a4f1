"""Draw images from an autoencoder and its priors, on the CPU, in float32: samples, and completions of an image.

Each prior draws its levels given the codes of the coarser levels, from the coarsest to the finest level. Then the
autoencoder decodes the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from hrvqvae.config import Grid
from hrvqvae.config.registry import PRIORS
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, Priors
from hrvqvae.priors.sampling import SamplingParams, expand_labels
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

Sampler = Callable[..., None]
"""Draws the codes that are not kept; arguments as in `sampling.sample_plain`."""


def sample_cached(prior: Prior, *arguments: Any) -> None:
    """Draw codes with the sampler that is registered for the prior's network."""
    resolve_name(PRIORS.get(prior.config.kind).sampler)(prior, *arguments)


@dataclass(frozen=True)
class KeptCodes:
    """Codes to keep while the other codes are drawn.

    Attributes:
        codes: (B, H_l, W_l) int64 of each level, or (1, H_l, W_l) for all B images.
        masks: (H_l, W_l) bool of each level, true where the codes are kept.
    """

    codes: Codes
    masks: tuple[Tensor, ...]


def draw_labels(class_counts: Sequence[int], seed: int, indices: Sequence[int]) -> Tensor:
    """Draw the classes (B,) int64 of samples, with the frequencies of the classes among the training images."""
    cumulative = np.cumsum(class_counts) / np.sum(class_counts)
    labels = [int(np.searchsorted(cumulative, _create_rng(seed, index).random(), side="right")) for index in indices]
    return torch.tensor(labels, dtype=torch.long)


def _create_rng(seed: int, index: int) -> np.random.Generator:
    """Create the random generator of a sample from the seed and the index of the sample."""
    return np.random.default_rng((seed, index))


def check_sampling_params(priors: Sequence[Prior], params: SamplingParams) -> None:
    """Check the parameters for every level of the priors. Raises InputError as `SamplingParams.check`."""
    for prior in priors:
        for level in prior.levels:
            params.check(level)


def sample_codes(
    priors: Sequence[Prior], codeword_indices: Callable[[Codes], tuple[Tensor, ...]], indices: Sequence[int], *,
    seed: int, label: Tensor | None, params: SamplingParams, kept: KeptCodes | None = None,
    sampler: Sampler = sample_cached,
) -> Codes:  # fmt: skip
    """Draw the codes (B, H_l, W_l) int64 of the priors' levels, prior after prior.

    Raises InputError if a parameter or a label is out of range, a label is missing, or kept codes have another grid.

    Args:
        priors: on the CPU; they cover the levels in order, from the coarsest.
        codeword_indices: `Autoencoder.codeword_indices`.
        indices: indices of the samples. A sample depends on its index and the seed, not on the batch.
        label: (B,) classes, None if the priors have no classes.
        kept: codes to keep; levels without a prior are ignored.
    """
    check_sampling_params(priors, params)
    levels = [level for prior in priors for level in prior.levels]
    positions = [level.grid[0] * level.grid[1] for level in levels]
    draws = []
    for index in indices:
        rng = _create_rng(seed, index)
        rng.random()  # skip the draw of the class
        draws.append(rng.random(sum(positions)))
    uniforms = torch.from_numpy(np.stack(draws)).split(positions, dim=1)  # type: ignore[no-untyped-call]
    shapes = [(len(indices), *level.grid) for level in levels]
    codes, masks = ([torch.zeros(shape, dtype=kind) for shape in shapes] for kind in (torch.long, torch.bool))
    if kept is not None:
        by_level = zip(levels, codes, kept.codes, masks, kept.masks, strict=False)
        for level, level_codes, kept_codes, level_mask, kept_mask in by_level:
            if kept_codes.shape[1:] != level.grid:
                raise InputError(
                    f"level {level.index + 1} has codes {tuple(kept_codes.shape)}; its prior has {level.grid}"
                )
            level_codes.copy_(kept_codes)
            level_mask.copy_(kept_mask)
    level_uniforms = [values.view(shape).contiguous() for values, shape in zip(uniforms, shapes, strict=True)]
    for prior in priors:
        first = prior.level.index
        covered = slice(first, first + len(prior.levels))
        labels, mixing = expand_labels(prior.level, label, params.guidance)
        coarser = [level_indices.repeat(len(mixing), 1, 1) for level_indices in codeword_indices(tuple(codes[:first]))]
        sampler(prior, codes[covered], masks[covered], coarser, labels, level_uniforms[covered], mixing, params)
    return tuple(codes)


_BATCH_SIZE = 64


@dataclass(frozen=True)
class Sampled:
    """Sampled images with their classes and codes.

    Attributes:
        images: (B, C, Y, X) float32 in [0, 1].
        classes: the name of each image's class, "" if the priors have no classes.
        codes: (B, H_l, W_l) int64 of each drawn level.
    """

    images: Tensor
    classes: tuple[str, ...]
    codes: Codes


@torch.inference_mode()
def sample_images(
    model: Autoencoder, priors: Priors, size: Grid, count: int, *, seed: int = 0, class_name: str | int | None = None,
    params: SamplingParams | None = None, kept: KeptCodes | None = None, sampler: Sampler = sample_cached,
) -> Sampled:  # fmt: skip
    """Draw `count` images. Raises InputError if the class is unknown, or a value is out of range.

    Args:
        model: in evaluation mode.
        size: height and width of the images in pixels.
        class_name: name or index of the class of all images (None: classes with their frequencies in training).
        kept: codes that every sample keeps.
    """
    if count < 1:
        raise InputError(f"the number of samples is {count}; it must be at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be at least 0")
    class_index = None if class_name is None else priors.class_index(class_name)
    device = next(model.parameters()).device
    images, names, all_codes = [], list[str](), list[Codes]()
    starts = range(0, count, _BATCH_SIZE)
    num_levels = model.check_levels((params := params or SamplingParams()).levels)
    networks = [prior for prior in priors.networks if prior.level.index < num_levels]
    for start in tracked(starts, "sample", count, lambda start: min(_BATCH_SIZE, count - start)):
        indices = range(start, min(start + _BATCH_SIZE, count))
        label = None
        if priors.classes:
            label = draw_labels(priors.class_counts, seed, indices)
            label = label if class_index is None else torch.full_like(label, class_index)
            names += [priors.classes[label_index] for label_index in label.tolist()]
        codes = sample_codes(
            networks, model.codeword_indices, indices, seed=seed, label=label, params=params, kept=kept,
            sampler=sampler,
        )[:num_levels]  # fmt: skip
        images.append(model.decode(tuple(level.to(device) for level in codes), num_levels, size).cpu())
        all_codes.append(codes)
    codes = tuple(torch.cat(level) for level in zip(*all_codes, strict=True))
    return Sampled(torch.cat(images), tuple(names or [""] * count), codes)


def mask_kept_codes(keep: str | Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """Return the masks (H_l, W_l) of the codes that are kept on each grid.

    All codes of a position of the coarsest grid are kept or drawn together, so a kept code never has a drawn parent.
    Raises InputError if `keep` has another form, or keeps nothing or everything.

    Args:
        keep: `top`, `left`, a fraction of the rows from the top, or a mask (Y, X) bool. With a mask, a code is kept if
            the mask is true for all its pixels.
        grids: grid of each level.
    """
    rows, columns = min(grids)
    mask, option = torch.zeros(rows, columns, dtype=torch.bool), f"--keep {keep}"
    if isinstance(keep, Tensor):
        mask = adaptive_max_pool2d((~keep)[None].float(), (rows, columns))[0] == 0
        option = "the mask"
    elif keep == "left":
        mask[:, : columns // 2] = True
    else:
        try:
            fraction = 0.5 if keep == "top" else float(keep)
        except ValueError as error:
            raise InputError(
                f"--keep is {keep!r}; it must be top, left, a fraction between 0 and 1, or an image file"
            ) from error
        if not 0 < fraction < 1:
            raise InputError(f"--keep is {keep}; a fraction lies between 0 and 1")
        mask[: round(rows * fraction)] = True
    if mask.all() or not mask.any():
        raise InputError(
            f"{option} keeps {int(mask.sum())} of {mask.numel()} codes of a grid of {rows} rows; keep some, not all"
        )
    return tuple(mask.repeat_interleave(h // rows, 0).repeat_interleave(w // columns, 1) for h, w in grids)
