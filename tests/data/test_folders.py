"""Folders of images, and files that the library `datasets` reads: splits, classes and images."""

import hashlib
import io
import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from hrvqvae.data.batches import batches, evaluation_batches, make_rng
from hrvqvae.data.images import decode_image, read_image
from tests.conftest import cells_of, input_error, parametrize, same
from tests.data.stored import (
    broken_image,
    content,
    loaded,
    noise,
    paths_of,
    write_folder,
    write_parquet,
    write_tar,
)

SPLITS = ("train", "test")
HELD_OUT = ("test", "val", "valid", "validation", "dev")


def png(seed):
    stream = io.BytesIO()
    Image.fromarray(noise(16, 16, 3, seed=seed)).save(stream, "PNG")
    return stream.getvalue()


def planes(images):
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1) for image in images]
    )


def drawn(count, seed=0):
    """Images in class folders, in order."""
    names = sorted(f"{(index * 7) % 3}/{index:03d}.png" for index in range(count))
    return {name: png(seed + index) for index, name in enumerate(names)}


def touch(*names):
    write_folder("set", dict.fromkeys(names, b""))


def names_of(folder, split="train", **changes):
    paths = paths_of(loaded(folder, split, **changes))
    return [path.relative_to(folder).as_posix() for path in paths]


def test_images_outside_of_the_splits_are_counted(caplog):
    touch("train/a.png", "train/b.png", "validation/c.png", "test/d.png", "e.png")
    assert len(loaded("set", "train")) == 2
    assert "2 images outside of train and test" in caplog.text


def test_the_pictures_of_a_run_are_no_images():
    touch("0/a.png", "1/b.png", "runs/x/metrics.jsonl", "runs/x/pictures/curves.png")
    assert len(loaded("set", "train")) + len(loaded("set", "test")) == 2


@parametrize("held_out", [*HELD_OUT, "Val"])
def test_a_given_split(held_out):
    stored = {"train": drawn(12), held_out: drawn(6, 100)}
    for word, files in stored.items():
        write_folder(f"set/{word}", files)
    for split, files in zip(SPLITS, stored.values(), strict=True):
        images = loaded("set", split)
        assert_array_equal(content(images), planes(files.values()))
        assert images.labels.tolist() == [int(name[0]) for name in files]
        assert images.classes == ("0", "1", "2")
        assert loaded("set", split, labels=False).classes == ()


def test_a_hash_of_each_name_divides():
    files = drawn(40)
    write_folder("set", files)
    expected = {split: [] for split in SPLITS}
    for name, image in files.items():
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        is_test = int.from_bytes(digest, "big") < 0.2 * 2**64
        expected[SPLITS[is_test]].append(image)
    for split, images in expected.items():
        assert_array_equal(content(loaded("set", split, test_fraction=0.2)), planes(images))


def test_the_first_images_are_for_training():
    files = drawn(20)
    write_folder("set", files)
    options = {"split": "sorted", "train_samples": 15}
    parts = [content(loaded("set", split, **options)) for split in SPLITS]
    assert_array_equal(np.concatenate(parts), planes(files.values()))
    assert len(parts[0]) == 15
    with input_error("none in the test split"):
        loaded("set", "test", split="sorted", train_samples=20)


def test_batches_are_those_of_the_seed_and_the_step():
    write_folder("set", drawn(20))
    images = loaded("set", size=12, crop="random", flip=True)

    def read(first_step=0, workers=0):
        stream = batches(images, batch_size=4, seed=2, first_step=first_step, workers=workers)
        return torch.cat([batch.images for batch in islice(stream, 10 - first_step)])

    expected = read()
    order = make_rng("order", 2, 0).permutation(len(images))
    first = [images.decode(int(index), (2, 0, int(index))) for index in order[:4]]
    assert_array_equal(expected[:4], np.stack(first))
    assert same(read(workers=2), expected)
    assert same(read(first_step=7), expected[28:])
    assert multiprocessing.active_children() == []


@parametrize("memory_mb", [0, 100])
def test_broken_images(memory_mb):
    files = drawn(10)
    for name in list(files)[4:6]:
        files[name] = files[name][:60]
    write_folder("set", files)
    options = {"memory_mb": memory_mb, "split": "sorted", "train_samples": 10}
    with broken_image("--on-error skip"):
        list(evaluation_batches(loaded("set", **options), batch_size=2))
    images = loaded("set", on_error="skip", **options)
    counts = [len(batch.images) for batch in evaluation_batches(images, batch_size=2)]
    assert sum(counts) == 8
    assert all(counts)


@parametrize(
    "names, message",
    cells_of("""
        train/a/0.png train/b/1.png 2.png | has train, but none of test
        test/a/0.png test/b/1.png | has test, but no train
        train/a/0.png test/1.png | without a label
        a/0.png a/1.png b/2.png 3.png | 1 image without a label
        notes.txt | has no image
    """),
)
def test_folders_that_are_refused(names, message):
    """Also a stray image beside class folders, which would take the labels of all others."""
    touch(*names.split())
    if message.startswith("has train"):
        Path("set/2.png").unlink()
    for split in SPLITS:
        with input_error(message):
            loaded("set", split)
    if "without a label" in message:
        assert names_of("set", labels=False)


def test_what_is_no_image_of_the_set_is_left_out():
    touch("a/0.PNG", "a/1.jpeg", "b/2.webp", ".git/x.png", "a/._0.png", "notes.txt")
    assert sorted(names_of("set") + names_of("set", "test")) == ["a/0.PNG", "a/1.jpeg", "b/2.webp"]


def test_other_files_are_counted_by_their_endings(caplog):
    touch("0.png", "1.mov", "a.b/2.MOV", "labels.csv", "LICENSE", ".hidden", "page.eps")
    assert names_of("set", "all", labels=False) == ["0.png"]
    (line,) = [line for line in caplog.messages if "left out" in line]
    for ending in ("2 .mov", "1 .csv", "1 .eps", "1 without an ending"):
        assert ending in line
    assert "hidden" not in line


FORMATS = "tif tiff gif bmp dib avif jp2 ppm pgm ico icns tga pcx sgi qoi dds"


@parametrize("suffix", FORMATS.split())
def test_formats_that_pillow_opens(suffix):
    """Also a file without an ending, if it is named."""
    Path("set").mkdir()
    path = Path(f"set/0.{suffix}")
    last = Image.new("RGB", (32, 32), "blue")
    mode = "L" if suffix == "pgm" else "RGB"
    options = {"save_all": True, "append_images": [last]} if suffix in ("gif", "tif") else {}
    Image.new(mode, (32, 32), "red").save(path, **options)
    grey = decode_image(Path(path), 1)
    assert abs(grey.astype(int) - 76).max() < 3
    assert names_of("set", "all") == [path.name]
    assert_array_equal(decode_image(path.rename("set/0"), 1), grey)


def test_the_thumbnail_of_a_raw_file_is_no_image():
    Image.new("RGB", (8, 8)).save("x.tif", tiffinfo={254: 1})
    Path("x.tif").rename("x.nef")
    with broken_image("thumbnail"):
        read_image("x.nef")


def test_files_that_run_programs_are_refused():
    Image.new("RGB", (8, 8)).save("page.eps")
    Path("page.eps").rename("page.png")
    with broken_image("cannot identify"):
        read_image("page.png")


def test_heic_is_read():
    image = Image.fromarray(np.full((32, 32, 3), (200, 60, 20), np.uint8))
    Path("set").mkdir()
    image.save("set/0.heic", quality=100)
    assert (
        abs(read_image("set/0.heic").float() - torch.tensor([200, 60, 20])[:, None, None]).max() < 8
    )
    assert names_of("set", split="all") == ["0.heic"]


PNGS = [png(seed) for seed in range(6)]
LABELS = [0, 1, 2, 0, 1, 2]


def write_tar_of(path, images, labels):
    members = {}
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        members |= {f"{index}.png": image, f"{index}.cls": str(label).encode()}
    write_tar(path, members)


@parametrize("suffix, write", [(".parquet", write_parquet), (".tar", write_tar_of)])
def test_files_that_datasets_reads(suffix, write):
    for split in SPLITS:
        write(f"set/{split}{suffix}", PNGS, LABELS)
    for root in ("set", f"set/train{suffix}"):
        images = loaded(root, "all" if root != "set" else "test")
        assert_array_equal(content(images), planes(PNGS))
        assert images.labels.tolist() == LABELS
        assert images.classes == ("0", "1", "2")


def test_what_is_no_set_of_images_is_one_line():
    write_folder("set", {"x.parquet": b"no parquet"})
    with input_error("can't be read as images"):
        loaded("set")
    with input_error("gone does not exist"):
        loaded("gone")
