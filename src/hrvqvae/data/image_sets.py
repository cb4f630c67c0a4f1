"""The images of a split: in memory, or decoded from their source at each reading.

Every random draw depends on its purpose, the seed, the epoch and the index of the image alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.data.images import Decoded, Pixels, decode_image
from hrvqvae.data.sources import Source

T = TypeVar("T")
Augmentation = tuple[int, int, int]
"""(seed, epoch, index), on which alone augmentation depends."""


def make_rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on its purpose and numbers alone."""
    # The count is part of the seed, since numpy gives (seed, epoch) and (seed, epoch, 0) the same generator.
    return np.random.default_rng((zlib.crc32(purpose.encode()), len(numbers), *numbers))


def chunk_by_size(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield the items in order, in lists of at most `most` total size; a larger item is alone."""
    run, filled = list[T](), 0
    for item in items:
        if run and filled + size(item) > most:
            yield run
            run, filled = [], 0
        run.append(item)
        filled += size(item)
    if run:
        yield run


@dataclass(eq=False)
class ImageSet:
    """The images of one split, all of one shape, in a fixed order.

    Attributes:
        labels: (N,), zeros where there are no classes.
        classes: the names of the classes, if any.
        source: where the images are stored; None for a published data set.
        rows: (N,) their rows in the source; more than N if broken images were left out of `pixels`.
        pixels: (N, C, Y, X) uint8; None where reading decodes an image.
    """

    config: DataConfig
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: Source | None = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Return a digest of names, labels, classes and content; of a source by `Source.digest`."""
        state = hashlib.blake2b(repr(self.classes).encode("utf-8", "surrogateescape"), digest_size=16)
        if self.source:
            state.update(self.source.digest(self.rows).encode())
            labels = self.source.labels[self.rows].tolist() if self.classes and self.source.labels is not None else []
            state.update(repr(labels).encode("utf-8", "surrogateescape"))
        else:
            assert self.pixels is not None
            for array in (self.labels, self.pixels):
                state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        """Return an image, augmented unless `augmentation` is None. Raises as `decode_image`."""
        config, place, lost = self.config, (0.5, 0.5), ""
        rng = make_rng("augmentation", *augmentation) if augmentation is not None else None
        if self.pixels is not None:
            pixels = self.pixels[index]
        else:
            assert self.source
            if rng and config.crop == "random":
                place = (rng.random(), rng.random())
            row = int(self.rows[index])
            open_row, where = partial(self.source.open, row), self.source.where(row)
            pixels, lost = decode_image(open_row, config.channels, config.max_pixels, config.size, place, where)
        if rng and config.flip and rng.random() < 0.5:
            pixels = pixels[..., ::-1].copy()
        return Decoded(pixels, lost)

    def read(self, index: int, augmentation: Augmentation | None) -> Pixels:
        """Return the pixels (C, Y, X) uint8 of `decode`."""
        return self.decode(index, augmentation).pixels

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the order of an epoch, a permutation of the indices (N,)."""
        rng = make_rng("order", seed, epoch)
        if self.source and self.pixels is None:
            return self.source.order(self.rows, rng)
        return rng.permutation(len(self))
