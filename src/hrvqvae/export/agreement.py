"""Whether graphs give what the model gives: the same codes, except at ties, and the same images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.export.forms import GraphModel
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.quantities import counted

PIXELS = 1e-4
"""How far images may be apart, on the scale [0, 1]."""

TIE = 1e-5
"""Two codes are tied where the distances from the vector to what they stand for differ by less than this share of the
longest such vector of the image: what float32 makes of a vector in another order of summation is about that far off."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a comparison found; comparisons add up.

    Attributes:
        images: images compared.
        codes: codes compared.
        equal: codes that are the same.
        errors: codes that differ and are no tie.
        pixels: the largest difference between decoded images of the same codes, over all numbers of levels.

    A code that is neither equal nor an error is a tie, or a finer code of an image in which a coarser one is tied.
    """

    images: int = 0
    codes: int = 0
    equal: int = 0
    errors: int = 0
    pixels: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            images=self.images + other.images, codes=self.codes + other.codes, equal=self.equal + other.equal,
            errors=self.errors + other.errors, pixels=max(self.pixels, other.pixels),
        )  # fmt: skip

    @property
    def holds(self) -> bool:
        """Whether the graphs do what the model does."""
        return self.errors == 0 and self.pixels <= PIXELS

    def __str__(self) -> str:
        tied = self.codes - self.equal - self.errors
        wrong = f", {self.errors:,} wrong" if self.errors else ""
        return (
            f"{counted(self.images, 'image')}: {self.equal:,} of {self.codes:,} codes equal, {tied:,} tied{wrong}; "
            f"decoded images differ by at most {self.pixels:.1e}"
        )


@torch.inference_mode()
def compare(model: Autoencoder, graphs: GraphModel, images: Tensor) -> Agreement:
    """Compare on images (B, C, Y, X), float32 in [0, 1]."""
    ours, theirs = model.encode(images), graphs.encode(images)
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        codes = sum(one.numel() for one in ours)
        return Agreement(images=len(images), codes=codes, errors=codes, pixels=torch.inf)
    pixels = 0.0
    for levels in model.prefixes:
        one, other = model.decode(ours[:levels], levels), graphs.decode(ours, levels)
        pixels = max(pixels, float((one - other).abs().max()) if one.shape == other.shape else torch.inf)
    return Agreement(
        images=len(images), codes=sum(one.numel() for one in ours),
        equal=sum(int((one == other).sum()) for one, other in zip(ours, theirs, strict=True)),
        errors=count_errors(model, images, ours, theirs), pixels=pixels,
    )  # fmt: skip


def count_errors(model: Autoencoder, images: Tensor, ours: Codes, theirs: Codes) -> int:
    """How many codes differ and are no tie, each image judged by the coarsest level at which its codes differ."""
    errors = 0
    agreed = torch.ones(len(images), dtype=torch.bool)
    for level, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        differ = (one != other) & agreed[:, None, None]
        agreed &= ~differ.flatten(1).any(1)
        if not differ.any():
            continue
        pairs, others = model.assignments(images, ours), model.assignments(images, theirs)
        if not pairs:
            errors += int(differ.sum())
            continue
        target, chosen = pairs[level]
        length = target.norm(dim=-1).amax((1, 2), keepdim=True)
        apart = (target - chosen).norm(dim=-1) - (target - others[level][1]).norm(dim=-1)
        errors += int((differ & (apart.abs() > TIE * length)).sum())
    return errors
