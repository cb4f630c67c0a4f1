"""The data sets of the registry: their entries, and how their files are read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from hrvqvae.config import DataConfig
from hrvqvae.config.presets import data_config
from hrvqvae.config.registry import DATASETS, imported
from hrvqvae.data.loading import load_images
from hrvqvae.data.sets import cifar10, mnist
from hrvqvae.utils.errors import DamagedFileError


@pytest.mark.parametrize("name", list(DATASETS))
def test_an_entry_is_whole(name: str) -> None:
    dataset = DATASETS.get(name)
    assert data_config(dataset).dataset == name
    assert bool(dataset.files) == bool(dataset.ways) == bool(dataset.read)
    assert all(len(md5) == 32 for md5 in (dataset.files or {}).values())
    for _, way in dataset.ways:
        assert callable(imported(way))


def test_cifar10_is_read_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    records = generator.integers(0, 10, (6, 4, 3073)).astype(np.uint8)
    for number, name in enumerate((*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")):
        records[number].tofile(tmp_path / f"{name}.bin")
    train, test = (
        load_images(DataConfig(dataset="cifar10", root=str(tmp_path), size=32, channels=3), split)
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (20, 4)
    np.testing.assert_array_equal(train.read(5, None), records[1, 1, 1:].reshape(3, 32, 32))
    assert test.labels.tolist() == records[5, :, 0].tolist()
    assert test.classes[2] == "bird"
    path = tmp_path / "data_batch_4.bin"
    whole = path.read_bytes()
    for content in (whole[:-1], b"", whole[:3073] + b"\x0a" + whole[3074:]):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"data_batch_4\.bin is damaged"):
            cifar10.read(tmp_path, "train")
    assert len(cifar10.read(tmp_path, "test").images) == 4


def test_idx_round_trip(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    mnist.write_idx(tmp_path / "a.gz", array)
    (tmp_path / "b").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    for name in ("a.gz", "b"):
        np.testing.assert_array_equal(mnist.read_idx(tmp_path / name), array)


def test_damaged_idx_is_named(mnist_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    mnist.write_idx(path, np.zeros((5, 4, 4), np.uint8))
    whole = path.read_bytes()
    inside = gzip.decompress(whole)
    swapped = whole[:15] + bytes([whole[15] ^ 255]) + whole[16:]  # zlib has its own error for this
    others = (inside[:-1], inside[:9], inside[:2], b"\0\0\x09" + inside[3:], b"\1" + inside[1:])
    for content in (whole[:30], b"", swapped, *map(gzip.compress, others)):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"images\.gz.*get it again"):
            mnist.read_idx(path)
    for stored in (mnist_root / "mnist").iterdir():
        (tmp_path / stored.name).write_bytes(stored.read_bytes())
    mnist.write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(DamagedFileError, match=r"train has \(96, 12, 12\) images and \(5,\) labels"):
        mnist.read_mnist(tmp_path, "train")
