"""Measure codecs: bytes against error at all settings, and the best settings within a budget.

Images are (N, C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB). PSNR is that of the mean squared error
over all images, as everywhere in this package. It is below the mean of the images' PSNR, which
images of one flat colour dominate.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from hrvqvae.utils.quantities import psnr

Images = NDArray[np.uint8]
Shape = tuple[int, int, int]
"""(C, Y, X) of one image."""


@dataclass(frozen=True)
class Count:
    """One way to count the bytes of a file.

    Attributes:
        title: of its curve.
        size: Returns the bytes of a file that count.
        whole: whether every byte counts that a reader needs beside its program. False if headers
            are left out, or if the size is an ideal code length and no such file was written.
    """

    title: str
    size: Callable[[bytes], float] = len
    whole: bool = True


class FileCodec(ABC):
    """Writes images into files and reads them, at each of its settings.

    Attributes:
        counts: ways to count the bytes of its files; each is a curve.
        settings: in any order, each with a readable `str`.
        model_bytes: of weights and the like, which a reader needs beside its program and the file.
        learned: whether it is a trained model of this package.
    """

    counts: tuple[Count, ...]
    settings: tuple[Any, ...]
    model_bytes: int = 0
    learned: bool = False

    @abstractmethod
    def encode(self, images: Images, setting: Any) -> list[bytes]:
        """Return a file per image. `setting` is one of `settings`."""

    @abstractmethod
    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        """Return the images of files (N, C, Y, X), in order."""


Floats = NDArray[np.float64]
_BATCH = 250
_SSIM_WINDOW = 11
_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """Mean bytes per image, and the quality at a setting; ssim is None below 11 pixels."""

    bytes: float
    psnr: float
    ssim: float | None


@dataclass(frozen=True, eq=False)
class Curve:
    """A codec that was measured on N images with S settings.

    Attributes:
        title, whole: as in `Count`.
        learned, model_bytes: as in `FileCodec`.
        settings: S names.
        sizes: bytes of each file (S, N).
        errors: mean squared errors (S, N), on the scale [0, 1].
        ssim: (S, N), or None for tiny images.
    """

    title: str
    whole: bool
    learned: bool
    model_bytes: int
    settings: tuple[str, ...]
    sizes: Floats
    errors: Floats
    ssim: Floats | None

    @property
    def points(self) -> list[Point]:
        """Return the point of each setting, over all images."""
        ssim = [None] * len(self.settings) if self.ssim is None else self.ssim.mean(1).tolist()
        means = zip(self.sizes.mean(1).tolist(), self.errors.mean(1).tolist(), ssim, strict=True)
        return [Point(size, psnr(error), similarity) for size, error, similarity in means]

    @property
    def hull(self) -> list[int]:
        """Return the indices of the settings on the lower convex hull, the smallest files first: no
        setting and no mixture of two settings is better.
        """
        points = np.stack([self.sizes.mean(1), self.errors.mean(1)], 1).tolist()
        hull: list[int] = []
        for index in sorted(range(len(points)), key=points.__getitem__):
            point = points[index]
            if hull and point[1] >= points[hull[-1]][1]:
                continue
            while len(hull) > 1:
                before = points[hull[-2]]
                if _slope(before, points[hull[-1]]) < _slope(before, point):
                    break
                hull.pop()
            hull.append(index)
        return hull

    def within(self, budget: float) -> float | None:
        """Return the best PSNR within a budget of mean bytes per image, with a setting or a mixture
        of two; None if the smallest setting needs more.

        In a mixture, a share of the images has the first setting and the rest the second. Its error
        and its bytes lie on the straight line between those of the settings.
        """
        hull = self.hull
        sizes = self.sizes.mean(1)[hull]
        errors = self.errors.mean(1)[hull]
        return None if budget < sizes[0] else psnr(float(np.interp(budget, sizes, errors)))

    def chosen(self, budget: float) -> NDArray[np.intp] | None:
        """Return the setting of least error within a budget of bytes, for each image (N,); None if
        an image has no file so small.
        """
        errors = np.where(self.sizes <= budget, self.errors, np.inf)
        return errors.argmin(0) if np.isfinite(errors.min(0)).all() else None

    def fitted_errors(self, budget: float) -> Floats | None:
        """Return the error of each image (N,) with the setting that `chosen` returns; None if it
        returns None.
        """
        chosen = self.chosen(budget)
        return None if chosen is None else self.errors[chosen, np.arange(len(chosen))]

    def fitted(self, budget: float) -> float | None:
        """Return the PSNR of `fitted_errors`; None if there are none."""
        errors = self.fitted_errors(budget)
        return None if errors is None else psnr(float(errors.mean()))


def _slope(left: list[float], right: list[float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0]) if right[0] > left[0] else -math.inf


def measure(codec: FileCodec, images: Images) -> list[Curve]:
    """Measure a codec on images (N, C, Y, X), with all its settings. Return a curve per count."""
    batches = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
    files = []
    errors = []
    similarities = []
    for setting in codec.settings:
        encoded = [codec.encode(batch, setting) for batch in batches]
        decoded = [codec.decode(batch, images.shape[1:]) for batch in encoded]
        files.append([file for batch in encoded for file in batch])
        errors.append(np.concatenate([*map(squared_errors, batches, decoded)]))
        if min(images.shape[2:]) >= _SSIM_WINDOW:
            similarities.append(np.concatenate([*map(_similarities, batches, decoded)]))
    return [
        Curve(
            count.title,
            count.whole,
            codec.learned,
            codec.model_bytes,
            tuple(map(str, codec.settings)),
            np.array([[*map(count.size, written)] for written in files], np.float64),
            np.stack(errors),
            np.stack(similarities) if similarities else None,
        )
        for count in codec.counts
    ]


def squared_errors(images: Images, decoded: Images) -> Floats:
    """Return the mean squared error of each image (N,), on the scale [0, 1]."""
    errors: Floats = ((images.astype(np.float64) - decoded) ** 2).mean((1, 2, 3)) / 255**2
    return errors


def _similarities(*pair: Images) -> Floats:
    """Return the SSIM of each image with its decoded image (N,)."""
    target, preds = (torch.from_numpy(np.ascontiguousarray(part)).float() / 255 for part in pair)
    ssim = structural_similarity_index_measure(preds, target, data_range=1.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)
    return ssim.double().reshape(-1).numpy()


def compare_fitted(curve: Curve, rival: Curve, budget: float) -> tuple[float, ...] | None:
    """Return how far `Curve.fitted` is above that of a rival on the same images, in dB, and the
    ends of its 95% interval (bootstrap over images); None if one has no file so small.
    """
    pair = curve.fitted_errors(budget), rival.fitted_errors(budget)
    if pair[0] is None or pair[1] is None:
        return None
    errors = np.stack([pair[0], pair[1]])
    count = errors.shape[1]
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    means = np.concatenate([errors.mean(1)[:, None], errors[:, drawn].mean(2)], 1)
    above = 10 * np.log10(means[1] / means[0])
    low, high = np.quantile(above[1:], (0.025, 0.975))
    return float(above[0]), float(low), float(high)


def compare_curve(curve: Curve, rivals: Sequence[Curve]) -> list[dict[str, Any]]:
    """Compare the best settings of a curve (`Curve.hull`) with rivals at the same mean bytes.

    Return rows with setting, bytes, psnr, ssim and ahead_of: dB above each rival by title, or None
    if the rival has no file so small.
    """
    rows = []
    points = curve.points
    for index in curve.hull:
        point = points[index]
        ahead = dict[str, float | None]()
        for rival in rivals:
            reached = rival.within(point.bytes)
            ahead[rival.title] = None if reached is None else point.psnr - reached
        rows.append({"setting": curve.settings[index], **vars(point), "ahead_of": ahead})
    return rows
