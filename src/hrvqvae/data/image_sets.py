"""The images of a split: in memory, or decoded from where they are stored whenever they are read.

What is random in them depends on a purpose, the seed, the epoch and the index of the image alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""(seed, epoch, index): the only thing that augmentation depends on."""


def stream(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on its purpose and numbers alone.

    The purpose and the count of numbers are part of the seed: numpy takes (seed, epoch) and (seed, epoch, 0) for one.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), len(numbers), *numbers))


def runs(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items in order, as many at a time as have at most so much `size` together, or one that has more."""
    run, filled = list[T](), 0
    for item in items:
        more = size(item)
        if run and filled + more > most:
            yield run
            run, filled = [], 0
        run.append(item)
        filled += more
    if run:
        yield run


@dataclass(eq=False)
class ImageSet:
    """The images of one split, all of one shape, in a fixed order: stored in a source, or held in memory, or both."""

    config: DataConfig
    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names, empty where there are no classes
    source: Source | None = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # of the source, those of the split
    pixels: Pixels | None = None  # (N, C, Y, X) uint8; None where reading decodes a file

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        """Of the stored images; empty where they are the items of one file."""
        return [self.source.name(int(row)) for row in self.rows] if self.source else ()

    def where(self, index: int) -> str:
        """Where a stored image lies, for messages."""
        assert self.source
        return self.source.where(int(self.rows[index]))

    def decode(self, index: int, augmentation: Augmentation | None) -> Decoded:
        """An image, augmented unless `augmentation` is None. Raises BrokenImageError where it can't be decoded."""
        config, place, lost = self.config, (0.5, 0.5), ""
        generator = stream("augmentation", *augmentation) if augmentation is not None else None
        if self.pixels is not None:
            pixels = self.pixels[index]
        else:
            assert self.source
            if generator and config.crop == "random":
                place = (generator.random(), generator.random())
            opens = partial(self.source.open, int(self.rows[index]))
            where = self.where(index)
            pixels, lost = decode_image(opens, config.channels, config.max_pixels, config.size, place, where)
        if generator and config.flip and generator.random() < 0.5:
            pixels = pixels[..., ::-1].copy()
        return Decoded(pixels, lost)

    def read(self, index: int, augmentation: Augmentation | None) -> Pixels:
        """The pixels that `decode` gives, (C, Y, X) uint8."""
        return self.decode(index, augmentation).pixels

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, a permutation of the indices (N,) that depends on (seed, epoch) alone."""
        generator = stream("order", seed, epoch)
        if self.source and self.pixels is None:
            return self.source.order(self.rows, generator)
        return generator.permutation(len(self))
