"""The rate: bits of the codes of images under the priors, and under the entropy model of files beside them.

Where the priors are class-conditional, their bits are given the class, and the bits of the class itself are listed
separately. The entropy model knows no classes; its bits are those of whole files (docs/format.md) without headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.images import flat_codes
from hrvqvae.compression.levels import encode_level
from hrvqvae.config import Grid, level_names
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, Priors, total_bits
from hrvqvae.utils.progress import tracked

_BATCH, _FILES = 64, 1_024


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits an image, mean over the coded images.

    Attributes:
        prior: of each level under its prior, given the class where the priors are class-conditional.
        files: of each level by the entropy model; None where the run has none.
        positions: of each level's grid.
        label: of the class itself, by its frequency in training; 0 without classes.
    """

    prior: tuple[float, ...]
    files: tuple[float, ...] | None
    positions: tuple[int, ...]
    label: float


def label_bits(class_counts: Sequence[int], labels: NDArray[np.int64]) -> float:
    """Mean bits of labels by the frequency of each class, each class counted once more."""
    counts = np.asarray(class_counts) + 1
    return float(-np.log2(counts[labels] / counts.sum()).mean())


def file_bits(codec: EntropyModel, maps: CodeMaps, size: Grid) -> tuple[float, ...]:
    """Bits an image of each level as files of images of `size` pixels hold them, in whole bytes."""
    layout, spent = codec.layout(size), np.zeros(len(maps.levels))
    for start in range(0, len(maps), _FILES):
        codes, _ = maps.read(np.arange(start, min(start + _FILES, len(maps))))
        flat = flat_codes(codes)
        for level in range(len(spent)):
            spent[level] += sum(map(len, encode_level(flat, layout, level, codec.network(level))))
    return tuple((8 * spent / len(maps)).tolist())


def prior_bits(prior: Prior, model: Autoencoder, maps: CodeMaps, device: torch.device) -> tuple[float, ...]:
    """Bits an image of each level that a prior covers, in float32."""
    prior.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, count = prior.level.number - 1, len(prior.levels)
    spent = np.zeros(count)
    title = f"bits of {level_names(range(first, first + count))} under {'its' if count == 1 else 'their'} prior"
    starts = range(0, len(maps), _BATCH)
    for start in tracked(starts, title, len(maps), lambda start: min(_BATCH, len(maps) - start)):
        codes, labels = maps.read(np.arange(start, min(start + _BATCH, len(maps))))
        coarser = [paths.to(device) for paths in model.paths(codes[:first])]
        own = [one.to(device) for one in codes[first : first + count]]
        spent += total_bits(prior, own, coarser, labels.to(device) if prior.level.classes else None)
    prior.cpu()
    return tuple((spent / len(maps)).tolist())


def measure_rate(
    priors: Priors, model: Autoencoder, codec: EntropyModel, maps: CodeMaps, size: Grid, device: torch.device
) -> Rate:
    """Bits of codes under the priors, and by the entropy model where it is fitted.

    Args:
        maps: codes of images of `size` pixels, with labels that the priors know where they are class-conditional.
    """
    return Rate(
        prior=tuple(bits for prior in priors.networks for bits in prior_bits(prior, model, maps, device)),
        files=file_bits(codec, maps, size) if codec.networks else None,
        positions=tuple(int(np.prod(level[0].shape)) for level in maps.levels),
        label=label_bits(priors.class_counts, maps.labels) if priors.classes else 0.0,
    )
