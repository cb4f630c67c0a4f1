"""Batches in an order that depends on (seed, epoch, index) alone, decoded by processes beside the one that computes.

The training images form one endless stream, epoch after epoch. Step s takes the samples s * batch ... (s + 1) * batch -
1 of it, so a run that resumes at step s needs to remember nothing else.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrvqvae.data.image_sets import Augmentation, ImageSet, chunk_by_size, make_rng
from hrvqvae.data.images import BrokenImageError
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import told_once

Sample = tuple[int, Augmentation | None]
Order = Callable[[int, int], NDArray[np.int64]]
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One batch."""

    images: Tensor  # (B, C, Y, X) uint8
    labels: Tensor  # (B,) int64, zeros where there are no classes
    broken: tuple[str, ...] = ()  # messages about the images that are not in it
    lost: tuple[str, ...] = ()  # what the conversion of images lost
    fatal: InputError | None = None  # an error that no setting skips


def group_by_size(sizes: Sequence[tuple[Any, ...]], pixels: int) -> Iterator[list[int]]:
    """Numbers of the images that go through a network together: of one size, and of at most so many pixels in all.

    Args:
        sizes: of each image, its height and width, and what else must be the same.
        pixels: in all; an image that has more is alone.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, size in enumerate(sizes):
        alike.setdefault(size, []).append(number)
    for (height, width, *_), numbers in alike.items():
        yield from chunk_by_size(numbers, lambda _, area=height * width: area, pixels)  # type: ignore[misc]


def sample_stream(
    num_images: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    part: RankSlice = WHOLE,
    order: Order | None = None,
) -> Iterator[list[Sample]]:
    """The samples of each step from `first_step` on, without end; of several processes, one process's part of each.

    `order` gives the permutation of the images in an epoch by (seed, epoch); by default each is as likely.
    """
    current, indices = -1, np.empty(0, np.int64)
    for step in itertools.count(first_step):
        samples: list[Sample] = []
        for place in part.of(batch_size):
            epoch, within = divmod(step * batch_size + place, num_images)
            if epoch != current:
                current = epoch
                indices = order(seed, epoch) if order else make_rng("order", seed, epoch).permutation(num_images)
            index = int(indices[within])
            samples.append((index, (seed, epoch, index)))
        yield samples


def batches(
    images: ImageSet, *, batch_size: int, seed: int, first_step: int = 0, workers: int = 0,
    part: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Training batches from step `first_step` on, without end, augmented. Close it when done: that ends the workers.

    Args:
        batch_size: of all processes together.
        part: of each batch, which one of several processes gets.

    Raises:
        BrokenImageError: an image can't be decoded; where `data.on_error` is "skip", the next one takes its place.
        InputError: every image is broken, or the process that decodes them was ended.
    """
    samples = sample_stream(len(images), batch_size, seed, first_step, part, images.order)
    for batch in read_batches(images, samples, workers):
        if not len(batch.images):
            raise InputError(f"all images are broken ({len(images)} of {len(images)}): {batch.broken[0]}")
        yield batch


def evaluation_batches(
    images: ImageSet, *, batch_size: int, limit: int | None = None, workers: int = 0,
    part: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Every image once, in order, not augmented. Broken ones are left out; else as `batches`.

    Args:
        limit: only so many, spread evenly over the set: a folder's images are sorted by class.
        part: of these images, which one of several processes gets.
    """
    count = len(images) if limit is None else min(limit, len(images))
    indices = [place * len(images) // count for place in part.of(count)]
    for batch in read_batches(images, chunk_samples(indices, batch_size), workers):
        if len(batch.images):
            yield batch


def chunk_samples(indices: Sequence[int], batch_size: int) -> Iterator[list[Sample]]:
    """The samples of batches of these images as they are."""
    for start in range(0, len(indices), batch_size):
        yield [(index, None) for index in indices[start : start + batch_size]]


def read_batches(images: ImageSet, samples: Iterable[list[Sample]], workers: int) -> Generator[Batch, None, None]:
    """A batch for each list of samples, empty where all its images are broken. Raises as `batches` does."""
    for batch in map_in_workers(_BatchReader(images), samples, workers if images.pixels is None else 0):
        if batch.fatal:
            raise batch.fatal
        if batch.broken and images.config.on_error == "stop":
            raise BrokenImageError(f"{batch.broken[0]}; delete it, or skip such images with --data.on_error skip")
        if batch.lost:
            told_once(f"images are converted ({batch.lost[0]}); this is told once")
        yield batch


class _BatchReader(Dataset[Batch]):
    """Reads batches. In training a broken image gives its place to the next one, so that every batch is full."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, samples: list[Sample]) -> Batch:
        pixels, labels = list[NDArray[np.uint8]](), list[int]()
        broken, losses = list[str](), list[str]()
        for index, augmentation in samples:
            for _ in range(1 if augmentation is None else len(self.images)):
                try:
                    found, lost = self.images.decode(index, augmentation)
                except BrokenImageError as error:  # as values: raised in a worker they would arrive in a traceback
                    broken.append(str(error))
                    index = (index + 1) % len(self.images)
                    continue
                except InputError as error:
                    return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), fatal=error)
                pixels.append(found)
                labels.append(int(self.images.labels[index]))
                losses += [lost] if lost else []
                break
        stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)
        return Batch(stacked, torch.tensor(labels, dtype=torch.long), tuple(broken), tuple(losses))


# The processes that decode


def map_in_workers(dataset: Dataset[T], samples: Iterable[Any], workers: int) -> Iterator[T]:
    """What a data set gives for each of the samples, in their order, decoded by at most as many processes as cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loader = DataLoader(
        dataset, batch_size=None, sampler=samples, collate_fn=_return_unchanged, worker_init_fn=_ignore_signals,
        num_workers=min(workers, cores),
    )  # fmt: skip
    with explain_worker_errors():
        yield from loader


def _return_unchanged(value: Any) -> Any:
    return value


def _ignore_signals(_: int) -> None:
    """Let the main process alone answer a signal to the whole group: it ends its workers when it has saved."""

    def once(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), once)


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Raises InputError where a worker was ended from outside, for which torch has a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that decodes images was ended from outside, perhaps for want of memory; "
            "try fewer with --data.workers 0"
        ) from error
