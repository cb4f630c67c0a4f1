"""All levels of a run: level 1's whole grid, then level 2's given it, and so on; then the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hrvqvae.config.entries import PRIORS
from hrvqvae.config.registry import imported
from hrvqvae.errors import InputError
from hrvqvae.priors.base import Prior
from hrvqvae.priors.draw import Draw
from hrvqvae.quantize import Codes


class Sampler(Protocol):
    """Fills in the codes of one level that are not known: see `plain.sample_plain`."""

    def __call__(
        self, prior: Prior, codes: Tensor, known: Tensor, coarser: Sequence[Tensor], label: Tensor | None,
        uniforms: Tensor, draw: Draw,
    ) -> None: ...  # fmt: skip


def sample_cached(
    prior: Prior, codes: Tensor, known: Tensor, coarser: Sequence[Tensor], label: Tensor | None, uniforms: Tensor,
    draw: Draw,
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


def sample_codes(
    priors: Sequence[Prior],
    paths: Callable[[Codes], tuple[Tensor, ...]],
    numbers: Sequence[int],
    *,
    seed: int,
    label: Tensor | None,
    draw: Draw,
    known: KnownCodes | None = None,
    sampler: Sampler = sample_cached,
) -> Codes:
    """Draw codes of every level, coarse first: of each level (B, H_l, W_l) int64.

    Args:
        priors: of each level, on the CPU.
        paths: codes of the coarser levels -> their paths (`Autoencoder.paths`).
        numbers: of the samples; a sample is the same in every batch.
        label: (B,) classes, None where the priors know none.
        known: codes that are kept instead of drawn.

    Raises:
        InputError: top-k is larger than the number of symbols, or a label is missing or out of range.
    """
    for prior in priors:
        draw.check(prior.level.symbols)
    positions = [prior.level.grid[0] * prior.level.grid[1] for prior in priors]
    drawn = []
    for number in numbers:
        generator = _generator(seed, number)
        generator.random()  # the class
        drawn.append(generator.random(sum(positions)))
    uniforms = torch.from_numpy(np.stack(drawn)).split(positions, dim=1)  # type: ignore[no-untyped-call]
    codes: list[Tensor] = []
    for level, prior in enumerate(priors):
        shape = (len(numbers), *prior.level.grid)
        if known is None:
            here, kept = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        else:
            here, kept = known.codes[level].clone(), known.where[level].expand(shape).contiguous()
            if here.shape != shape:
                raise InputError(f"level {level + 1} has codes {tuple(here.shape)}; its prior expects {shape}")
        sampler(prior, here, kept, paths(tuple(codes)), label, uniforms[level].view(shape).contiguous(), draw)
        codes.append(here)
    return tuple(codes)
