"""The images of a split: in memory, or decoded from where they are stored whenever they are read.

Shapes: images (N, C, Y, X) uint8; labels (N,) int64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hrvqvae.config import DataConfig
from hrvqvae.data.images import BrokenImageError, Decoded, conversions, square
from hrvqvae.data.random import stream
from hrvqvae.data.sources.base import Source
from hrvqvae.data.workers import at_most_cores, quiet_worker, worker_errors
from hrvqvae.utils.errors import InputError

Augmentation = tuple[int, int, int]
"""(seed, epoch, index): the only thing that augmentation depends on."""


class ImageSet(ABC):
    """The images of one split, all of one shape, in a fixed order."""

    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names, empty where there are no classes
    conversion_told = False  # whether a person has been told that images are converted

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        """Pixels (C, Y, X) uint8 with what their file lost; not augmented where `augmentation` is None.

        Raises:
            BrokenImageError: the file can't be decoded.
        """

    def read(self, index: int, augmentation: Augmentation | None) -> NDArray[np.uint8]:
        """The pixels that `decode` gives: (C, Y, X) uint8. Raises as it does."""
        return self.decode(index, augmentation).pixels

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, a permutation of the indices (N,) that depends on (seed, epoch) alone."""
        return stream("order", seed, epoch).permutation(len(self))

    @property
    @abstractmethod
    def decodes(self) -> bool:
        """Whether reading decodes a file, so that workers pay."""


def _flipped(pixels: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    return pixels[..., ::-1].copy() if generator.random() < 0.5 else pixels


class MemoryImages(ImageSet):
    """Images held in memory as uint8."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str], flip: bool
    ) -> None:
        self.images, self.labels, self.classes, self.flip = images, labels, tuple(classes), flip

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        pixels = self.images[index]
        if self.flip and augmentation is not None:
            pixels = _flipped(pixels, stream("augmentation", *augmentation))
        return Decoded(pixels)

    @property
    def decodes(self) -> bool:
        return False


class StoredImages(ImageSet):
    """Images that lie in files, tars and the like, decoded whenever they are read.

    Args:
        source: where they lie.
        rows: (N,) which of the source's images are those of the split.
        labels: (N,) of these.
    """

    def __init__(
        self, source: Source, rows: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str],
        config: DataConfig,
    ) -> None:  # fmt: skip
        self.source, self.rows, self.labels, self.classes, self.config = source, rows, labels, tuple(classes), config

    def where(self, index: int) -> str:
        """Where an image lies, for messages."""
        return self.source.where(int(self.rows[index]))

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        config, place, generator = self.config, (0.5, 0.5), None
        if augmentation is not None:
            generator = stream("augmentation", *augmentation)
            if config.crop == "random":
                place = (generator.random(), generator.random())
        row = int(self.rows[index])
        pixels, lost = square(
            partial(self.source.open, row), self.source.where(row), config.channels, config.size, config.max_pixels,
            place,
        )  # fmt: skip
        return Decoded(_flipped(pixels, generator) if config.flip and generator is not None else pixels, lost)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return self.source.order(self.rows, stream("order", seed, epoch))

    @property
    def decodes(self) -> bool:
        return True


class _EveryImage(torch.utils.data.Dataset[tuple[int, Tensor | InputError, str]]):
    def __init__(self, images: StoredImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | InputError, str]:
        try:
            pixels, lost = self.images.decode(index, None)
            return index, torch.from_numpy(pixels), lost
        except InputError as error:  # as a value: raised in a worker it would arrive wrapped in a traceback
            return index, error, ""


def _first(items: list[Any]) -> Any:
    return items[0]


def in_memory(images: StoredImages, say: Callable[[str], None]) -> ImageSet:
    """The same images in memory, decoded once by workers, where they fit; else `images` itself.

    Args:
        say: is told how many images were skipped, and how many converted.

    Raises:
        BrokenImageError: an image can't be decoded and `on_error` says stop.
        InputError: every image is broken, or one is gone.
    """
    config = images.config
    size = len(images) * config.channels * config.size**2
    if size > config.memory_mb * 2**20:
        return images
    pixels = np.empty((len(images), config.channels, config.size, config.size), np.uint8)
    broken, lost = list[int](), dict[str, str]()
    loader = DataLoader(
        _EveryImage(images),
        batch_size=1,
        num_workers=at_most_cores(config.workers),
        collate_fn=_first,
        worker_init_fn=quiet_worker,
    )
    with worker_errors():
        for index, read, loss in loader:
            if isinstance(read, InputError):
                if not isinstance(read, BrokenImageError):
                    raise read
                if config.on_error == "stop":
                    raise BrokenImageError(f"{read}; delete it, or skip such images with --data.on_error skip")
                broken.append(index)
            else:
                pixels[index] = read.numpy()
                lost[images.where(index)] = loss
    if len(broken) == len(images):
        raise InputError(f"all images are broken ({len(images)} of {len(images)}), {images.where(0)} first")
    if broken:
        say(f"broken images skipped: {len(broken)} of {len(images)}, the first is {images.where(broken[0])}")
    if converted := conversions(lost, len(images)):
        say(converted)
    keep = np.setdiff1d(np.arange(len(images)), broken)
    return MemoryImages(pixels[keep], images.labels[keep], images.classes, config.flip)
