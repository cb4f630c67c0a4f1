"""From image files and a configuration to the pixels and batches of a split, and what broken input
does.
"""

import os
import sys
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from hrvqvae.config import DataConfig
from hrvqvae.config.parsing import autoencoder_config
from hrvqvae.data.batches import (
    ImageSet,
    evaluation_batches,
    explain_worker_errors,
    sample_stream,
)
from hrvqvae.data.images import decode_image, read_image, to_pil, write_image
from hrvqvae.data.loading import load_images, open_images
from hrvqvae.distributed import RankSlice
from tests.conftest import (
    drawn_digits,
    input_error,
    names_in,
    parametrize,
    run_python,
    write_picture,
)
from tests.data.stored import content, loaded, noise, paths_of

PICTURE = Path("x.png")
SPLITS = ("train", "test")


def pixels_of(images, size, **options):
    return torch.cat(
        [batch.images for batch in evaluation_batches(images, batch_size=size, **options)]
    )


def test_published_sets_are_held_in_memory(mnist_root):
    config = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    images = load_images(config, "train")
    expected, labels = drawn_digits(96, 1)
    assert_array_equal(content(images)[:, 0], expected)
    assert_array_equal(images.labels, labels)
    direct = config.replace(root=str(mnist_root / "mnist"))
    assert len(load_images(direct, "test")) == 40
    for other in (config.replace(channels=3), config.replace(size=28)):
        with input_error(r"mnist has 1 channels of 12x12 pixels; data.channels is"):
            load_images(other, "train")
    with input_error("split is 'val'; it must be train, test or all"):
        load_images(config, "val")


def test_a_root_may_hold_data_sets(picture_folder):
    """In one of them, the folders beside the images are no classes."""
    picture_folder.rename("imagenet")
    write_picture(Path("others/x.png"), 0)
    root = Path.cwd()
    config = autoencoder_config("hrvqvae/imagenet", {"data.root": str(root)})
    assert config.data.dataset == "imagenet"
    assert open_images(config.data, "train").classes == ("cats", "dogs")
    splits = [loaded(root, split, dataset="mine") for split in SPLITS]
    assert sum(map(len, splits)) == 31


@parametrize("workers", [0, 2])
def test_small_folders_are_held_and_large_ones_decoded(workers, picture_folder):
    held = loaded(picture_folder, memory_mb=512, workers=workers)
    decoded = loaded(picture_folder)
    assert decoded.pixels is None
    assert_array_equal(held.pixels, content(decoded))
    assert loaded(picture_folder, memory_mb=512, crop="random").pixels is None


def test_errors_of_workers_are_one_line(picture_folder):
    """Here an image that is gone between listing and reading."""
    images = loaded(picture_folder)
    for path in paths_of(images):
        path.unlink()
    with input_error("No such file") as caught:
        next(iter(evaluation_batches(images, batch_size=4, workers=2)))
    assert "Traceback" not in str(caught.value)


@parametrize("memory_mb", [0, 512])
def test_images_that_are_all_broken_are_refused(memory_mb, picture_folder):
    for path in filter(Path.is_file, picture_folder.rglob("*")):
        path.write_bytes(b"no image")
    with input_error("broken"):
        images = loaded(picture_folder, memory_mb=memory_mb, on_error="skip")
        list(evaluation_batches(images, batch_size=4))


@parametrize("memory_mb", [0, 512])
def test_validation_images_are_cut_from_the_training_split(memory_mb, picture_folder):
    read = partial(loaded, picture_folder, memory_mb=memory_mb)

    def pixels(split, **changes):
        return [image.tobytes() for image in content(read(split, **changes))]

    undivided = pixels("train")
    train, validation = (pixels(split, validation=0.2) for split in SPLITS)
    assert len(validation) == len(undivided) // 5
    assert [image for image in undivided if image not in validation] == train
    assert set(validation) <= set(undivided) - set(pixels("test"))
    with input_error("leaves a split empty"):
        read("test", validation=0.01)


def test_an_epoch_shows_every_image_once():
    samples = [*chain(*islice(sample_stream(10, 4, seed=3), 5))]
    orders = [
        [index for index, augmentation in samples if augmentation[1] == epoch] for epoch in range(2)
    ]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    assert next(iter(sample_stream(10, 4, seed=4))) != samples[:4]


def test_flips_in_memory():
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    images = ImageSet(DataConfig(flip=True), np.zeros(1, np.int64), (), pixels=pixels)
    taken = {images.decode(0, (0, epoch, 0)).tobytes() for epoch in range(20)}
    assert taken == {pixels.tobytes(), pixels[..., ::-1].tobytes()}
    assert_array_equal(images.decode(0, None), pixels[0])


@parametrize("limit", [None, 1, 7, 1000])
def test_a_part_of_a_split_is_spread_over_its_classes(limit, picture_folder):
    images = loaded(picture_folder)
    size = len(images)
    pixels = pixels_of(images, 3, limit=limit)
    count = min(limit or size, size)
    assert len(pixels) == count
    stored = content(images)
    places = [int((stored == image.numpy()).all((1, 2, 3)).argmax()) for image in pixels]
    assert places == [index * size // count for index in range(count)]


def test_a_worker_that_is_ended_from_outside_is_one_line():
    """torch raises this from a signal handler, wherever the main process is: a real kill would hit
    the test runner.
    """
    with input_error(r"was ended, perhaps .*--data.workers 0"), explain_worker_errors():
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="something else"), explain_worker_errors():
        raise RuntimeError("something else")


def test_workers_end_with_the_main_process(picture_folder):
    """Also if they have decoded batches that nobody reads."""
    script = Path("script.py")
    script.write_text(f"""
import os, signal
from hrvqvae.data.batches import batches
from tests.data.stored import loaded

reader = batches(loaded({str(picture_folder)!r}), batch_size=8, seed=0, workers=2)
print(len(next(reader).images), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # it reads until the workers have closed their output
    ended = run_python(str(script), code=-9, env=environment, timeout=60)
    assert ended.stdout.split() == ["8"]


@parametrize("count", [1, 2, 3, 4])
def test_the_slices_of_a_stream_are_the_stream(count):
    """Stopped with two processes, it goes on with any number: no gap, no repeat."""

    def steps(first, count, processes):
        shares = [
            islice(sample_stream(50, 12, 3, first, RankSlice(rank, processes)), count)
            for rank in range(processes)
        ]
        return [[*chain(*samples)] for samples in zip(*shares, strict=True)]

    stream = list(islice(sample_stream(50, 12, seed=3), 9))  # across two ends of an epoch
    assert steps(0, 4, 2) + steps(4, 5, count) == stream


def test_orientation_is_followed():
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("x.jpg", exif=exif)
    assert read_image(Path("x.jpg"), 3).shape == (3, 20, 10)


@parametrize("mode", ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_converted(mode):
    path = Path("x.jpg" if mode == "CMYK" else "x.png")
    write_picture(path, 3, mode=mode)
    with Image.open(path) as image:
        colours = image.convert("RGB")
    for channels, expected in ((3, colours), (1, colours.convert("L"))):
        assert_array_equal(to_pil(decode_image(path, channels)), expected)


def test_transparency_lies_on_white():
    layer = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    layer.putpixel((1, 1), (10, 20, 30, 255))
    layer.save(PICTURE)
    pixels = decode_image(PICTURE, 3)
    assert pixels[:, [0, 1], [0, 1]].T.tolist() == [[255, 255, 255], [10, 20, 30]]

    # grey values of which one is transparent stay grey
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(PICTURE, transparency=9)
    assert decode_image(PICTURE, None).tolist() == [[[7, 255]]]


@parametrize("position, first", [(0.0, 0), (0.5, 75), (1.0, 150)])
def test_crops_are_where_they_are_drawn(position, first):
    gradient = np.tile(np.arange(0, 200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(PICTURE)
    crop = decode_image(PICTURE, 1, size=(50, 50), position=(position, 0.5))
    assert crop.shape == (1, 50, 50)
    assert crop[0, 0, 0] == first


def test_written_images_are_read_back(tmp_path):
    for channels in (1, 3):
        pixels = noise(channels, 5, 7)
        tensor = torch.from_numpy(pixels)
        for image in (pixels, tensor, tensor / 255):
            write_image(to_pil(image), PICTURE)
            assert_array_equal(read_image(PICTURE, channels), pixels)
    with input_error("must end in .png"):
        write_image(to_pil(pixels), Path("x.jpg"))
    assert names_in(tmp_path) == ["x.png"]
