"""All levels of a run: those of the first prior, then those of the next given them, and so on; then the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hrvqvae.config.registry import PRIORS, imported
from hrvqvae.priors.base import Prior
from hrvqvae.priors.guidance import require_guidable
from hrvqvae.priors.sampling_params import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError


class Sampler(Protocol):
    """Fills in the codes that are not known of the levels that a prior covers: see `plain.sample_plain`."""

    def __call__(
        self, prior: Prior, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
        label: Tensor | None, uniforms: Sequence[Tensor], draw: SamplingParams,
    ) -> None: ...  # fmt: skip


def sample_cached(
    prior: Prior, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None,
    uniforms: Sequence[Tensor], draw: SamplingParams,
) -> None:  # fmt: skip
    """The sampler that the prior's network is registered with; arguments as `sample_plain`."""
    sampler: Sampler = imported(PRIORS.get(prior.config.kind).sampler)
    sampler(prior, codes, known, coarser, label, uniforms, draw)


@dataclass(frozen=True)
class KnownCodes:
    """What is given of the codes of B images.

    Attributes:
        codes: (B, H_l, W_l) int64 of each level.
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


def check_sampling_params(priors: Sequence[Prior], draw: SamplingParams) -> None:
    """Raises InputError where the codes of these priors can't be drawn so: too large a top-k, guidance of none."""
    for prior in priors:
        for level in prior.levels:
            draw.check(level.symbols)
            require_guidable(level, draw)


def sample_codes(
    priors: Sequence[Prior],
    paths: Callable[[Codes], tuple[Tensor, ...]],
    numbers: Sequence[int],
    *,
    seed: int,
    label: Tensor | None,
    draw: SamplingParams,
    known: KnownCodes | None = None,
    sampler: Sampler = sample_cached,
) -> Codes:
    """Draw codes of every level, prior after prior: of each level (B, H_l, W_l) int64.

    Args:
        priors: which cover all levels, coarse first, on the CPU.
        paths: codes of the coarser levels -> their paths (`Autoencoder.paths`).
        numbers: of the samples; a sample is the same in every batch.
        label: (B,) classes, None where the priors know none.
        known: codes that are kept instead of drawn.

    Raises:
        InputError: as `check_sampling_params`, or a label is missing or out of range.
    """
    check_sampling_params(priors, draw)
    levels = [level for prior in priors for level in prior.levels]
    positions = [level.grid[0] * level.grid[1] for level in levels]
    drawn = []
    for number in numbers:
        generator = _generator(seed, number)
        generator.random()  # the class
        drawn.append(generator.random(sum(positions)))
    uniforms = torch.from_numpy(np.stack(drawn)).split(positions, dim=1)  # type: ignore[no-untyped-call]
    shapes = [(len(numbers), *level.grid) for level in levels]
    if known is None:
        kept = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
        codes = [torch.zeros(shape, dtype=torch.long) for shape in shapes]
    else:
        codes = [one.clone() for one in known.codes]
        for level, one, shape in zip(levels, codes, shapes, strict=True):
            if one.shape != shape:
                raise InputError(f"level {level.number} has codes {tuple(one.shape)}; its prior expects {shape}")
        kept = [where.expand(shape).contiguous() for where, shape in zip(known.where, shapes, strict=True)]
    chances = [some.view(shape).contiguous() for some, shape in zip(uniforms, shapes, strict=True)]
    for prior in priors:
        first = prior.level.number - 1
        own = slice(first, first + len(prior.levels))
        sampler(prior, codes[own], kept[own], paths(tuple(codes[:first])), label, chances[own], draw)
    return tuple(codes)
