"""Classifier-free guidance (Ho and Salimans 2022): logits with the class and without it, mixed.

Letters: B images, K labels under which a network sees each of them, m symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.priors.base import Level
from hrvqvae.priors.sampling_params import SamplingParams
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Under which labels a network sees the images of a batch, and how its logits are mixed.

    The network sees K * B images: all of them under the first label, then all of them under the next. Without guidance
    K is 1, and the one weight is 1.

    Attributes:
        label: (K * B,) int64, None where the prior knows no classes.
        weights: (K,) float32, whose sum is 1.
    """

    label: Tensor | None
    weights: Tensor

    def each(self, images: Tensor) -> Tensor:
        """What belongs to B images (B, ...), for each of the K * B that the network sees."""
        return torch.cat([images] * len(self.weights))

    def mixed(self, logits: Tensor) -> Tensor:
        """Logits (K * B, m) of what the network sees -> logits (B, m) that codes are drawn by, float32."""
        return (logits.float().view(len(self.weights), -1, logits.shape[1]) * self.weights[:, None, None]).sum(0)


def require_guidable(level: Level, draw: SamplingParams) -> None:
    """Raises InputError where codes are to be guided and the prior does not know them without a class."""
    if draw.guidance == 1 or level.unconditional:
        return
    asked = f"guidance is {draw.guidance:g}, but the prior of level {level.number}"
    if not level.classes:
        raise InputError(f"{asked} knows no classes: leave it at 1, or train on images with classes")
    raise InputError(
        f"{asked} was trained without class dropout: train it with --prior.class_dropout 0.1, or leave guidance at 1"
    )


def guidance_of(level: Level, label: Tensor | None, draw: SamplingParams) -> Guidance:
    """How a batch of images with those labels (B,) is guided: logits u + w (c - u), c with the class and u without it.

    Raises:
        InputError: as `require_guidable`.
    """
    require_guidable(level, draw)
    weighted = [(label, draw.guidance)]
    if label is not None and level.unconditional:
        weighted.append((torch.full_like(label, level.no_class), 1 - draw.guidance))
    some = [(one, weight) for one, weight in weighted if weight]
    labels = [one for one, _ in some if one is not None]
    weights = torch.tensor([weight for _, weight in some], dtype=torch.float32)
    return Guidance(torch.cat(labels) if labels else None, weights)
