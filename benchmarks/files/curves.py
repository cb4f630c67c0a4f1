"""A way to write images into files, measured: bytes against error at all its settings, and what
fits in a budget.

Images are (N, C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB). PSNR is that of the mean squared error
over all images, as everywhere in this package. It is below the mean over images of each one's PSNR,
which images of one flat colour dominate.
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
        title: of the curve that it gives.
        size: file -> bytes that count.
        whole: every byte that a reader needs beside its program counts. Not so where headers are
            left out, or where the size is an ideal code length and no file of that size was
            written.
    """

    title: str
    size: Callable[[bytes], float] = len
    whole: bool = True


class FileCodec(ABC):
    """Writes images into files and reads them, at each of its settings.

    Attributes:
        counts: the curves that it gives, one for each way to count the bytes of its files.
        settings: in any order; each has a readable `str`.
        model_bytes: what a reader needs beside its program and the file, such as weights.
        learned: whether it is a trained model of this package.
    """

    counts: tuple[Count, ...]
    settings: tuple[Any, ...]
    model_bytes: int = 0
    learned: bool = False

    @abstractmethod
    def encode(self, images: Images, setting: Any) -> list[bytes]:
        """A file for each image. `setting` is one of `settings`."""

    @abstractmethod
    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        """Images of that shape from files, in order."""


Floats = NDArray[np.float64]
_BATCH = 250
_SSIM_WINDOW = 11


@dataclass(frozen=True)
class Point:
    """What is reached with so many bytes an image in the mean; ssim is None for images below 11
    pixels.
    """

    bytes: float
    psnr: float
    ssim: float | None


@dataclass(frozen=True, eq=False)
class Curve:
    """A codec on some images, N of them, at S settings.

    Attributes:
        title, whole: as in `Count`; learned, model_bytes: as in `FileCodec`.
        settings: readable, S of them.
        sizes: (S, N) bytes; errors: (S, N) mean squared errors in [0, 1]; ssim: (S, N), or None for
            tiny images.
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
        """One for each setting, over all images."""
        ssim = [None] * len(self.settings) if self.ssim is None else self.ssim.mean(1).tolist()
        means = zip(self.sizes.mean(1).tolist(), self.errors.mean(1).tolist(), ssim, strict=True)
        return [Point(size, psnr(error), similarity) for size, error, similarity in means]

    @property
    def hull(self) -> list[int]:
        """Indices of the settings that no setting and no mixture of two beats, the smallest files
        first: the lower convex hull.
        """
        points = list(zip(self.sizes.mean(1).tolist(), self.errors.mean(1).tolist(), strict=True))
        hull: list[int] = []
        for index in sorted(range(len(points)), key=points.__getitem__):
            point = points[index]
            if hull and point[1] >= points[hull[-1]][1]:
                continue
            while len(hull) > 1 and _slope(points[hull[-2]], points[hull[-1]]) >= _slope(
                points[hull[-2]], point
            ):
                hull.pop()
            hull.append(index)
        return hull

    def within(self, budget: float) -> float | None:
        """The best PSNR of at most so many bytes an image in the mean, each share of the images at
        a fixed setting.

        Between two settings: some images at the one, the others at the other, so errors lie on the
        straight line. None where even the smallest setting takes more.
        """
        hull = self.hull
        sizes = self.sizes.mean(1)[hull]
        errors = self.errors.mean(1)[hull]
        return None if budget < sizes[0] else psnr(float(np.interp(budget, sizes, errors)))

    def chosen(self, budget: float) -> NDArray[np.intp] | None:
        """(N,) the setting of least error for each image among those of at most so many bytes; None
        if one has none.
        """
        errors = np.where(self.sizes <= budget, self.errors, np.inf)
        return errors.argmin(0) if np.isfinite(errors.min(0)).all() else None

    def fitted(self, budget: float) -> float | None:
        """The best PSNR of at most so many bytes for each single image, the setting chosen image by
        image.
        """
        chosen = self.chosen(budget)
        if chosen is None:
            return None
        return psnr(float(self.errors[chosen, np.arange(len(chosen))].mean()))


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0]) if right[0] > left[0] else -math.inf


def measure(codec: FileCodec, images: Images) -> list[Curve]:
    """A curve for each way to count the codec's files, of all its settings on images (N, C, Y,
    X).
    """
    sizes: list[list[list[float]]] = [[] for _ in codec.counts]
    errors = []
    similar = []
    for setting in codec.settings:
        files = [file for batch in _batches(images) for file in codec.encode(batch, setting)]
        for all_sizes, count in zip(sizes, codec.counts, strict=True):
            all_sizes.append([float(count.size(file)) for file in files])
        decoded = [
            codec.decode(files[at : at + _BATCH], images.shape[1:])
            for at in range(0, len(files), _BATCH)
        ]
        pairs = list(zip(_batches(images), decoded, strict=True))
        errors.append(np.concatenate([squared_errors(*pair) for pair in pairs]))
        if min(images.shape[2:]) >= _SSIM_WINDOW:
            similar.append(np.concatenate([_similarities(*pair) for pair in pairs]))
    names = tuple(str(setting) for setting in codec.settings)
    ssim = np.stack(similar) if similar else None
    return [
        Curve(
            count.title,
            count.whole,
            codec.learned,
            codec.model_bytes,
            names,
            np.array(counted),
            np.stack(errors),
            ssim,
        )
        for count, counted in zip(codec.counts, sizes, strict=True)
    ]


def _batches(images: Images) -> list[Images]:
    return [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]


def squared_errors(images: Images, decoded: Images) -> Floats:
    """(N,) mean squared errors in [0, 1]."""
    errors: Floats = ((images.astype(np.float64) - decoded) ** 2).mean((1, 2, 3)) / 255**2
    return errors


def _similarities(*pair: Images) -> Floats:
    """(N,) SSIM of images and decoded images."""
    target, preds = (torch.from_numpy(np.ascontiguousarray(part)).float() / 255 for part in pair)
    ssim = structural_similarity_index_measure(preds, target, data_range=1.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)
    return ssim.double().reshape(-1).numpy()


def against(curve: Curve, rivals: Sequence[Curve]) -> list[dict[str, Any]]:
    """The best settings of a curve (`Curve.hull`) beside what rivals reach with as many bytes.

    Returns:
        Rows with setting, bytes, psnr, ssim and ahead_of (dB above each rival by title, or None
        where it has no file so small).
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
