"""What MNIST and its relatives share: IDX files, torchvision's mirrors."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrvqvae.data.files import read_idx
from hrvqvae.data.network import quiet_network
from hrvqvae.utils.errors import DamagedFileError

FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 1, Y, X) uint8 and labels (N,) int64 of the split "train" or "test".

    Raises:
        DamagedFileError: a file is damaged, or the files do not fit each other.
    """
    part = "train" if split == "train" else "t10k"
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DamagedFileError(f"{folder}: {part} has {images.shape} images and {labels.shape} labels; get it again")
    return images[:, None], labels.astype(np.int64)


def from_torchvision(kind: str, folder: Path) -> None:
    """Fill a folder with the IDX files of torchvision's data set of that name, from its mirrors."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        getattr(datasets, kind)(scratch, download=True)
        for packed in (Path(scratch) / kind / "raw").glob("*.gz"):
            shutil.copy(packed, folder / packed.name)
