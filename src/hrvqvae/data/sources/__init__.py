"""Stored images: files, tars, Parquet files, arrays and torch data sets. Each has a module that
implements `Source`.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.utils.errors import InputError, expand_home

TRAIN = "train"
# Names of the split that is not trained on: the first of these that is there is the test split.
# Names of splits are compared in lower case.
HELD_OUT = ("test", "val", "valid", "validation", "dev")
SPLIT_NAMES = (TRAIN, *HELD_OUT)
# how many bytes at the end of an encoded image a digest takes: they change with its pixels
ENDING_BYTES = 64
_MAX_NAME_BYTES = 4_096
# bytes of an array of padded names: at most this, and 16 more per byte of the names
_MAX_PADDED = 1 << 24
_MAX_PADDED_PER_BYTE = 16
_MAX_ENDINGS = 10_000  # images per digest whose last bytes are read


def find_user_cache() -> Path:
    """Return the user's cache folder of this package. Raises InputError if the user has no home
    folder.
    """
    try:
        return Path(platformdirs.user_cache_dir("hrvqvae", appauthor=False)).expanduser()
    except RuntimeError as error:
        raise InputError(
            "HOME is not set: name the data by --data, or its folder by HRVQVAE_DATA"
        ) from error


def find_data_root(root: str | None) -> Path:
    """Return the folder of the data: `root`, else the variable HRVQVAE_DATA, else the user's cache
    folder.

    Raises InputError if the path begins with ~, or is the cache folder, and the user has no home
    folder.
    """
    folder = root or os.environ.get("HRVQVAE_DATA")
    return expand_home(folder) if folder else find_user_cache()


def encode_names(names: Iterable[str]) -> NDArray[Any]:
    """Return names as one array, which is not copied in forked processes, as a list would be. In a
    name, surrogates stand for bytes that are not UTF-8.

    Raises InputError for a name of more than 4,096 bytes.
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    if (longest := max(map(len, encoded), default=0)) > _MAX_NAME_BYTES:
        raise InputError(f"an image has a name of {longest:,} bytes, more than {_MAX_NAME_BYTES:,}")
    # Such an array pads each name to the longest. If that takes too much, it holds objects.
    wasteful = longest * len(encoded) > _MAX_PADDED + _MAX_PADDED_PER_BYTE * sum(map(len, encoded))
    return np.array(encoded, object if wasteful else np.bytes_)


def decode_name(names: NDArray[Any], row: int) -> str:
    """Return a name from an array of `encode_names`."""
    return str(names[row].decode("utf-8", "surrogateescape"))


def read_end(path: Path, start: int, size: int, count: int) -> bytes:
    """Return the last `count` bytes of an image, which takes `size` bytes of a file from offset
    `start`; all of its bytes if there are fewer.
    """
    with path.open("rb", buffering=0) as stream:
        stream.seek(start + max(0, size - count))
        return stream.read(min(size, count))


class Source(ABC):
    """Stored images in a fixed order, each at a row. A source is copied to worker processes, so it
    holds no open file.

    Attributes:
        labels: (N,) whole numbers or texts; None if an image has no label, or labels were not
            requested.
        class_names: name of each class, if labels are numbers and the classes have names; else
            empty.
        first_rows: row of the first image of each file, row group or array, then the number of
            images.
    """

    labels: NDArray[Any] | None = None
    class_names: tuple[str, ...] = ()
    unlabelled = ""
    """Which images have no label, for a message: "3 images outside of class folders"."""
    has_stable_names = True
    """Whether an image keeps its name if others are deleted."""

    def __init__(self, counts: Iterable[int]) -> None:
        """`counts` are the numbers of images per file, row group or array."""
        self.first_rows = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """Return the index of the file, row group or array of an image, and the index of the image
        in it.
        """
        index = int(np.searchsorted(self.first_rows, row, "right")) - 1
        return index, row - int(self.first_rows[index])

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the name of an image, the same on every machine. The name's hash decides the
        image's split.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """Return the place of an image, for messages."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Open an image. Raises the errors of the decoder and the file system."""

    @abstractmethod
    def content(self, row: int, ending: bool) -> bytes:
        """Return bytes that change if the image changes, as far as that can be read fast, for a
        digest. For a file they are its size, and with `ending` also its last bytes.
        """

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of the names and contents (`content`) of the images at `rows`, with
        `ending` for at most 10,000 of them.
        """
        state = hashlib.blake2b(digest_size=16)
        interval = -(-len(rows) // _MAX_ENDINGS)
        for index, row in enumerate(map(int, rows)):
            state.update(f"{self.name(row)}\0".encode("utf-8", "surrogateescape"))
            with suppress(OSError):  # an image that can't be opened is reported when it is decoded
                state.update(self.content(row, ending=index % interval == 0))
        return state.hexdigest()

    def order(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return a random permutation of positions in `rows`; a source may choose an order that is
        fast to read.
        """
        return rng.permutation(len(rows))


class Shard(NamedTuple):
    """A file of images, or an array of images in a file. A shard belongs to one split."""

    name: str  # path below the data folder, then /KEY; one of its words may name the split
    path: Path
    key: str = ""  # name of the array in an .npz

    def __str__(self) -> str:
        return f"{self.path}: {self.key}" if self.key else str(self.path)
