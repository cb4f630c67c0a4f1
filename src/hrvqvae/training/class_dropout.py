"""Class dropout: a prior that is trained without the class of some images can be guided (Ho and Salimans 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.data.image_sets import stream
from hrvqvae.priors.base import Level
from hrvqvae.utils.errors import InputError


def require_classes(share: float, classes: Sequence[str]) -> None:
    """Raises InputError where classes are to be withheld and there are none."""
    if share and not classes:
        raise InputError(
            f"prior.class_dropout is {share:g}, but the training images have no classes that could be withheld; "
            "leave it at 0"
        )


def withheld(label: Tensor | None, level: Level, share: float, seed: int, step: int) -> Tensor | None:
    """The labels (B,) of this process's part of a batch, of which about that share is "no class" instead.

    Which images of the whole batch these are depends on (seed, step) alone.
    """
    if label is None or not share:
        return label
    part = distributed.part()
    places = part.of(len(label) * part.count)
    drawn = stream("class dropout", seed, step).random(len(label) * part.count)[places.start : places.stop]
    return torch.where(torch.from_numpy(drawn < share).to(label.device), level.no_class, label)
