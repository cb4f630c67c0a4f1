"""New images from an autoencoder and its priors, on the CPU, in float32: samples, and completions of a given image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Priors
from hrvqvae.priors.hierarchy import KnownCodes, Sampler, draw_labels, sample_cached, sample_codes
from hrvqvae.priors.sampling_params import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

_BATCH = 64


@dataclass(frozen=True)
class Sampled:
    """Samples.

    Attributes:
        images: (B, C, Y, X) float32 in [0, 1].
        classes: the class of each, "" where there are none.
        codes: of each level, (B, H_l, W_l) int64.
    """

    images: Tensor
    classes: tuple[str, ...]
    codes: Codes


@torch.inference_mode()
def sample_images(
    model: Autoencoder, priors: Priors, size: Grid, count: int, *, seed: int = 0, class_name: str | int | None = None,
    draw: SamplingParams | None = None, known: KnownCodes | None = None, sampler: Sampler = sample_cached,
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
    for start in tracked(starts, "sample", count, lambda start: min(_BATCH, count - start)):
        numbers = range(start, min(start + _BATCH, count))
        label = None
        if priors.classes:
            label = draw_labels(priors.class_counts, seed, numbers)
            label = label if number is None else torch.full_like(label, number)
            names += [priors.classes[index] for index in label.tolist()]
        some = None
        if known is not None:
            some = KnownCodes(tuple(codes.expand(len(numbers), -1, -1) for codes in known.codes), known.where)
        codes = sample_codes(
            priors.networks, model.paths, numbers, seed=seed, label=label, draw=draw or SamplingParams(), known=some,
            sampler=sampler,
        )  # fmt: skip
        images.append(model.decode(tuple(one.to(device) for one in codes), size=size).cpu())
        drawn.append(codes)
    together = tuple(torch.cat(level) for level in zip(*drawn, strict=True))
    return Sampled(torch.cat(images), tuple(names or [""] * count), together)


def kept_parts(keep: str, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """(H_l, W_l) bool of each grid: what `top`, `left`, or a fraction of the rows from the top, keeps.

    The border is one of the coarsest grid's, so that no code is kept whose parent is drawn anew.

    Raises:
        InputError: it is none of these, or keeps nothing or everything.
    """
    rows, columns = min(grids)
    where = torch.zeros(rows, columns, dtype=torch.bool)
    if keep == "left":
        where[:, : columns // 2] = True
    else:
        try:
            share = 0.5 if keep == "top" else float(keep)
        except ValueError as error:
            raise InputError(f"--keep is {keep!r}; it must be top, left, or a fraction between 0 and 1") from error
        if not 0 < share < 1:
            raise InputError(f"--keep is {keep}; a fraction lies between 0 and 1")
        where[: round(rows * share)] = True
    if where.all() or not where.any():
        raise InputError(f"--keep {keep} keeps {int(where.sum())} of {where.numel()} codes of a grid of {rows} rows")
    return tuple(where.repeat_interleave(h // rows, 0).repeat_interleave(w // columns, 1) for h, w in grids)
