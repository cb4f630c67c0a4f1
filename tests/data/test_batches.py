"""The order of batches, augmentation, and what is skipped."""

from __future__ import annotations

import os
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import batches, evaluation_batches, sample_stream, worker_errors
from hrvqvae.data.image_sets import ImageSet, stream
from hrvqvae.data.loading import load_images
from hrvqvae.utils.errors import InputError
from tests.data.stored import folder_config


def test_an_epoch_shows_every_image_once() -> None:
    samples = [sample for batch in islice(sample_stream(10, 4, seed=3), 5) for sample in batch]
    for epoch in range(2):
        seen = [index for index, augmentation in samples if augmentation and augmentation[1] == epoch]
        assert sorted(seen) == list(range(10))
    assert [index for index, _ in samples[:10]] != [index for index, _ in samples[10:]]


def test_the_order_does_not_depend_on_where_one_starts() -> None:
    whole = list(islice(sample_stream(10, 4, seed=3), 12))
    for first in range(11):
        assert next(iter(sample_stream(10, 4, seed=3, first_step=first))) == whole[first]
    assert next(iter(sample_stream(10, 4, seed=4))) != whole[0]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(crop: str, picture_folder: Path) -> None:
    images = load_images(folder_config(picture_folder, crop=crop, flip=True, memory_mb=0), "train")
    one, workers = (list(islice(batches(images, batch_size=6, seed=1, workers=count), 10)) for count in (0, 2))
    later = next(batches(images, batch_size=6, seed=1, first_step=7))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, workers, strict=True))
    assert torch.equal(later.images, one[7].images)
    assert len({images.read(0, (1, epoch, 0)).tobytes() for epoch in range(8)}) > 1


def test_flips_in_memory() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    images = ImageSet(DataConfig(flip=True), np.zeros(1, np.int64), (), pixels=pixels)
    seen = {images.read(0, (0, epoch, 0)).tobytes() for epoch in range(20)}
    assert seen == {pixels[0].tobytes(), pixels[0][..., ::-1].tobytes()}
    np.testing.assert_array_equal(images.read(0, None), pixels[0])


def test_every_stream_is_its_own() -> None:
    """A number more, another number and another purpose are other streams; numpy takes (3, 1) and (3, 1, 0) for one."""
    numbers = ((), (0,), (3,), (3, 1), (1, 3), (3, 1, 0), (3, 1, 0, 0), (2**31, 1))
    drawn = {stream(purpose, *some).bytes(16) for purpose in ("order", "augmentation") for some in numbers}
    assert len(drawn) == 2 * len(numbers)


# Evaluation


@pytest.mark.parametrize("limit", [None, 1, 7, 1000])
def test_a_part_of_a_split_is_spread_over_its_classes(limit: int | None, picture_folder: Path) -> None:
    images = load_images(folder_config(picture_folder), "train")
    seen = list(evaluation_batches(images, batch_size=3, limit=limit))
    pixels = torch.cat([batch.images for batch in seen])
    count = len(images) if limit is None else min(limit, len(images))
    assert len(pixels) == count
    whole = np.stack([images.read(index, None) for index in range(len(images))])
    places = [int(np.flatnonzero((whole == one.numpy()).all((1, 2, 3)))[0]) for one in pixels]
    assert places[0] == 0
    assert all(0 < after - before <= -(-len(images) // count) for before, after in pairwise([*places, len(images)]))


# Workers, broken and converted images


def test_one_core_gets_one_worker(picture_folder: Path) -> None:
    """torch warns of more, and a warning is an error here; the images are the same."""
    cores = os.sched_getaffinity(0)
    images = load_images(folder_config(picture_folder, memory_mb=0), "train")
    expected = list(evaluation_batches(images, batch_size=7))
    os.sched_setaffinity(0, {min(cores)})
    try:
        found = list(evaluation_batches(images, batch_size=7, workers=3))
    finally:
        os.sched_setaffinity(0, cores)
    assert all(torch.equal(one.images, other.images) for one, other in zip(found, expected, strict=True))


def test_a_worker_that_is_ended_from_outside_is_one_line() -> None:
    """torch raises this from a signal handler, wherever the main process is: a real kill would hit the test runner."""
    with pytest.raises(InputError, match=r"ended from outside.*--data.workers 0"), worker_errors():
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="something else"), worker_errors():
        raise RuntimeError("something else")


@pytest.mark.parametrize("workers", [0, 2])
def test_conversion_is_told_once(workers: int, picture_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = load_images(folder_config(picture_folder, channels=1, crop="random"), "train")
    first = list(islice(batches(images, batch_size=8, seed=0, workers=workers), 5))
    assert [len(batch.lost) for batch in first] == [8] * 5
    assert all(batch.images.shape == (8, 1, 16, 16) for batch in first)
    list(evaluation_batches(images, batch_size=8))
    assert caplog.messages == ["images are converted (colour to greyscale); this is told once"]
