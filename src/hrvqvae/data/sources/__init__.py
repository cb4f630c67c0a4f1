"""Stored images: files, tars, Parquet, arrays, torch data sets. Each form is a module with one interface, `Source`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.utils.errors import InputError

TRAIN = "train"
HELD_OUT = ("test", "val", "validation")  # names of a test split, in the order in which they are taken
WORDS = (TRAIN, *HELD_OUT)
ENDING = 64  # last bytes of an encoded image: a checksum, or the end of its entropy-coded data
_MAX_ENDINGS = 10_000  # per digest


def find_user_cache() -> Path:
    """Return the user's cache folder of this package. Raises InputError if the user has no home folder."""
    try:
        return Path(platformdirs.user_cache_dir("hrvqvae", appauthor=False)).expanduser()
    except RuntimeError as error:
        raise InputError("HOME is not set: name the data by --data, or its folder by HRVQVAE_DATA") from error


def encode_names(names: Iterable[str]) -> NDArray[np.bytes_]:
    """Return names as one array, which forked processes share; surrogates stand for what is not UTF-8."""
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], np.bytes_)


def decode_name(names: NDArray[np.bytes_], row: int) -> str:
    """Return a name from an array of `encode_names`."""
    return str(names[row].decode("utf-8", "surrogateescape"))


def read_end(path: Path, start: int, size: int, count: int) -> bytes:
    """Return at most the last `count` bytes of the `size` bytes that begin at `start` in a file."""
    with path.open("rb", buffering=0) as stream:
        stream.seek(start + max(0, size - count))
        return stream.read(min(size, count))


class Source(ABC):
    """Stored images in a fixed order. Worker processes get a copy, so a source holds no open file.

    Attributes:
        labels: (N,) whole numbers or texts; None where an image has none, or labels were not asked for.
        class_names: names of labels that are numbers; empty where there are none.
        first: row of the first image of each file, row group or array, and the number of images at the end.
    """

    labels: NDArray[Any] | None = None
    class_names: tuple[str, ...] = ()

    def __init__(self, counts: Iterable[int]) -> None:
        """`counts` are the images of each file, row group or array."""
        self.first = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """Return the index of the file, row group or array of an image, and the index of the image in it."""
        index = int(np.searchsorted(self.first, row, "right")) - 1
        return index, row - int(self.first[index])

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the name of an image, the same on every machine. Its hash decides between the splits."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Return where an image lies, for messages."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Open an image. Raises the errors of its decoder and its file."""

    @abstractmethod
    def content(self, row: int, ending: bool) -> bytes:
        """Return the size of a stored image, and with `ending` also bytes that change when its pixels do."""

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of images: of the names and sizes of all, and the endings of at most 10,000."""
        state, every = hashlib.blake2b(digest_size=16), -(-len(rows) // _MAX_ENDINGS)
        for index, row in enumerate(map(int, rows)):
            state.update(f"{self.name(row)}\0".encode("utf-8", "surrogateescape"))
            with suppress(OSError):  # an image that can't be opened is reported when it is decoded
                state.update(self.content(row, ending=index % every == 0))
        return state.hexdigest()

    def order(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return a random permutation of indices of `rows`, in which they can be read fast."""
        return rng.permutation(len(rows))


class Shard(NamedTuple):
    """A file of images, or an array in a file. All its images are of one split."""

    name: str  # below the folder; a word in it may name the split
    path: Path
    key: str = ""  # of the array in an .npz

    def __str__(self) -> str:
        return f"{self.path}: {self.key}" if self.key else str(self.path)
