"""Images from files and folders, the split, the order of batches, and what broken input does."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrvqvae import data
from hrvqvae.config import DataConfig
from hrvqvae.data import fetch, files
from hrvqvae.data.batches import Stream
from hrvqvae.data.images import BrokenImageError, list_folder, read_image, read_square, split_names
from hrvqvae.data.sources import MemoryImages, data_root
from hrvqvae.data.workers import told_plainly
from hrvqvae.errors import DamagedFileError, InputError
from tests.conftest import drawn_digits, write_mnist, write_picture


def folder_config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(
        **{"dataset": "pictures", "root": str(folder), "size": 16, "channels": 3, "workers": 0, **changes}
    )  # type: ignore[arg-type]


# Files


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_idx_round_trip(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    (tmp_path / "a.gz").write_bytes(files.gzip_bytes(files.idx_bytes(array)))
    (tmp_path / "b").write_bytes(files.idx_bytes(array))
    for name in ("a.gz", "b"):
        np.testing.assert_array_equal(files.read_idx(tmp_path / name), array)


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    whole = files.gzip_bytes(files.idx_bytes(np.zeros((5, 4, 4), np.uint8)))
    inside = gzip.decompress(whole)
    for content in (whole[:30], b"", files.gzip_bytes(inside[:-1]), files.gzip_bytes(b"\0\0\x09" + inside[3:])):
        path = tmp_path / "images.gz"
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"images\.gz"):
            files.read_idx(path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must never run",))


def test_pickles_may_hold_arrays_alone(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}
    for protocol in (0, 2, 4):
        read = files.read_arrays(pickle.dumps(good, protocol))
        np.testing.assert_array_equal(read["data"], good["data"])
        assert read["labels"] == [1, 2]
        with pytest.raises(DamagedFileError, match=r"builtins\.print|__builtin__\.print"):
            files.read_arrays(pickle.dumps({"data": _Evil()}, protocol))
    with pytest.raises(DamagedFileError):
        files.read_arrays(pickle.dumps(good)[:20])
    assert capsys.readouterr().out == ""


# Images


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_admitted_formats(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    write_picture(path, 1, (31, 20))
    assert read_image(path, 3).shape == (3, 20, 31)


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tiff"])
def test_other_formats_are_refused_whatever_their_name(suffix: str, tmp_path: Path) -> None:
    write_picture(tmp_path / f"x.{suffix}", 1)
    path = (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    with pytest.raises(BrokenImageError, match=r"x\.png is not a readable PNG, JPEG or WebP"):
        read_image(path, 3)


def test_pixels_are_counted_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    write_picture(path, 1, (40, 30))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BrokenImageError, match=r"40x30 pixels; data\.max_pixels admits 1000"):
        read_image(path, 3, max_pixels=1_000)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    layer.putpixel((1, 1), (10, 20, 30, 255))
    layer.save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", 3)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 1, 1].tolist() == [10, 20, 30]


def test_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 3).shape == (3, 20, 10)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    write_picture(path, 3, mode=mode)
    assert read_image(path, 3).shape == (3, 30, 40)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 1).tolist() == [[[0, 100, 255]]]


def test_colours_never_become_grey_silently(tmp_path: Path) -> None:
    write_picture(tmp_path / "colour.png", 1)
    Image.new("RGB", (5, 5), (9, 9, 9)).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match=r"colour\.png has 3 channels \(colour\); 1 is expected"):
        read_image(tmp_path / "colour.png", 1)
    assert read_image(tmp_path / "grey.png", 1).tolist() == [[[9] * 5] * 5]


def test_crops_are_where_they_are_drawn(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(0, 200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(tmp_path / "x.png")
    crops = [read_square(tmp_path / "x.png", 1, 50, 10**6, (place, 0.5)) for place in (0.0, 0.5, 1.0)]
    assert [int(crop[0, 0, 0]) for crop in crops] == [0, 75, 150]
    assert all(crop.shape == (1, 50, 50) for crop in crops)
    assert read_square(tmp_path / "x.png", 1, 25, 10**6).shape == (1, 25, 25)


# Folders


def test_split_is_by_name_and_the_same_everywhere() -> None:
    names = [f"class/{index:04d}.png" for index in range(1000)]
    train, test = split_names(names, 0.1)
    assert sorted(train + test) == names
    assert 70 < len(test) < 130
    assert test[:5] == ["class/0001.png", "class/0002.png", "class/0003.png", "class/0006.png", "class/0008.png"]
    more = split_names([*names, "class/new.png"], 0.1)
    assert set(test) - {"class/new.png"} == set(more[1]) - {"class/new.png"}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_split_is_empty(count: int) -> None:
    for start in range(50):
        train, test = split_names([f"{start}-{index}.png" for index in range(count)], 0.1)
        assert train
        assert test


def test_class_folders(picture_folder: Path) -> None:
    train = list_folder(picture_folder, "train", test_fraction=0.2, first=0, labels=True)
    test = list_folder(picture_folder, "test", test_fraction=0.2, first=0, labels=True)
    assert train.classes == test.classes == ("cats", "dogs")
    assert len(train.paths) + len(test.paths) == 30
    assert not set(train.paths) & set(test.paths)
    for listing in (train, test):
        assert all(path.parent.name == listing.classes[label] for path, label in zip(listing.paths, listing.labels))  # noqa: B905
    assert list_folder(picture_folder, "train", test_fraction=0.2, first=0, labels=False).classes == ()


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_given_split(held_out: str, tmp_path: Path) -> None:
    for index, split in enumerate(["train"] * 3 + [held_out] * 2):
        write_picture(tmp_path / split / "a" / f"{index}.png", index)
    found = {
        split: list_folder(tmp_path, split, test_fraction=0.5, first=0, labels=True) for split in ("train", "test")
    }
    assert [path.name for path in found["train"].paths] == ["0.png", "1.png", "2.png"]
    assert [path.name for path in found["test"].paths] == ["3.png", "4.png"]
    assert found["test"].classes == ("a",)


def test_sorted_split_takes_the_first_names(tmp_path: Path) -> None:
    for index in range(5):
        write_picture(tmp_path / f"{index:05d}.png", index)
    found = list_folder(tmp_path, "train", test_fraction=0.1, first=3, labels=False)
    assert [path.name for path in found.paths] == ["00000.png", "00001.png", "00002.png"]


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="has no PNG, JPEG or WebP image"):
        list_folder(tmp_path, "train", test_fraction=0.1, first=0, labels=True)
    with pytest.raises(InputError, match="is not a folder"):
        list_folder(tmp_path / "nowhere", "train", test_fraction=0.1, first=0, labels=True)


# Loading


def test_idx_sets_are_held_in_memory(mnist_root: Path) -> None:
    config = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    images = data.load(config, "train")
    expected, labels = drawn_digits(96, 1)
    np.testing.assert_array_equal(np.stack([images.read(index, None) for index in range(96)])[:, 0], expected)
    np.testing.assert_array_equal(images.labels, labels)
    assert not images.decodes
    direct = data.load(DataConfig(dataset="mnist", root=str(mnist_root / "mnist"), size=12, channels=1), "test")
    assert len(direct) == 40


def test_cifar10(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = generator.integers(0, 256, (6, 4, 3072)).astype(np.uint8)
    for part, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[part], "labels": [part, 1, 2, 3]}, 2))
    config = DataConfig(dataset="cifar10", root=str(tmp_path), size=32, channels=3)
    images = data.load(config, "train")
    assert len(images) == 20
    assert images.classes[2] == "bird"
    np.testing.assert_array_equal(images.read(5, None), pixels[1, 1].reshape(3, 32, 32))
    np.testing.assert_array_equal(data.load(config, "test").labels, [5, 1, 2, 3])


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="get it with: hrvqvae data get mnist"):
        data.load(DataConfig(dataset="mnist", root=str(tmp_path)), "train")
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path))
    with pytest.raises(InputError, match="imagenet is class folders"):
        data.load(DataConfig(dataset="imagenet", channels=3), "train")


def test_channels_of_a_known_set(mnist_root: Path) -> None:
    with pytest.raises(InputError, match=r"mnist has 1 channels, data.channels is 3"):
        data.load(DataConfig(dataset="mnist", root=str(mnist_root), channels=3), "train")


def test_root_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "variable"))
    assert data_root("given") == Path("given")
    assert data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("HRVQVAE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root(None).name == "hrvqvae"


@pytest.mark.parametrize("workers", [0, 2])
def test_small_folders_are_held_and_large_ones_decoded(workers: int, picture_folder: Path) -> None:
    held = data.load(folder_config(picture_folder, workers=workers), "train")
    decoded = data.load(folder_config(picture_folder, memory_mb=0), "train")
    assert isinstance(held, MemoryImages)
    assert decoded.decodes
    assert len(held) == len(decoded)
    for index in range(len(held)):
        np.testing.assert_array_equal(held.read(index, None), decoded.read(index, None))
    assert data.load(folder_config(picture_folder, crop="random"), "train").decodes


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_a_broken_image_stops_or_is_skipped_and_counted(
    memory_mb: int, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = data.load(folder_config(picture_folder, memory_mb=memory_mb), "train")
    broken = list_folder(picture_folder, "train", test_fraction=0.1, first=0, labels=True).paths[4]
    broken.write_bytes(broken.read_bytes()[:60])

    def read(on_error: str) -> list[data.Batch]:
        images = data.load(folder_config(picture_folder, memory_mb=memory_mb, on_error=on_error), "train")
        return list(data.evaluation_batches(images, batch_size=7, on_error=on_error))

    with pytest.raises(BrokenImageError, match=f"{broken.name}.*--data.on_error skip"):
        read("stop")
    batches = read("skip")
    assert sum(len(batch.images) for batch in batches) == len(whole) - 1
    if memory_mb:
        assert "1 broken images skipped" in capsys.readouterr().out
    else:
        assert next(message for batch in batches for message in batch.broken).startswith(str(broken))


@pytest.mark.parametrize("limit", [None, 1, 2, 7, 1000])
def test_a_part_of_a_split_is_spread_over_its_classes(limit: int | None, picture_folder: Path) -> None:
    images = data.load(folder_config(picture_folder), "train")
    seen = list(data.evaluation_batches(images, batch_size=3, limit=limit))
    pixels, labels = torch.cat([batch.images for batch in seen]), torch.cat([batch.labels for batch in seen])
    count = len(images) if limit is None else min(limit, len(images))
    assert len(pixels) == count
    if count > 6:
        assert set(labels.tolist()) == {0, 1}
    whole = np.stack([images.read(index, None) for index in range(len(images))])
    places = [int(np.flatnonzero((whole == one.numpy()).all((1, 2, 3)))[0]) for one in pixels]
    assert places == sorted(set(places))
    assert places[0] == 0
    assert all(after - before <= -(-len(images) // count) for before, after in pairwise(places))


def test_one_core_gets_one_worker(picture_folder: Path) -> None:
    """torch warns of more, and a warning is an error here; the images are the same."""
    cores = os.sched_getaffinity(0)
    images = data.load(folder_config(picture_folder, memory_mb=0), "train")
    expected = torch.cat([batch.images for batch in data.evaluation_batches(images, batch_size=7)])
    os.sched_setaffinity(0, {min(cores)})
    try:
        found = [batch.images for batch in data.evaluation_batches(images, batch_size=7, workers=3)]
    finally:
        os.sched_setaffinity(0, cores)
    assert torch.equal(torch.cat(found), expected)


def test_errors_of_workers_are_one_line(picture_folder: Path) -> None:
    for memory_mb in (0, 100):
        config = folder_config(picture_folder, memory_mb=memory_mb, channels=1, workers=2)
        with pytest.raises(InputError, match="has 3 channels") as caught:
            next(data.batches(data.load(config, "train"), batch_size=4, seed=0, workers=2))
        assert "Traceback" not in str(caught.value)


def test_a_worker_that_is_ended_from_outside_is_told_plainly() -> None:
    """torch raises this from a signal handler, wherever the main process is: a real kill would hit the test runner."""
    told = "DataLoader worker (pid 17) is killed by signal: Killed. "
    with pytest.raises(InputError, match=r"ended from outside.*--data.workers 0"), told_plainly():
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="something else"), told_plainly():
        raise RuntimeError("something else")


def test_sizes_of_a_known_set(mnist_root: Path) -> None:
    with pytest.raises(InputError, match="mnist has 12x12 pixels, data.size is 28"):
        data.load(DataConfig(dataset="mnist", root=str(mnist_root)), "train")


def test_extreme_shapes_are_cropped_before_they_are_resized(tmp_path: Path) -> None:
    Image.new("L", (1, 60_000), 7).save(tmp_path / "x.png")
    assert (read_square(tmp_path / "x.png", 1, 256, 10**6) == 7).all()


def test_every_image_broken(tmp_path: Path) -> None:
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(b"nothing")
    for memory_mb in (0, 100):
        config = folder_config(tmp_path, memory_mb=memory_mb, on_error="skip")
        with pytest.raises(InputError, match="every one of the"):
            list(islice(data.batches(data.load(config, "train"), batch_size=2, seed=0, on_error="skip"), 20))


# Batches


def test_an_epoch_shows_every_image_once() -> None:
    samples = [sample for batch in islice(Stream(10, 4, seed=3), 5) for sample in batch]
    for epoch in range(2):
        assert sorted(index for index, draw in samples if draw and draw[1] == epoch) == list(range(10))
    assert [index for index, _ in samples[:10]] != [index for index, _ in samples[10:]]


def test_the_order_does_not_depend_on_where_one_starts() -> None:
    whole = list(islice(Stream(10, 4, seed=3), 12))
    for first in range(11):
        assert next(iter(Stream(10, 4, seed=3, first_step=first))) == whole[first]
    assert next(iter(Stream(10, 4, seed=4))) != whole[0]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(crop: str, picture_folder: Path) -> None:
    config = folder_config(picture_folder, crop=crop, flip=True, memory_mb=0)
    images = data.load(config, "train")
    one = list(islice(data.batches(images, batch_size=6, seed=1), 10))
    workers = list(islice(data.batches(images, batch_size=6, seed=1, workers=2), 10))
    later = next(data.batches(images, batch_size=6, seed=1, first_step=7))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, workers, strict=True))
    assert torch.equal(later.images, one[7].images)
    first, second = images.read(0, (1, 0, 0)), [images.read(0, (1, epoch, 0)) for epoch in range(8)]
    assert any(not np.array_equal(first, other) for other in second)


def test_flips_in_memory() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    images = MemoryImages(pixels, np.zeros(1, np.int64), (), flip=True)
    seen = {images.read(0, (0, epoch, 0)).tobytes() for epoch in range(20)}
    assert seen == {pixels[0].tobytes(), pixels[0][..., ::-1].tobytes()}
    np.testing.assert_array_equal(images.read(0, None), pixels[0])


# Getting data


def packed_mnist() -> tuple[bytes, dict[str, bytes]]:
    """The form that the package carries, of small images, and the IDX files that it stands for."""
    parts, expected = [], {}
    for part, count in (("train", 5), ("more", 3), ("t10k", 4)):
        images = np.random.default_rng(count).integers(0, 256, (count, 784)).astype(np.uint8)
        parts.append((images.astype(np.float32) / 256, np.arange(count)))
        expected[part] = images.tobytes()
    stream = io.BytesIO(pickle.dumps(tuple(parts), 2))
    return gzip.compress(stream.getvalue()), expected


def test_mnist_from_the_package_is_exact(tmp_path: Path) -> None:
    packed, expected = packed_mnist()
    fetch.mnist_from_arrays(packed, tmp_path)
    train = files.read_idx(tmp_path / "train-images-idx3-ubyte.gz")
    assert train.shape == (8, 28, 28)
    assert train.tobytes() == expected["train"] + expected["more"]
    assert files.read_idx(tmp_path / "train-labels-idx1-ubyte.gz").tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert files.read_idx(tmp_path / "t10k-images-idx3-ubyte.gz").tobytes() == expected["t10k"]


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.name.removesuffix(".gz"): files.digest(gzip.decompress(path.read_bytes()), "md5")
        for path in folder.glob("*.gz")
    }


def test_ways_are_tried_in_order_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "good" / "mnist")
    good = tmp_path / "good" / "mnist"
    monkeypatch.setitem(fetch.MD5, "mnist", _checksums(good))  # type: ignore[arg-type]
    tried: list[str] = []

    def refused(folder: Path) -> None:
        tried.append("refused")
        raise OSError("no route")

    def wrong(folder: Path) -> None:
        tried.append("wrong")
        write_mnist(folder / "nested", train=3)
        for path in (folder / "nested").iterdir():
            path.rename(folder / path.name)

    def right(folder: Path) -> None:
        tried.append("right")
        for path in good.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    ways = tuple(fetch.Way(call.__name__, call) for call in (refused, wrong, right))
    monkeypatch.setitem(fetch.WAYS, "mnist", ways)  # type: ignore[arg-type]
    root, said = tmp_path / "root", list[str]()
    assert fetch.get("mnist", root, said.append) == root / "mnist"
    assert tried == ["refused", "wrong", "right"]
    assert said[-1].startswith("mnist: from right, checked")
    fetch.check("mnist", root / "mnist")
    fetch.get("mnist", root, said.append)
    assert tried == ["refused", "wrong", "right"], "files that are there are used"
    assert "already in" in said[-1]
    assert [path.name for path in root.iterdir()] == ["mnist"]
    target = root / "mnist" / "t10k-images-idx3-ubyte.gz"
    target.write_bytes(target.read_bytes()[:-9])
    (root / "mnist" / "notes.txt").write_text("mine")
    fetch.get("mnist", root, said.append)
    assert tried[3:] == ["refused", "wrong", "right"]
    assert (root / "mnist" / "notes.txt").read_text() == "mine"


def test_every_way_failing_tells_each_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise OSError("no route")

    monkeypatch.setitem(fetch.WAYS, "mnist", (fetch.Way("one", refused), fetch.Way("two", refused)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one: no route; two: no route"):
        fetch.get("mnist", tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"), [("ffhq", "can't be got by command"), ("mnits", "unknown data set 'mnits'")]
)
def test_what_no_command_gets(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fetch.get(name, tmp_path, lambda _: None)
