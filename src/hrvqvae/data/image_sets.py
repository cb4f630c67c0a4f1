"""The images of a split: in memory, or decoded from files whenever they are read.

Shapes: images (N, C, Y, X) uint8; labels (N,) int64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hrvqvae.config import DataConfig
from hrvqvae.data.images import BrokenImageError, Decoded, Listing, conversions, decode_square
from hrvqvae.data.random import stream
from hrvqvae.data.workers import at_most_cores, quiet_worker, worker_errors
from hrvqvae.errors import InputError

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


class FolderImages(ImageSet):
    """Image files, decoded whenever they are read."""

    def __init__(self, listing: Listing, config: DataConfig) -> None:
        self.paths, self.config, self.classes = listing.paths, config, listing.classes
        self.labels = np.asarray(listing.labels, np.int64)

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        config, place, generator = self.config, (0.5, 0.5), None
        if augmentation is not None:
            generator = stream("augmentation", *augmentation)
            if config.crop == "random":
                place = (generator.random(), generator.random())
        pixels, lost = decode_square(self.paths[index], config.channels, config.size, config.max_pixels, place)
        return Decoded(_flipped(pixels, generator) if config.flip and generator is not None else pixels, lost)

    @property
    def decodes(self) -> bool:
        return True


class _EveryImage(torch.utils.data.Dataset[tuple[int, Tensor | InputError, str]]):
    def __init__(self, images: FolderImages) -> None:
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


def in_memory(images: FolderImages, say: Callable[[str], None]) -> ImageSet:
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
    broken, lost = [], {}
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
                lost[images.paths[index]] = loss
    if len(broken) == len(images):
        raise InputError(f"every one of the {len(images)} images is broken, {images.paths[0]} first")
    if broken:
        say(f"broken images skipped: {len(broken)} of {len(images)}, the first is {images.paths[broken[0]]}")
    if converted := conversions(lost, len(images)):
        say(converted)
    keep = np.setdiff1d(np.arange(len(images)), broken)
    return MemoryImages(pixels[keep], images.labels[keep], images.classes, config.flip)
