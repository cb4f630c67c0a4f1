"""Fashion-MNIST: articles of clothing (Xiao et al. 2017)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hrvqvae.config.registry import Dataset
from hrvqvae.config.tables import OURS, settings
from hrvqvae.data.arrays import Arrays
from hrvqvae.data.network import run_program
from hrvqvae.data.sets import idx

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")

DATASET = Dataset(
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
        (f"Debian's package {DEBIAN_PACKAGE}, installed", "hrvqvae.data.sets.fashion_mnist:from_installed"),
        (f"Debian's package {DEBIAN_PACKAGE}, downloaded", "hrvqvae.data.sets.fashion_mnist:from_debian"),
        ("torchvision's mirrors", "hrvqvae.data.sets.fashion_mnist:from_torchvision"),
    ),
    read="hrvqvae.data.sets.fashion_mnist:read",
)


def read(folder: Path, split: str) -> Arrays:
    """The split "train" or "test". Raises DamagedFileError where a file is damaged."""
    return Arrays(*idx.read_split(folder, split), CLASSES)


def from_installed(folder: Path) -> None:
    """Fill a folder from the Debian package where it is installed."""
    for name in idx.FILES:
        shutil.copy(Path("/") / DEBIAN_FOLDER / name, folder / name)


def from_debian(folder: Path) -> None:
    """Fill a folder from the Debian package, downloaded and unpacked elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        run_program("apt-get", "download", "-q", DEBIAN_PACKAGE, folder=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        run_program("dpkg-deb", "-x", str(package), str(Path(scratch) / "unpacked"))
        for name in idx.FILES:
            shutil.copy(Path(scratch) / "unpacked" / DEBIAN_FOLDER / name, folder / name)


def from_torchvision(folder: Path) -> None:
    """Fill a folder from torchvision's mirrors."""
    idx.from_torchvision("FashionMNIST", folder)
