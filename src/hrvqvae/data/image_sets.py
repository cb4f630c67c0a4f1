"""The images of a split: in memory, or decoded from where they are stored whenever they are read.

What is random in them depends on a purpose, the seed, the epoch and the index of the image alone.
Shapes: images (N, C, Y, X) uint8; labels (N,) int64.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.data.images import Decoded, Pixels, decode
from hrvqvae.data.sources.base import Source

Augmentation = tuple[int, int, int]
"""(seed, epoch, index): the only thing that augmentation depends on."""


def stream(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on its purpose and numbers alone.

    The purpose and the count of numbers are part of the seed: numpy takes (seed, epoch) and (seed, epoch, 0) for one.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), len(numbers), *numbers))


class ImageSet(ABC):
    """The images of one split, all of one shape, in a fixed order."""

    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names, empty where there are no classes
    names: Sequence[str] = ()  # of the stored images; empty where they are the items of one file
    decodes = True  # reading decodes a file, so that workers pay
    conversion_told = False  # a message has said that images are converted

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        """An image, augmented unless `augmentation` is None. Raises BrokenImageError where it can't be decoded."""

    def read(self, index: int, augmentation: Augmentation | None) -> Pixels:
        """The pixels that `decode` gives, (C, Y, X) uint8."""
        return self.decode(index, augmentation).pixels

    def where(self, index: int) -> str:
        """Where an image lies, for messages."""
        return f"image {index}"

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, a permutation of the indices (N,) that depends on (seed, epoch) alone."""
        return stream("order", seed, epoch).permutation(len(self))


def _flipped(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return pixels[..., ::-1].copy() if generator.random() < 0.5 else pixels


class MemoryImages(ImageSet):
    """Images held in memory as uint8."""

    decodes = False

    def __init__(self, images: Pixels, labels: NDArray[np.int64], classes: Sequence[str], flip: bool) -> None:
        self.images, self.labels, self.classes, self.flip = images, labels, tuple(classes), flip

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        pixels = self.images[index]
        if self.flip and augmentation is not None:
            pixels = _flipped(pixels, stream("augmentation", *augmentation))
        return Decoded(pixels)


class StoredImages(ImageSet):
    """Images that lie in files, tars and the like, decoded whenever they are read."""

    def __init__(
        self, source: Source, rows: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str],
        config: DataConfig,
    ) -> None:  # fmt: skip
        """`rows` (N,) are the source's images that are of the split, `labels` (N,) theirs."""
        self.source, self.rows, self.labels, self.classes, self.config = source, rows, labels, tuple(classes), config

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return [self.source.name(int(row)) for row in self.rows]

    def where(self, index: int) -> str:
        return self.source.where(int(self.rows[index]))

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        config, place, generator = self.config, (0.5, 0.5), None
        if augmentation is not None:
            generator = stream("augmentation", *augmentation)
            if config.crop == "random":
                place = (generator.random(), generator.random())
        opens = partial(self.source.open, int(self.rows[index]))
        pixels, lost = decode(opens, self.where(index), config.channels, config.max_pixels, config.size, place)
        return Decoded(_flipped(pixels, generator) if config.flip and generator is not None else pixels, lost)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return self.source.order(self.rows, stream("order", seed, epoch))
