"""The images of a split, and batches of them. Worker processes decode them; the seed alone decides
their order.

The training images form an endless stream, epoch after epoch. Step s takes samples s * batch_size
to (s + 1) * batch_size - 1 of the stream. So a run can resume at step s without further state.
Every random draw depends on its purpose, the seed, the epoch and the index of the image alone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrvqvae.config import DataConfig
from hrvqvae.data.folders import Source
from hrvqvae.data.images import BrokenImageError, Pixels, decode_image
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.progress import note_once

Augmentation = tuple[int, int, int]
"""(seed, epoch, index), on which alone augmentation depends."""
Sample = tuple[int, Augmentation | None]  # index of an image, and its augmentation if any


def make_rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on its purpose and numbers alone."""
    # The count is part of the seed, since numpy gives (seed, epoch) and (seed, epoch, 0) the same
    # generator.
    return np.random.default_rng((zlib.crc32(purpose.encode()), len(numbers), *numbers))


@dataclass(eq=False)
class ImageSet:
    """The images of one split, all of one shape, in a fixed order.

    Attributes:
        labels: (N,), zeros where there are no classes.
        classes: the names of the classes, if any.
        source: where the images are stored; None for a published data set.
        rows: rows of the images in the source. They include images that were broken and skipped
            while the set was loaded into memory; `labels` and `pixels` do not.
        pixels: (N, C, Y, X) uint8; None if the images are not in memory.
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
        """Return a digest of the classes, the labels and the images, including broken images.

        The images of a published set are represented by their pixels, others by `Source.digest`.
        """
        state = hashlib.blake2b(repr(self.classes).encode(), digest_size=16)
        if self.source is None:
            assert self.pixels is not None
            state.update(self.labels.tobytes())
            state.update(np.ascontiguousarray(self.pixels).data)
            return state.hexdigest()

        state.update(self.source.digest(self.rows).encode())
        if self.classes:
            state.update(repr(self.source.labels[self.rows].tolist()).encode())
        return state.hexdigest()

    def decode(self, index: int, augmentation: Augmentation | None) -> Pixels:
        """Return an image, augmented unless `augmentation` is None. Images in memory are never
        cropped at random. Raises as `decode_image`.
        """
        config = self.config
        rng = None
        if augmentation and (config.flip or config.crop == "random"):  # a generator takes 40 us
            rng = make_rng("augmentation", *augmentation)
        if self.pixels is not None:
            pixels: Pixels = self.pixels[index]
        else:
            assert self.source is not None
            row = int(self.rows[index])
            position = (0.5, 0.5)
            if rng and config.crop == "random":
                position = (rng.random(), rng.random())
            pixels = decode_image(
                partial(self.source.open, row),
                config.channels,
                config.max_pixels,
                config.image_size,
                position,
                self.source.where(row),
            )
        if rng and config.flip and rng.random() < 0.5:
            return pixels[..., ::-1]
        return pixels


@dataclass(frozen=True)
class Batch:
    """A batch of images, with messages about their decoding."""

    images: Tensor  # (B, C, Y, X) uint8
    labels: Tensor  # (B,) int64, zeros where there are no classes
    broken: tuple[str, ...] = ()  # a message per image that could not be decoded


def sample_stream(
    num_images: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank_slice: RankSlice = WHOLE,
) -> Iterator[list[Sample]]:
    """Yield the samples of each step without end, from `first_step` on.

    `batch_size` is that of all processes together; with `rank_slice` this process gets its slice.
    """
    permuted_epoch = -1
    for step in itertools.count(first_step):
        samples: list[Sample] = []
        for offset in rank_slice.of(batch_size):
            epoch, position = divmod(step * batch_size + offset, num_images)
            if epoch != permuted_epoch:
                permuted_epoch = epoch
                permutation = make_rng("order", seed, epoch).permutation(num_images)
            index = int(permutation[position])
            samples.append((index, (seed, epoch, index)))
        yield samples


def batches(
    images: ImageSet,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    workers: int = 0,
    rank_slice: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:
    """Yield augmented training batches without end, from step `first_step` on; with `rank_slice` a
    slice of each batch.

    Close the generator to end its worker processes.

    Raises:
        BrokenImageError: an image can't be decoded; with `data.on_error` "skip" the next image
            replaces it instead.
        InputError: every image is broken, or a worker process was killed.
    """
    samples = sample_stream(len(images), batch_size, seed, first_step, rank_slice)
    for batch in read_batches(images, samples, workers, replace=True):
        if not len(batch.images):  # the reader tried every image
            raise InputError(
                f"all images are broken ({len(images)} of {len(images)}): {batch.broken[0]}"
            )
        yield batch


def evaluation_batches(
    images: ImageSet,
    *,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    rank_slice: RankSlice = WHOLE,
) -> Generator[Batch, None, None]:
    """Yield batches of the images in order, without augmentation; with `rank_slice` a slice of the
    images.

    With `limit`, take so many images, evenly spread over the set, since folders are sorted by
    class. Broken images are left out with `data.on_error` "skip", and a note counts them at the
    end. Raises as `read_batches`, or InputError if no image can be read.
    """
    count = len(images) if limit is None else min(limit, len(images))
    indices = [position * len(images) // count for position in rank_slice.of(count)]
    if len(indices) <= batch_size:
        workers = 0  # starting them takes longer
    broken = list[str]()
    for batch in read_batches(images, chunk_samples(indices, batch_size), workers):
        broken += batch.broken
        if len(batch.images):
            yield batch
    if indices and len(broken) == len(indices):
        raise InputError(f"all images are broken ({len(broken):,}): {broken[0]}")
    if broken:
        note_once(f"broken images skipped: {len(broken)} of {len(indices)}, the first: {broken[0]}")


def chunk_samples(indices: Sequence[int], batch_size: int) -> Iterator[list[Sample]]:
    """Yield a list of samples per batch, without augmentation."""
    for batch in slices(indices, batch_size):
        yield [(index, None) for index in batch]


def read_batches(
    images: ImageSet, samples: Iterable[list[Sample]], workers: int, *, replace: bool = False
) -> Generator[Batch, None, None]:
    """Yield a batch per list of samples; the batch is empty if all its images are broken.

    At most one worker process per core decodes images; with 0 this process does. With `replace`,
    the next image replaces a broken image, so that batches stay full; else it is left out.

    Raises:
        BrokenImageError: an image can't be decoded, and `data.on_error` is "stop".
        InputError: a worker process was killed.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    loader: DataLoader[Batch] = DataLoader(
        _BatchReader(images, replace),
        batch_size=None,
        sampler=samples,
        worker_init_fn=_prepare_worker,
        num_workers=min(workers, cores) if images.pixels is None else 0,
    )
    with explain_worker_errors():
        for batch in loader:
            if batch.broken and images.config.on_error == "stop":
                raise BrokenImageError(
                    f"{batch.broken[0]}; leave it out with --on-error skip, or delete it; a"
                    " training goes on with --resume"
                )
            yield batch


@dataclass
class _BatchReader(Dataset[Batch]):
    """Decodes lists of samples; `replace` is as for `read_batches`."""

    images: ImageSet
    replace: bool

    def __getitem__(self, samples: list[Sample]) -> Batch:
        pixels = []
        labels = []
        broken = []
        for index, augmentation in samples:
            # try the image; if it is broken and `replace` is set, try those that follow
            for _ in range(len(self.images) if self.replace else 1):
                try:
                    pixels.append(self.images.decode(index, augmentation))
                # Errors are returned: an error raised in a worker process would reach the user
                # with a traceback.
                except BrokenImageError as error:
                    broken.append(str(error))
                    index = (index + 1) % len(self.images)
                else:
                    labels.append(int(self.images.labels[index]))
                    break
        stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)
        return Batch(stacked, torch.tensor(labels, dtype=torch.long), tuple(broken))


def _prepare_worker(_: int) -> None:
    """Ignore SIGINT always, and the first SIGTERM and SIGHUP.

    A signal that ends a training reaches all of its processes, but the main process needs the
    workers until it has saved. Each handler restores the default at its first signal, so a second
    SIGTERM or SIGHUP ends the worker.
    """

    def ignore_once(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_once)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, ignore_once)


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Raise an InputError in place of torch's RuntimeError for a worker that was killed."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that decodes images was ended, perhaps because memory ran out; decode in"
            " this process: --data.workers 0"
        ) from error
