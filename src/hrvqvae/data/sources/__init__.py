"""Where images lie: files, tars, Parquet, arrays. Each form is a module, and nothing outside asks which one it is.

Here is what every form gives, and the words by which names tell a split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.utils.errors import InputError

TRAIN = "train"
HELD_OUT = ("test", "val", "validation")  # names of a given test split, in the order in which they are taken
WORDS = (TRAIN, *HELD_OUT)


def encoded(names: Iterable[str]) -> NDArray[np.bytes_]:
    """Names, with surrogates for what is no UTF-8, as one array, which forked processes do not copy as a list."""
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], np.bytes_)


def decoded(names: NDArray[np.bytes_], row: int) -> str:
    """One of these names."""
    return str(names[row].decode("utf-8", "surrogateescape"))


class Source(ABC):
    """Stored images in a fixed order. It goes to the processes that decode, so it holds nothing open."""

    labels: NDArray[Any] | None = None  # (N,) whole numbers or texts; None where an image has none, or nobody asked
    class_names: tuple[str, ...] = ()  # of labels that are numbers; empty where no names are kept

    def __init__(self, counts: Iterable[int]) -> None:
        """`counts` are the images in each of the files, row groups or arrays that they lie in."""
        self.first = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.first[-1])

    def place(self, row: int) -> tuple[int, int]:
        """(number of the file, row group or array, place of the image in it)."""
        number = int(np.searchsorted(self.first, row, "right")) - 1
        return number, row - int(self.first[number])

    @abstractmethod
    def name(self, row: int) -> str:
        """The name by which a split by hash divides: the same on every machine."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Where an image lies, for messages."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """An image, opened; raises whatever its decoder or its file runs into."""

    def order(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """An order in which to read those rows: a permutation of their places in `rows`, drawn from the generator."""
        return generator.permutation(len(rows))


class Part(NamedTuple):
    """What is of one split as a whole: a file, or an array in it."""

    name: str  # below the folder, in which a word may tell the split
    path: Path
    key: str = ""  # of the array in an .npz


def given_split(words: Collection[str], where: Path) -> tuple[str, str] | None:
    """(word of the train split, word of the test split) of a given split; None where there is none.

    `words` are those of the names, "" of a name without one. Raises InputError for half of a split.
    """
    test = next((word for word in HELD_OUT if word in words), None)
    if TRAIN in words and test is not None:
        return TRAIN, test
    if words and set(words) <= set(WORDS):
        missing = "no train" if TRAIN not in words else f"none of {', '.join(HELD_OUT)}"
        raise InputError(
            f"{where} has {' and '.join(sorted(words))}, but {missing}: add that, or name what is in {min(words)} with "
            "--data, which is then divided"
        )
    return None
