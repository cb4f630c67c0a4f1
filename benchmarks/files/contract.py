"""What is asked of a way to write images into files, so that all are measured alike.

Images are (N, C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Shape = tuple[int, int, int]
"""(C, Y, X) of one image."""


@dataclass(frozen=True)
class Count:
    """One way to count the bytes of a file.

    Attributes:
        title: of the curve that it gives.
        size: file -> bytes that count.
        whole: every byte that a reader needs beside its program counts. Not so where headers are left out, or where
            the size is an ideal code length and no file of that size was written.
    """

    title: str
    size: Callable[[bytes], float] = len
    whole: bool = True


class FileCodec(ABC):
    """Writes images into files and reads them, at each of its settings.

    Attributes:
        counts: the curves that it gives, one for each way to count the bytes of its files.
        settings: in any order; each has a readable `str`.
        model_bytes: what a reader needs beside its program and the file, such as weights.
        learned: whether it is a trained model of this package.
    """

    counts: tuple[Count, ...]
    settings: tuple[Any, ...]
    model_bytes: int = 0
    learned: bool = False

    @abstractmethod
    def encode(self, images: Images, setting: Any) -> list[bytes]:
        """A file for each image. `setting` is one of `settings`."""

    @abstractmethod
    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        """Images of that shape from files, in order."""
