"""From image files and a configuration to the pixels and batches of a split, and what broken input
does.
"""

import dataclasses
import os
import struct
import subprocess
import sys
import zlib
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import (
    ImageSet,
    batches,
    evaluation_batches,
    explain_worker_errors,
    make_rng,
    sample_stream,
)
from hrvqvae.data.images import BrokenImageError, decode_image, read_image, to_pil, write_image
from hrvqvae.data.loading import find_data_root, load_images
from hrvqvae.distributed import RankSlice
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import told_once
from tests.conftest import drawn_digits, same, write_picture
from tests.data.stored import content, loaded, paths_of


def test_published_sets_are_held_in_memory(mnist_root: Path) -> None:
    config = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    images = load_images(config, "train")
    expected, labels = drawn_digits(96, 1)
    np.testing.assert_array_equal(content(images)[:, 0], expected)
    np.testing.assert_array_equal(images.labels, labels)
    direct = load_images(dataclasses.replace(config, root=str(mnist_root / "mnist")), "test")
    assert len(direct) == 40
    for fields in ({"channels": 3}, {"size": 28}):
        with pytest.raises(
            InputError, match=r"mnist has 1 channels of 12x12 pixels; data.channels is"
        ):
            load_images(dataclasses.replace(config, **fields), "train")


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="get it with: hrvqvae data get mnist"):
        load_images(DataConfig(dataset="mnist", root=str(tmp_path)), "train")
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path))
    with pytest.raises(InputError, match="imagenet is class folders"):
        load_images(DataConfig(dataset="imagenet", channels=3), "train")
    with pytest.raises(
        InputError, match=r"no folder .*/pets; name it with --data DIR, or take one of mnist, "
    ):
        load_images(DataConfig(dataset="pets", channels=3), "train")


def test_root_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "variable"))
    assert find_data_root("given") == Path("given")
    assert find_data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("HRVQVAE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_data_root(None).name == "hrvqvae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as in a container whose user has no name
    with pytest.raises(InputError, match="HOME is not set: .*HRVQVAE_DATA"):
        find_data_root(None)
    with pytest.raises(InputError, match="give a path without ~"):
        find_data_root("~/images")


def test_a_root_that_is_given_is_all_of_it(picture_folder: Path) -> None:
    """Also where a folder in it has the name of the preset's data set."""
    (picture_folder / "cats").rename(picture_folder / "photos")
    splits = [loaded(picture_folder, split, dataset="photos") for split in ("train", "test")]
    assert sum(map(len, splits)) == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_small_folders_are_held_and_large_ones_decoded(workers: int, picture_folder: Path) -> None:
    held = loaded(picture_folder, memory_mb=512, workers=workers)
    decoded = loaded(picture_folder)
    assert decoded.pixels is None
    np.testing.assert_array_equal(held.pixels, content(decoded))
    assert loaded(picture_folder, memory_mb=512, crop="random").pixels is None


def test_errors_of_workers_are_one_line(picture_folder: Path) -> None:
    """An error that no setting skips: here an image that is gone between listing and reading."""
    images = loaded(picture_folder)
    for path in paths_of(images):
        path.unlink()
    with pytest.raises(InputError, match="there is no such image") as caught:
        next(iter(evaluation_batches(images, batch_size=4, workers=2)))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("memory_mb", [0, 512])
def test_validation_images_are_cut_from_the_training_split(
    memory_mb: int, picture_folder: Path
) -> None:
    read = partial(loaded, picture_folder, memory_mb=memory_mb)

    def pixels(split: str, **changes: object) -> list[bytes]:
        return [image.tobytes() for image in content(read(split, **changes))]

    whole = pixels("train")
    train, validation = (pixels(split, validation=0.2) for split in ("train", "test"))
    assert len(validation) == len(whole) // 5
    assert [image for image in whole if image not in validation] == train
    assert set(validation) <= set(whole)
    assert not set(validation) & set(pixels("test"))
    with pytest.raises(InputError, match="leaves a split empty"):
        read("test", validation=0.01)
    paths_of(loaded(picture_folder))[0].write_bytes(b"no image")
    counts = [len(read(split, validation=0.2, on_error="skip")) for split in ("train", "test")]
    assert counts == [
        len(train) - bool(memory_mb),
        len(validation),
    ], "left out when decoded, of the same images"


def test_an_epoch_shows_every_image_once() -> None:
    samples = [sample for batch in islice(sample_stream(10, 4, seed=3), 5) for sample in batch]
    for epoch in range(2):
        seen = [
            index for index, augmentation in samples if augmentation and augmentation[1] == epoch
        ]
        assert sorted(seen) == list(range(10))
    assert [index for index, _ in samples[:10]] != [index for index, _ in samples[10:]]
    assert next(iter(sample_stream(10, 4, seed=4))) != samples[:4]


def test_flips_in_memory() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    images = ImageSet(DataConfig(flip=True), np.zeros(1, np.int64), (), pixels=pixels)
    taken = [images.take([(0, (0, epoch, 0))]).images[0].numpy() for epoch in range(20)]
    seen = {image.tobytes() for image in taken}
    assert seen == {pixels[0].tobytes(), pixels[0][..., ::-1].tobytes()}
    np.testing.assert_array_equal(images.take([(0, None)]).images[0], pixels[0])


def test_images_in_memory_draw_nothing_without_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
    images = ImageSet(DataConfig(), np.arange(4), (), pixels=pixels)
    monkeypatch.delattr("hrvqvae.data.batches.make_rng")  # a generator per image was the time
    batch = images.take([(2, (0, 0, 0)), (0, (0, 0, 1)), (2, None)])
    np.testing.assert_array_equal(batch.images, pixels[[2, 0, 2]])
    assert batch.labels.tolist() == [2, 0, 2]


def test_every_stream_is_its_own() -> None:
    seeds = ((), (0,), (3,), (3, 1), (1, 3), (3, 1, 0), (3, 1, 0, 0), (2**31, 1))
    drawn = {
        make_rng(purpose, *seed).bytes(16)
        for purpose in ("order", "augmentation")
        for seed in seeds
    }
    assert len(drawn) == 2 * len(seeds)


@pytest.mark.parametrize("limit", [None, 1, 7, 1000])
def test_a_part_of_a_split_is_spread_over_its_classes(
    limit: int | None, picture_folder: Path
) -> None:
    images = loaded(picture_folder)
    seen = list(evaluation_batches(images, batch_size=3, limit=limit))
    pixels = torch.cat([batch.images for batch in seen])
    count = len(images) if limit is None else min(limit, len(images))
    assert len(pixels) == count
    whole = content(images)
    places = [int(np.flatnonzero((whole == image.numpy()).all((1, 2, 3)))[0]) for image in pixels]
    assert places[0] == 0
    assert all(
        0 < after - before <= -(-len(images) // count)
        for before, after in pairwise([*places, len(images)])
    )


def test_one_core_gets_one_worker(picture_folder: Path) -> None:
    """torch warns of more, and a warning is an error here; the images are the same."""
    cores = os.sched_getaffinity(0)
    images = loaded(picture_folder)
    expected = list(evaluation_batches(images, batch_size=7))
    os.sched_setaffinity(0, {min(cores)})
    try:
        decoded = list(evaluation_batches(images, batch_size=7, workers=3))
    finally:
        os.sched_setaffinity(0, cores)
    assert same([batch.images for batch in decoded], [batch.images for batch in expected])


def test_a_worker_that_is_ended_from_outside_is_one_line() -> None:
    """torch raises this from a signal handler, wherever the main process is: a real kill would hit
    the test runner.
    """
    with (
        pytest.raises(InputError, match=r"was ended, perhaps .*--data.workers 0"),
        explain_worker_errors(),
    ):
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="something else"), explain_worker_errors():
        raise RuntimeError("something else")


def test_a_script_without_a_guard_is_told_what_to_do(picture_folder: Path, tmp_path: Path) -> None:
    """Where workers are not forked, each runs the script again."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import open_images
from tests.data.stored import folder_config
images = open_images(folder_config({str(picture_folder)!r}), "train")
list(evaluation_batches(images, batch_size=4, workers=1))
""")
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path.cwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    advice = 'below if __name__ == "__main__":, or decode in this process: --data.workers 0'
    assert done.stderr.count(advice) == 2, "in the worker, and last in the script"
    assert advice in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_conversion_is_told_once(
    workers: int, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told_once.cache_clear()
    images = loaded(picture_folder, channels=1, crop="random")
    first = list(islice(batches(images, batch_size=8, seed=0, workers=workers), 5))
    assert [len(batch.lost) for batch in first] == [8] * 5
    assert all(batch.images.shape == (8, 1, 16, 16) for batch in first)
    list(evaluation_batches(images, batch_size=8))
    assert caplog.messages[1:] == ["images are converted (colour to greyscale); this is told once"]


@given(st.integers(0, 1000), st.integers(1, 20))
def test_slices_are_disjoint_and_in_order(total: int, count: int) -> None:
    slices = [RankSlice(rank, count).of(total) for rank in range(count)]
    assert [*chain(*slices)] == list(range(total))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_slices_of_a_stream_are_the_stream(count: int) -> None:
    """Stopped with two processes, it goes on with any number: no gap, no repeat."""
    whole = list(islice(sample_stream(50, 12, seed=3), 9))  # across two ends of an epoch
    before = [list(islice(sample_stream(50, 12, 3, 0, RankSlice(rank, 2)), 4)) for rank in range(2)]
    after = [
        list(islice(sample_stream(50, 12, 3, 4, RankSlice(rank, count)), 5))
        for rank in range(count)
    ]
    steps = [
        [*chain(*samples)] for shares in (before, after) for samples in zip(*shares, strict=True)
    ]
    assert steps == whole


def test_other_formats_are_refused_whatever_their_name(tmp_path: Path) -> None:
    for suffix in ("gif", "bmp", "tiff"):
        write_picture(tmp_path / f"x.{suffix}", 1)
        path = (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
        with pytest.raises(BrokenImageError, match=r"x\.png is not a readable PNG, JPEG or WebP"):
            read_image(path, 3)


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "x.png", 1)
    monkeypatch.setattr(Image.Image, "load", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        read_image(tmp_path / "x.png", 3)


def test_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 3).shape == (3, 20, 10)
    for suffix in ("png", "webp"):
        image.save(tmp_path / f"x.{suffix}", exif=b"Exif\0\0no header of TIFF")
        assert decode_image(tmp_path / f"x.{suffix}", 3).lost == "orientation", (
            "the pixels are whole"
        )


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted_and_what_is_lost_is_told(
    mode: str, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    write_picture(path, 3, mode=mode)
    with Image.open(path) as image:
        as_rgb = image.convert("RGB")
        expected = np.array(as_rgb if channels == 3 else as_rgb.convert("L"))
    pixels, lost = decode_image(path, channels)
    assert pixels.shape == (channels, 30, 40)
    np.testing.assert_array_equal(
        pixels, expected.transpose(2, 0, 1) if channels == 3 else expected[None]
    )
    inks = mode == "CMYK"
    grey = channels == 1 and mode in ("P", "RGB", "RGBA", "CMYK")
    assert lost == ", ".join(["CMYK to RGB"] * inks + ["colour to greyscale"] * grey)
    if mode == "L":
        image.convert("RGB").save(path)
        assert decode_image(path, 1).lost == "", "grey written as colour loses nothing"


def test_what_is_lost_is_told(tmp_path: Path) -> None:
    """Transparency lies on white, 16 bits are rounded to 8, and of several frames the first is
    taken.
    """
    layer = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    layer.putpixel((1, 1), (10, 20, 30, 255))
    layer.save(tmp_path / "x.png")
    pixels, lost = decode_image(tmp_path / "x.png", 3)
    assert pixels[:, [0, 1], [0, 1]].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    assert lost == "transparency to white"
    assert decode_image(tmp_path / "x.png", 1).lost == "transparency to white, colour to greyscale"
    Image.fromarray(np.array([[0, 257 * 200, 257 * 100 + 200, 65535]], np.uint16)).save(
        tmp_path / "x.png"
    )
    pixels, lost = decode_image(tmp_path / "x.png", 1)
    assert (pixels.tolist(), lost) == ([[[0, 200, 101, 255]]], "16 bits to 8")
    Image.fromarray(np.array([[0, 257 * 9, 257 * 9 + 1]], np.uint16)).save(
        tmp_path / "x.png", transparency=257 * 9
    )
    pixels, lost = decode_image(tmp_path / "x.png", 1)
    assert (pixels.tolist(), lost) == ([[[0, 255, 9]]], "16 bits to 8, transparency to white")
    (tmp_path / "rgb.png").write_bytes(_rgb16())
    assert decode_image(tmp_path / "rgb.png", 3).lost == "16 bits to 8"
    for name in ("x.png", "x.webp"):
        more = [Image.new("RGB", (4, 4), "blue")]
        Image.new("RGB", (4, 4), "red").save(
            tmp_path / name, save_all=True, append_images=more, lossless=True
        )
        pixels, lost = decode_image(tmp_path / name, 3)
        assert (pixels[:, 0, 0].tolist(), lost) == ([255, 0, 0], "further frames")


def _rgb16() -> bytes:
    """Return a PNG of a pixel of 3 x 16 bits, which Pillow can't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" + b"\1\2" * 3))
        + chunk(b"IEND", b"")
    )


def test_crops_are_where_they_are_drawn(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(0, 200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(tmp_path / "x.png")
    crops = [
        decode_image(tmp_path / "x.png", 1, size=(50, 50), position=(x, 0.5)).pixels
        for x in (0.0, 0.5, 1.0)
    ]
    assert [int(crop[0, 0, 0]) for crop in crops] == [0, 75, 150]
    assert all(crop.shape == (1, 50, 50) for crop in crops)
    Image.new("L", (1, 60_000), 7).save(tmp_path / "x.png")
    pixels = decode_image(tmp_path / "x.png", 1, size=(256, 256)).pixels
    assert pixels.shape == (1, 256, 256)
    assert (pixels == 7).all(), "it is cropped before it is resized"


def test_written_images_are_read_back(tmp_path: Path) -> None:
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
        for image in (pixels, torch.from_numpy(pixels), torch.from_numpy(pixels) / 255):
            write_image(to_pil(image), tmp_path / "x.png")
            np.testing.assert_array_equal(read_image(tmp_path / "x.png", channels), pixels)
    with pytest.raises(InputError, match="must end in .png"):
        write_image(to_pil(pixels), tmp_path / "x.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
