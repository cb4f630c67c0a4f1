"""Draw new images from an autoencoder and its priors, on the CPU, in float32: samples, and completions of an image.

The first prior draws its levels, the next prior draws its levels given those, and so on. Then the codes are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from hrvqvae.config import Grid
from hrvqvae.config.registry import PRIORS, imported
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, Priors
from hrvqvae.priors.sampling import SamplingParams, guided
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

Sampler = Callable[..., None]
"""Draws the codes that are not known; arguments as in `sampling.sample_plain`."""


def sample_cached(prior: Prior, *arguments: Any) -> None:
    """Draw codes with the sampler that is registered for the prior's network."""
    imported(PRIORS.get(prior.config.kind).sampler)(prior, *arguments)


@dataclass(frozen=True)
class KnownCodes:
    """Codes of B images that are kept instead of drawn.

    Attributes:
        codes: (B, H_l, W_l) int64 of each level, or (1, H_l, W_l) for all images.
        where: (H_l, W_l) bool of each level, true where the codes are kept.
    """

    codes: Codes
    where: tuple[Tensor, ...]


def draw_labels(class_counts: Sequence[int], seed: int, indices: Sequence[int]) -> Tensor:
    """Return a class (B,) int64 for each sample, as often as among the training images."""
    borders = np.cumsum(class_counts) / np.sum(class_counts)
    drawn = [int(np.searchsorted(borders, _generator(seed, index).random(), side="right")) for index in indices]
    return torch.tensor(drawn, dtype=torch.long)


def _generator(seed: int, index: int) -> np.random.Generator:
    """Return the generator of a sample, whose draws depend on (seed, index) alone, not on its batch."""
    return np.random.default_rng((seed, index))


def check_sampling_params(priors: Sequence[Prior], params: SamplingParams) -> None:
    """Check parameters for all levels of the priors. Raises InputError as `SamplingParams.check`."""
    for prior in priors:
        for level in prior.levels:
            params.check(level)


def sample_codes(
    priors: Sequence[Prior],
    codeword_indices: Callable[[Codes], tuple[Tensor, ...]],
    indices: Sequence[int],
    *,
    seed: int,
    label: Tensor | None,
    params: SamplingParams,
    known: KnownCodes | None = None,
    sampler: Sampler = sample_cached,
) -> Codes:
    """Draw the codes (B, H_l, W_l) int64 of the priors' levels, prior after prior.

    Args:
        priors: that cover the levels from the coarsest on, in order, on the CPU.
        codeword_indices: returns the codeword indices of codes (`Autoencoder.codeword_indices`).
        indices: of the samples; a sample is the same in every batch.
        label: (B,) classes, None if the priors have none.
        known: codes that are kept, of these levels and perhaps of finer ones.

    Raises:
        InputError: A parameter or a label is out of range, or a label is missing.
    """
    check_sampling_params(priors, params)
    levels = [level for prior in priors for level in prior.levels]
    positions = [level.grid[0] * level.grid[1] for level in levels]
    drawn = []
    for index in indices:
        generator = _generator(seed, index)
        generator.random()  # the class
        drawn.append(generator.random(sum(positions)))
    uniforms = torch.from_numpy(np.stack(drawn)).split(positions, dim=1)  # type: ignore[no-untyped-call]
    shapes = [(len(indices), *level.grid) for level in levels]
    codes, kept = ([torch.zeros(shape, dtype=kind) for shape in shapes] for kind in (torch.long, torch.bool))
    if known is not None:
        parts = zip(levels, codes, known.codes, kept, known.where, strict=False)
        for level, level_codes, known_codes, level_kept, where in parts:
            if known_codes.shape[1:] != level.grid:
                raise InputError(
                    f"level {level.number} has codes {tuple(known_codes.shape)}; its prior has {level.grid}"
                )
            level_codes.copy_(known_codes)
            level_kept.copy_(where)
    level_uniforms = [values.view(shape).contiguous() for values, shape in zip(uniforms, shapes, strict=True)]
    for prior in priors:
        first = prior.level.number - 1
        covered = slice(first, first + len(prior.levels))
        labels, mixing = guided(prior.level, label, params.guidance)
        coarser = [level_indices.repeat(len(mixing), 1, 1) for level_indices in codeword_indices(tuple(codes[:first]))]
        sampler(prior, codes[covered], kept[covered], coarser, labels, level_uniforms[covered], mixing, params)
    return tuple(codes)


_BATCH = 64


@dataclass(frozen=True)
class Sampled:
    """Samples.

    Attributes:
        images: (B, C, Y, X) float32 in [0, 1].
        classes: the class of each image, "" without classes.
        codes: (B, H_l, W_l) int64 of each level that was drawn.
    """

    images: Tensor
    classes: tuple[str, ...]
    codes: Codes


@torch.inference_mode()
def sample_images(
    model: Autoencoder, priors: Priors, size: Grid, count: int, *, seed: int = 0, class_name: str | int | None = None,
    params: SamplingParams | None = None, known: KnownCodes | None = None, sampler: Sampler = sample_cached,
) -> Sampled:  # fmt: skip
    """Draw `count` images; without a class, classes come as often as in training.

    Args:
        model: in evaluation mode.
        size: Height and width of the images in pixels.
        class_name: Name or index of a class.
        known: codes of one image that each sample keeps.

    Raises:
        InputError: An unknown class, or a value out of range.
    """
    if count < 1:
        raise InputError(f"the number of samples is {count}; it must be at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be at least 0")
    class_index = None if class_name is None else priors.class_number(class_name)
    device = next(model.parameters()).device
    images, names, drawn = [], list[str](), list[Codes]()
    starts = range(0, count, _BATCH)
    used = model.check_levels((params := params or SamplingParams()).levels)
    networks = [prior for prior in priors.networks if prior.level.number <= used]
    for start in tracked(starts, "sample", count, lambda start: min(_BATCH, count - start)):
        indices = range(start, min(start + _BATCH, count))
        label = None
        if priors.classes:
            label = draw_labels(priors.class_counts, seed, indices)
            label = label if class_index is None else torch.full_like(label, class_index)
            names += [priors.classes[label_index] for label_index in label.tolist()]
        codes = sample_codes(
            networks, model.codeword_indices, indices, seed=seed, label=label, params=params, known=known,
            sampler=sampler,
        )[:used]  # fmt: skip
        images.append(model.decode(tuple(level.to(device) for level in codes), used, size).cpu())
        drawn.append(codes)
    together = tuple(torch.cat(level) for level in zip(*drawn, strict=True))
    return Sampled(torch.cat(images), tuple(names or [""] * count), together)


def kept_parts(keep: str | Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """Return which codes (H_l, W_l) of each grid are kept.

    The border lies between positions of the coarsest grid, so that no code is kept whose parent is drawn anew. Codes
    are drawn in raster order, and do not see what is kept after them.

    Args:
        keep: `top`, `left`, a fraction of the rows from the top, or a mask (Y, X), which keeps a code if it keeps all
            of its pixels.
        grids: of the levels.

    Raises:
        InputError: `keep` is none of these, or keeps nothing or everything.
    """
    rows, columns = min(grids)
    where, named = torch.zeros(rows, columns, dtype=torch.bool), f"--keep {keep}"
    if isinstance(keep, Tensor):
        where = adaptive_max_pool2d((~keep)[None].float(), (rows, columns))[0] == 0
        named = "the mask"
    elif keep == "left":
        where[:, : columns // 2] = True
    else:
        try:
            share = 0.5 if keep == "top" else float(keep)
        except ValueError as error:
            raise InputError(
                f"--keep is {keep!r}; it must be top, left, a fraction between 0 and 1, or an image file"
            ) from error
        if not 0 < share < 1:
            raise InputError(f"--keep is {keep}; a fraction lies between 0 and 1")
        where[: round(rows * share)] = True
    if where.all() or not where.any():
        raise InputError(
            f"{named} keeps {int(where.sum())} of {where.numel()} codes of a grid of {rows} rows; keep some, not all"
        )
    return tuple(where.repeat_interleave(h // rows, 0).repeat_interleave(w // columns, 1) for h, w in grids)
