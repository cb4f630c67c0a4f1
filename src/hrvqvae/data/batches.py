"""Batches in an order that depends on (seed, epoch, index) alone.

The training images form one endless stream: epoch after epoch, each in its own order. Step s takes the samples
s * batch ... (s + 1) * batch - 1 of it, so a run that resumes at step s needs to remember nothing else.
Shapes: images (B, C, Y, X) uint8, labels (B,) int64.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hrvqvae.data.image_sets import Augmentation, ImageSet
from hrvqvae.data.images import BrokenImageError
from hrvqvae.data.loading import note
from hrvqvae.data.random import stream
from hrvqvae.data.workers import at_most_cores, quiet_worker, worker_errors
from hrvqvae.distributed import WHOLE, Part
from hrvqvae.utils.errors import InputError

Sample = tuple[int, Augmentation | None]
Order = Callable[[int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        images: (B, C, Y, X) uint8.
        labels: (B,) int64, zeros where there are no classes.
        broken: messages about the images that are not in it.
        converted: what the files of its images lost, a text for each that lost something.
        fatal: an error that no setting skips.
    """

    images: Tensor
    labels: Tensor
    broken: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    fatal: InputError | None = None


def same_size(sizes: Sequence[tuple[Any, ...]], pixels: int) -> Iterator[list[int]]:
    """Numbers of the images that go through a network together: all of one size, and so many pixels in all at most.

    Args:
        sizes: of each image, its height and width, and what else must be the same.
        pixels: at most, but never less than one image.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, size in enumerate(sizes):
        alike.setdefault(size, []).append(number)
    for (height, width, *_), numbers in alike.items():
        most = max(1, pixels // max(1, height * width))
        yield from (numbers[start : start + most] for start in range(0, len(numbers), most))


class Stream(Sampler[list[Sample]]):
    """The samples of each step from `first_step` on, without end; of several processes, one process's part of each."""

    def __init__(
        self, num_images: int, batch_size: int, seed: int, first_step: int = 0, part: Part = WHOLE,
        order: Order | None = None,
    ) -> None:  # fmt: skip
        """`order` gives that of an epoch by (seed, epoch); without it any is as likely as another."""
        self.num_images, self.batch_size, self.seed, self.first_step = num_images, batch_size, seed, first_step
        self.part, self._order = part, order

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch: a permutation of the image indices."""
        if self._order is not None:
            return self._order(self.seed, epoch)
        return stream("order", self.seed, epoch).permutation(self.num_images)

    def __iter__(self) -> Iterator[list[Sample]]:
        position = self.first_step * self.batch_size
        current, order = -1, np.empty(0, np.int64)
        while True:
            samples: list[Sample] = []
            for place in self.part.of(self.batch_size):
                epoch, within = divmod(position + place, self.num_images)
                if epoch != current:
                    current, order = epoch, self.order(epoch)
                index = int(order[within])
                samples.append((index, (self.seed, epoch, index)))
            position += self.batch_size
            yield samples


@dataclass(frozen=True)
class _Read:
    """An image, or why there is none: an error raised in a worker would arrive wrapped in a traceback."""

    pixels: Tensor | None
    label: int
    broken: tuple[str, ...] = ()
    lost: str = ""
    fatal: InputError | None = None


class _Samples(Dataset[_Read]):
    """Reads samples. In training a broken image gives its place to the next one, so that every batch is full."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, sample: Sample) -> _Read:
        index, augmentation = sample
        broken: tuple[str, ...] = ()
        for _ in range(1 if augmentation is None else len(self.images)):
            try:
                pixels, lost = self.images.decode(index, augmentation)
                return _Read(torch.from_numpy(pixels), int(self.images.labels[index]), broken, lost)
            except BrokenImageError as error:
                broken = (*broken, str(error))
            except InputError as error:
                return _Read(None, 0, broken, fatal=error)
            index = (index + 1) % len(self.images)
        return _Read(None, 0, broken)


def _collate(samples: list[_Read]) -> Batch:
    fatal = next((sample.fatal for sample in samples if sample.fatal), None)
    if fatal:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), fatal=fatal)
    broken = tuple(message for sample in samples for message in sample.broken)
    pixels = [sample.pixels for sample in samples if sample.pixels is not None]
    labels = [sample.label for sample in samples if sample.pixels is not None]
    images = torch.stack(pixels) if pixels else torch.empty(0)
    converted = tuple(sample.lost for sample in samples if sample.lost)
    return Batch(images, torch.tensor(labels, dtype=torch.long), broken, converted)


def _loaded(
    images: ImageSet, sampler: Sampler[list[Sample]], workers: int, on_error: str
) -> Generator[Batch, None, None]:
    loader = DataLoader(
        _Samples(images),
        batch_sampler=sampler,
        collate_fn=_collate,
        worker_init_fn=quiet_worker,
        num_workers=at_most_cores(workers) if images.decodes else 0,
    )
    with worker_errors():
        for batch in loader:
            if batch.fatal:
                raise batch.fatal
            if batch.broken and on_error == "stop":
                raise BrokenImageError(f"{batch.broken[0]}; delete it, or skip such images with --data.on_error skip")
            if batch.converted and not images.conversion_told:
                images.conversion_told = True
                note(f"images are converted ({batch.converted[0]}); this is told once")
            if len(batch.images):
                yield batch
            elif isinstance(sampler, Stream):
                raise InputError(f"all images are broken ({len(images)} of {len(images)}): {batch.broken[0]}")


def batches(
    images: ImageSet, *, batch_size: int, seed: int, first_step: int = 0, workers: int = 0, on_error: str = "stop",
    part: Part = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Training batches from step `first_step` on, without end, augmented. Close it when done: that ends the workers.

    Args:
        batch_size: of all processes together.
        part: of each batch, which one of several processes gets.

    Raises:
        BrokenImageError: an image can't be decoded and `on_error` is "stop". With "skip" the next one takes its place.
        InputError: every image is broken, or the process that decodes them was ended.
    """
    return _loaded(images, Stream(len(images), batch_size, seed, first_step, part, images.order), workers, on_error)


class _InOrder(Sampler[list[Sample]]):
    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices, self.batch_size = indices, batch_size

    def __iter__(self) -> Iterator[list[Sample]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(index, None) for index in self.indices[start : start + self.batch_size]]


def evaluation_batches(
    images: ImageSet, *, batch_size: int, limit: int | None = None, workers: int = 0, on_error: str = "stop",
    part: Part = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Every image once, in order, not augmented. Broken ones are left out; else as `batches`.

    Args:
        limit: only so many, spread evenly over the set: a folder's images are sorted by class.
        part: of these images, which one of several processes gets.
    """
    count = len(images) if limit is None else min(limit, len(images))
    indices = [place * len(images) // count for place in part.of(count)]
    return _loaded(images, _InOrder(indices, batch_size), workers, on_error)
