"""What every form in which images are stored gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Source(ABC):
    """Stored images in a fixed order, read one by one by their number.

    It goes to the processes that decode, forked or pickled, so it holds nothing open.

    Attributes:
        labels: (N,) whole numbers or texts as they are stored; None where an image has none, or nobody asked.
        class_names: of the labels, which are numbers then; empty where no names are kept.
    """

    labels: NDArray[Any] | None = None
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

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
    """What is of one split as a whole: a file, or an array in it.

    Attributes:
        name: below the folder, in which a word may tell the split.
        path: the file.
        key: the array's name in it; empty where it holds one thing.
    """

    name: str
    path: Path
    key: str = ""


class Form(Protocol):
    """A module for files of one form."""

    def parts(self, files: Sequence[Path], base: Path) -> list[Part]:
        """What the files hold; `base` is the folder that names are below."""

    def read(self, parts: Sequence[Part], labels: bool) -> Source:
        """The images of some of these parts. Raises InputError where they are damaged or hold no image."""


def file_parts(files: Sequence[Path], base: Path) -> list[Part]:
    """A part for each file."""
    return [Part(file.relative_to(base).as_posix(), file) for file in files]
