"""Batches in an order that depends on (seed, epoch, index) alone, decoded by worker processes.

The training images form an endless stream, epoch after epoch. Step s takes the samples s * batch to (s + 1) * batch - 1
of it, so a run that resumes at step s needs to remember nothing else.
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
    """A batch of images, with messages about its decoding."""

    images: Tensor  # (B, C, Y, X) uint8
    labels: Tensor  # (B,) int64, zeros where there are no classes
    broken: tuple[str, ...] = ()  # messages about the images that were left out
    lost: tuple[str, ...] = ()  # what the conversion of images lost
    fatal: InputError | None = None  # an error that no setting skips


def group_by_size(sizes: Sequence[tuple[Any, ...]], pixels: int) -> Iterator[list[int]]:
    """Yield the indices of images of equal size, in groups of at most `pixels` pixels; a larger image is alone.

    `sizes` are the height and width of each image, and further values that must be equal in a group.
    """
    by_size: dict[tuple[Any, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    for (height, width, *_), indices in by_size.items():
        yield from chunk_by_size(indices, lambda _, area=height * width: area, pixels)  # type: ignore[misc]


def sample_stream(
    num_images: int, batch_size: int, seed: int, first_step: int = 0, rank_slice: RankSlice = WHOLE,
    order: Order | None = None,
) -> Iterator[list[Sample]]:  # fmt: skip
    """Yield the samples of each step from `first_step` on, without end, or this process's slice of them.

    `order` returns the permutation of the images by (seed, epoch); by default it is uniformly random.
    """
    current, indices = -1, np.empty(0, np.int64)
    for step in itertools.count(first_step):
        samples: list[Sample] = []
        for place in rank_slice.of(batch_size):
            epoch, within = divmod(step * batch_size + place, num_images)
            if epoch != current:
                current = epoch
                indices = order(seed, epoch) if order else make_rng("order", seed, epoch).permutation(num_images)
            index = int(indices[within])
            samples.append((index, (seed, epoch, index)))
        yield samples


def batches(
    images: ImageSet, *, batch_size: int, seed: int, first_step: int = 0, workers: int = 0,
    rank_slice: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Yield augmented training batches from step `first_step` on, without end; closing it ends the workers.

    Args:
        batch_size: images of a batch, in all processes together.
        rank_slice: the slice of each batch that this process reads.

    Raises:
        BrokenImageError: an image can't be decoded; with `data.on_error` "skip" the next image takes its place.
        InputError: every image is broken, or the process that decodes them was ended.
    """
    samples = sample_stream(len(images), batch_size, seed, first_step, rank_slice, images.order)
    for batch in read_batches(images, samples, workers):
        if not len(batch.images):
            raise InputError(f"all images are broken ({len(images)} of {len(images)}): {batch.broken[0]}")
        yield batch


def evaluation_batches(
    images: ImageSet, *, batch_size: int, limit: int | None = None, workers: int = 0,
    rank_slice: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:  # fmt: skip
    """Yield every image that can be decoded once, in order, not augmented, or this process's slice of them.

    `limit` images are spread evenly over the set, since folders are sorted by class. Raises as `batches`.
    """
    count = len(images) if limit is None else min(limit, len(images))
    indices = [place * len(images) // count for place in rank_slice.of(count)]
    for batch in read_batches(images, chunk_samples(indices, batch_size), workers):
        if len(batch.images):
            yield batch


def chunk_samples(indices: Sequence[int], batch_size: int) -> Iterator[list[Sample]]:
    """Yield the samples of batches of these images, not augmented."""
    for start in range(0, len(indices), batch_size):
        yield [(index, None) for index in indices[start : start + batch_size]]


def read_batches(images: ImageSet, samples: Iterable[list[Sample]], workers: int) -> Generator[Batch, None, None]:
    """Yield a batch per list of samples, empty if all its images are broken. Raises as `batches`."""
    loader = open_loader(_BatchReader(images), samples, workers if images.pixels is None else 0)
    with explain_worker_errors():
        for batch in loader:
            if batch.fatal:
                raise batch.fatal
            if batch.broken and images.config.on_error == "stop":
                raise BrokenImageError(f"{batch.broken[0]}; delete it, or skip such images with --data.on_error skip")
            if batch.lost:
                told_once(f"images are converted ({batch.lost[0]}); this is told once")
            yield batch


class _BatchReader(Dataset[Batch]):
    """Reads batches. In training the next image replaces a broken image, so that every batch is full."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, samples: list[Sample]) -> Batch:
        pixels, labels = list[NDArray[np.uint8]](), list[int]()
        broken, losses = list[str](), list[str]()
        for index, augmentation in samples:
            for _ in range(1 if augmentation is None else len(self.images)):
                try:
                    image, lost = self.images.decode(index, augmentation)
                except BrokenImageError as error:  # returned, since a worker would raise it with a traceback
                    broken.append(str(error))
                    index = (index + 1) % len(self.images)
                    continue
                except InputError as error:
                    return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), fatal=error)
                pixels.append(image)
                labels.append(int(self.images.labels[index]))
                losses += [lost] if lost else []
                break
        stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)
        return Batch(stacked, torch.tensor(labels, dtype=torch.long), tuple(broken), tuple(losses))


def open_loader(dataset: Dataset[T], samples: Iterable[Any], workers: int, *, keep: bool = False) -> DataLoader[T]:
    """Return a loader of the items of a data set for the samples, in order.

    Args:
        dataset: The data set.
        samples: What it is indexed by.
        workers: Processes that read, at most one per core.
        keep: Whether the processes stay when all samples are read, for the next time that the loader is iterated.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return DataLoader(
        dataset, batch_size=None, sampler=samples, collate_fn=_return_unchanged, worker_init_fn=_ignore_signals,
        num_workers=min(workers, cores), persistent_workers=keep and workers > 0,
    )  # fmt: skip


def _return_unchanged(value: Any) -> Any:
    return value


def _ignore_signals(_: int) -> None:
    """Leave a signal to the process group to the main process, which ends its workers after it has saved."""

    def ignore_once(signum: int, _: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), ignore_once)


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Turn the RuntimeError of torch for a killed worker into an InputError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        fault = "a process that decodes images was ended from outside, perhaps for want of memory"
        raise InputError(f"{fault}; try fewer with --data.workers 0") from error
