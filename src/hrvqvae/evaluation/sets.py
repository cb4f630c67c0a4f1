"""Distances between sets of images, by features that are named for what they are.

Only distances by Inception's features are called FID and KID.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from hrvqvae.evaluation.features import Features
from hrvqvae.utils.errors import InputError

_NEIGHBOUR, _BLOCK = 3, 1_024


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """How far a set of images is from the real ones.

    Attributes:
        frechet: distance of the normal distributions with their means and covariances (Heusel et al. 2017, equation 6).
        kernel: unbiased squared maximum mean discrepancy, with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).
        precision: share of the images that lie among the real ones (Kynkaanniemi et al. 2019, third neighbour).
        recall: share of the real images that lie among the images.
    """

    frechet: float
    kernel: float
    precision: float
    recall: float


class RealImages:
    """A set of real images, whose features are kept, so that sets of images can be compared with it.

    Sets that are compared with each other should be as large as this one: Frechet distances shrink with the number of
    images, precision and recall change with it.

    Attributes:
        count: of the real images.
        frechet, kernel: true names of those distances.

    Raises:
        InputError: fewer than two images, which have no covariance.
    """

    def __init__(self, features: Features, real: Iterable[Tensor]) -> None:
        self._features = features
        self._real = self._of(real)
        self.count = len(self._real)
        if self.count < 2:
            raise InputError(f"a Frechet distance needs two test images at least; there is {self.count}")
        self.frechet = features.title("FID", "Frechet distance", self.count)
        self.kernel = features.title("KID", "kernel distance", self.count)

    def _of(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([self._features(images) for images in batches])

    def frechet_of(self, batches: Iterable[Tensor]) -> float:
        """Frechet distance of batches of images (B, C, Y, X) in [0, 1]."""
        return _frechet(self._real, self._of(batches))

    def distances(self, batches: Iterable[Tensor]) -> SetDistances:
        """Every distance of batches of images (B, C, Y, X) in [0, 1], as many in all as there are real ones.

        Raises:
            InputError: there are more, or fewer.
        """
        seen = self._of(batches)
        if len(seen) != self.count:
            raise InputError(f"{len(seen):,} images can't be compared with {self.count:,} real ones: give as many")
        return SetDistances(
            frechet=_frechet(self._real, seen), kernel=float(poly_mmd(self._real, seen)),
            precision=share_among(seen, self._real), recall=share_among(self._real, seen),
        )  # fmt: skip


def _frechet(real: Tensor, other: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=_Ready(real.shape[1]))
    metric.update(real, real=True)
    metric.update(other, real=False)
    distance: Tensor = metric.compute()
    return float(distance)


class _Ready(torch.nn.Module):
    """Features that are computed already, as torchmetrics takes a network of features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def share_among(some: Tensor, others: Tensor, neighbour: int = _NEIGHBOUR) -> float:
    """Share of the points (N, D) that lie in one of the balls around the others (M, D).

    A ball reaches to its centre's `neighbour`-th nearest among the others: so the union of the balls stands for where
    the others are (Kynkaanniemi et al. 2019, equation 1).
    """
    nearest = min(neighbour + 1, len(others))  # a point is its own nearest
    reach = torch.cat([torch.cdist(part, others).kthvalue(nearest, dim=1).values for part in _blocks(others)])
    inside = sum(int((torch.cdist(part, others) <= reach).any(dim=1).sum()) for part in _blocks(some))
    return inside / len(some)


def _blocks(points: Tensor) -> list[Tensor]:
    return [points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK)]


__all__ = ["RealImages", "SetDistances", "share_among"]
