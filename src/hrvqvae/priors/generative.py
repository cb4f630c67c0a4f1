"""New images from an autoencoder and its priors, on the CPU, in float32: samples, and completions of a given image.

The levels of the first prior are drawn, then those of the next given them, and so on; then the codes are decoded.
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
"""Fills in codes that are not known; arguments as `sampling.sample_plain`."""


def sample_cached(prior: Prior, *arguments: Any) -> None:
    """The sampler that the prior's network is registered with."""
    imported(PRIORS.get(prior.config.kind).sampler)(prior, *arguments)


@dataclass(frozen=True)
class KnownCodes:
    """What is given of the codes of B images.

    Attributes:
        codes: (B, H_l, W_l) int64 of each level; (1, H_l, W_l) where all images have the same.
        where: (H_l, W_l) bool of each level: the codes that are kept.
    """

    codes: Codes
    where: tuple[Tensor, ...]


def draw_labels(class_counts: Sequence[int], seed: int, numbers: Sequence[int]) -> Tensor:
    """A class for each sample of those numbers, as often as among the training images: (B,) int64."""
    borders = np.cumsum(class_counts) / np.sum(class_counts)
    drawn = [int(np.searchsorted(borders, _generator(seed, number).random(), side="right")) for number in numbers]
    return torch.tensor(drawn, dtype=torch.long)


def _generator(seed: int, number: int) -> np.random.Generator:
    """Draws of a sample depend on (seed, its number) alone: not on the batch that it comes in."""
    return np.random.default_rng((seed, number))


def check_sampling_params(priors: Sequence[Prior], params: SamplingParams) -> None:
    """Raises InputError where the codes of these priors can't be drawn so: too large a top-k, guidance of none."""
    for prior in priors:
        for level in prior.levels:
            params.check(level)


def sample_codes(
    priors: Sequence[Prior],
    paths: Callable[[Codes], tuple[Tensor, ...]],
    numbers: Sequence[int],
    *,
    seed: int,
    label: Tensor | None,
    params: SamplingParams,
    known: KnownCodes | None = None,
    sampler: Sampler = sample_cached,
) -> Codes:
    """Draw codes of the priors' levels, prior after prior: of each level (B, H_l, W_l) int64.

    Args:
        priors: which cover the levels from the coarsest on, in order, on the CPU.
        paths: codes of the coarser levels -> their paths (`Autoencoder.codeword_indices`).
        numbers: of the samples; a sample is the same in every batch.
        label: (B,) classes, None where the priors know none.
        known: codes that are kept instead of drawn, of these levels and perhaps of finer ones.

    Raises:
        InputError: as `check_sampling_params`, or a label is missing or out of range.
    """
    check_sampling_params(priors, params)
    levels = [level for prior in priors for level in prior.levels]
    positions = [level.grid[0] * level.grid[1] for level in levels]
    drawn = []
    for number in numbers:
        generator = _generator(seed, number)
        generator.random()  # the class
        drawn.append(generator.random(sum(positions)))
    uniforms = torch.from_numpy(np.stack(drawn)).split(positions, dim=1)  # type: ignore[no-untyped-call]
    shapes = [(len(numbers), *level.grid) for level in levels]
    codes, kept = ([torch.zeros(shape, dtype=kind) for shape in shapes] for kind in (torch.long, torch.bool))
    if known is not None:
        for level, own, given, known_here, where in zip(levels, codes, known.codes, kept, known.where, strict=False):
            if given.shape[1:] != level.grid:
                raise InputError(f"level {level.number} has codes {tuple(given.shape)}; its prior has {level.grid}")
            own.copy_(given)
            known_here.copy_(where)
    chances = [some.view(shape).contiguous() for some, shape in zip(uniforms, shapes, strict=True)]
    for prior in priors:
        first = prior.level.number - 1
        some = slice(first, first + len(prior.levels))
        labels, mixing = guided(prior.level, label, params.guidance)
        coarser = [one.repeat(len(mixing), 1, 1) for one in paths(tuple(codes[:first]))]
        sampler(prior, codes[some], kept[some], coarser, labels, chances[some], mixing, params)
    return tuple(codes)


_BATCH = 64


@dataclass(frozen=True)
class Sampled:
    """Samples.

    Attributes:
        images: (B, C, Y, X) float32 in [0, 1].
        classes: the class of each, "" where there are none.
        codes: of each level that was drawn, (B, H_l, W_l) int64.
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
        size: height and width of the images in pixels.
        class_name: name or number of a class.
        known: codes of one image that each sample keeps.

    Raises:
        InputError: an unknown class, a value out of range.
    """
    if count < 1:
        raise InputError(f"the number of samples is {count}; it must be at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be at least 0")
    number = None if class_name is None else priors.class_number(class_name)
    device = next(model.parameters()).device
    images, names, drawn = [], list[str](), list[Codes]()
    starts = range(0, count, _BATCH)
    used = model.check_levels((params := params or SamplingParams()).levels)
    networks = [prior for prior in priors.networks if prior.level.number <= used]
    for start in tracked(starts, "sample", count, lambda start: min(_BATCH, count - start)):
        numbers = range(start, min(start + _BATCH, count))
        label = None
        if priors.classes:
            label = draw_labels(priors.class_counts, seed, numbers)
            label = label if number is None else torch.full_like(label, number)
            names += [priors.classes[index] for index in label.tolist()]
        codes = sample_codes(
            networks, model.codeword_indices, numbers, seed=seed, label=label, params=params, known=known,
            sampler=sampler,
        )[:used]  # fmt: skip
        images.append(model.decode(tuple(one.to(device) for one in codes), used, size).cpu())
        drawn.append(codes)
    together = tuple(torch.cat(level) for level in zip(*drawn, strict=True))
    return Sampled(torch.cat(images), tuple(names or [""] * count), together)


def kept_parts(keep: str | Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """(H_l, W_l) bool of each grid: what `top`, `left`, a fraction of the rows from the top, or a mask (Y, X) keeps.

    The border is one of the coarsest grid's, so that no code is kept whose parent is drawn anew. Of a mask a code is
    kept where all of its pixels are. Codes are drawn in raster order, and don't see what is kept after them.

    Raises:
        InputError: it is none of these, or keeps nothing or everything.
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
