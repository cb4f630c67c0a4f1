"""Distances between sets of images, against their equations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrvqvae.evaluation.samples import Features, RealImages, share_among
from hrvqvae.utils.errors import InputError

PIXELS = Features("", lambda images: images.flatten(1))


def frechet_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the root by the eigenvalues of C1 C2."""
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (one, other)), strict=True)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * roots.sum())


def kernel_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), pairs of the same image left out of the first two."""
    width = one.shape[1]

    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        values = [(a @ b / width + 1) ** 3 for i, a in enumerate(x) for j, b in enumerate(y) if not (same and i == j)]
        return float(np.mean(values))

    return mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False)


def sets(count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(count, 1, 2, 3, generator=generator) * scale for scale in (1.0, 0.9, 0.3))


def test_distances_by_hand() -> None:
    real, near, far = sets(80)
    kept = RealImages(PIXELS, [real[:50], real[50:]])
    assert (kept.frechet, kept.kernel) == ("FID of 80 images", "KID of 80 images")
    for other in (near, far, near):
        one, two = (images.flatten(1).double().numpy() for images in (real, other))
        found = kept.distances([other[:30], other[30:]])
        assert found.frechet == pytest.approx(frechet_by_hand(one, two), rel=1e-4)
        assert kept.frechet_of([other]) == pytest.approx(found.frechet, rel=1e-9)
        assert found.kernel == pytest.approx(kernel_by_hand(one, two), rel=1e-6)
        assert found.precision == share_among(torch.from_numpy(two), torch.from_numpy(one))
        assert found.recall == share_among(torch.from_numpy(one), torch.from_numpy(two)) != found.precision
    assert abs(kept.frechet_of([real])) < 1e-4


def test_shares_by_hand() -> None:
    others = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    some = torch.tensor([[-1.0], [2.0], [6.5], [20.0], [16.0]])
    # with the first neighbour, the balls reach 1, 1, 2 and 7 around the others
    assert share_among(some, others, neighbour=1) == 4 / 5


def test_other_numbers_of_images_are_refused() -> None:
    real, near, _ = sets(20)
    with pytest.raises(InputError, match="there is 1$"):
        RealImages(PIXELS, [real[:1]])
    with pytest.raises(InputError, match="19 images can't be compared with 20 real ones"):
        RealImages(PIXELS, [real]).distances([near[:19]])
