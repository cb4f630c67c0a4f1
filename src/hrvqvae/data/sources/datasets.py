"""Map-style torch data sets given from Python: an item is an image (C, Y, X), or a tuple (image,
label).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import to_pil
from hrvqvae.data.sources import Source
from hrvqvae.utils.errors import InputError

PREFIX = (  # a data.root with this prefix names registered data sets; the run folder follows
    "python:"
)
_REGISTERED: dict[str, dict[str, Any]] = {}


def register_datasets(name: str, train: Any, test: Any = None) -> str:
    """Register data sets in this process, and return the value of `data.root` that names them.

    `name` is the folder of the run that is trained on them. If `test` is None, `data.split` divides
    `train`.
    """
    _REGISTERED[f"{PREFIX}{name}"] = {"": train} if test is None else {"train": train, "test": test}
    return f"{PREFIX}{name}"


def open_registered(root: str, labels: bool) -> dict[str, DatasetSource]:
    """Return the data sets that this process registered by split name; one that `data.split`
    divides is under "".
    """
    if root not in _REGISTERED:
        advice = "give it again, hrvqvae.train(..., data=...), or name its images with --data"
        raise InputError(
            f"{root.removeprefix(PREFIX)} is trained on a data set given from Python: {advice}"
        )
    return {
        split: DatasetSource(dataset, split, labels) for split, dataset in _REGISTERED[root].items()
    }


class DatasetSource(Source):
    """The items of a map-style torch data set. The name of an image is its index."""

    def __init__(self, dataset: Any, split: str, labels: bool) -> None:
        """Read the labels: from the attribute `targets` if there is one, as in torchvision, else
        from every item.
        """
        super().__init__([len(dataset)])
        self.dataset = dataset
        self._title = f"the {split} data set" if split else "the data set"
        if not len(self):
            raise InputError(f"{self._title} has no item")
        if not labels or not isinstance(first := dataset[0], tuple | list) or len(first) < 2:
            return
        targets = getattr(dataset, "targets", None)
        if targets is None or getattr(dataset, "target_transform", None) is not None:
            targets = [dataset[row][1] for row in range(len(self))]
        try:
            self.labels = np.array(
                [label.item() if hasattr(label, "item") else label for label in targets]
            )
        except (RuntimeError, ValueError):  # labels of several values
            self.labels = np.empty(0)
        if self.labels.shape != (len(self),) or self.labels.dtype.kind not in "iuU":
            raise InputError(f"{self._title} has labels that are neither whole numbers nor texts")
        if self.labels.dtype.kind != "U":
            classes = getattr(dataset, "classes", None)
            self.class_names = () if classes is None else tuple(map(str, classes))

    def name(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        return f"item {row} of {self._title}"

    def content(self, row: int, ending: bool) -> bytes:
        return np.asarray(self.open(row)).tobytes()

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of the number of images and of 64 images, but not of images that differ
        when read again.
        """
        sample = rows[:: -(-len(rows) // 64)]
        with suppress(Exception):  # an item that can't be read is reported when it is decoded
            first, second = (
                [self.content(row, ending=True) for row in map(int, sample)] for _ in range(2)
            )
            return (
                f"{len(rows)}"
                f" {hashlib.blake2b(b''.join(first)).hexdigest() if first == second else ''}"
            )
        return f"{len(rows)}"

    def open(self, row: int) -> Image.Image:
        item = self.dataset[row]
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image):
            if image.mode == "F":
                raise InputError(
                    "its mode is F; images are of 8 or 16 bits, or tensors of floats in [0, 1]"
                )
            return image
        pixels = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
        if (
            pixels.ndim != 3
            or len(pixels) not in (1, 3)
            or not (pixels.dtype == np.uint8 or pixels.dtype.kind == "f")
        ):
            raise InputError(
                f"its shape is {pixels.shape} ({pixels.dtype}); images are (1 or 3, Y, X) uint8 or"
                " float"
            )
        if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(
                f"its values are {pixels.min():g} to {pixels.max():g}; float images are in [0, 1]"
            )
        return to_pil(pixels)
