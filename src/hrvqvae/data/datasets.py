"""Images from the library `datasets` of Hugging Face, and data sets given from Python.

`datasets` opens Parquet files, tars, Arrow files and data sets of the hub. From Python come its
data sets, map-style data sets of torch, and lists. An item is an image as `open_any` takes it, or a
tuple (image, label).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hrvqvae.data.folders import TRAIN, Source, choose_splits, find_files
from hrvqvae.data.images import open_any
from hrvqvae.utils.errors import InputError

PREFIX = "python:"  # data.root is "python:RUN" for data sets that Python code gives
HUB = "hub:"  # data.root is "hub:OWNER/NAME" for a data set of the hub
_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
_IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_REGISTERED: dict[str, dict[str, Any]] = {}  # by data.root, then by split


class DatasetSource(Source):
    """The items of a data set. The name of an image is its row."""

    def __init__(self, dataset: Any, title: str, labels: bool = True) -> None:
        self.dataset = dataset
        self.title = title
        if not len(dataset):
            raise InputError(f"{title} has no item")
        self.labels = np.full(len(dataset), -1)
        if hasattr(dataset, "column_names"):
            self._open_columns(labels)
        elif labels:
            items = (_unpack(dataset[row]) for row in range(len(self)))
            self._set_labels([label for _, label in items], getattr(dataset, "classes", ()))

    def _open_columns(self, labels: bool) -> None:
        """Take the images of a data set of Hugging Face undecoded, and its column of labels."""
        import datasets

        dataset = self.dataset.with_format(None)
        columns = dataset.column_names
        image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
        label = next((name for name in _LABEL_COLUMNS if name in columns), None)
        if image is None:
            raise InputError(f"{self.title} has {', '.join(columns)}, and no image")
        if labels and label:
            self._set_labels(dataset[label], getattr(dataset.features[label], "names", ()))
        self.dataset = dataset.cast_column(image, datasets.Image(decode=False))[image]

    def _set_labels(self, labels: Any, names: Any) -> None:
        """Take labels, which are the numbers of classes with these names if there are names."""
        values = [label.tolist() if hasattr(label, "tolist") else label for label in labels]
        kinds = {type(value) for value in values} - {type(None)}
        if kinds - {int, str}:
            raise InputError(f"{self.title} has labels that are neither whole numbers nor texts")
        missing = "" if str in kinds else -1
        self.labels = np.array([missing if value is None else value for value in values])
        self.class_names = tuple(names) if kinds == {int} else ()

    def name(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        return f"item {row} of {self.title}"

    def open(self, row: int) -> Image.Image:
        image, _ = _unpack(self.dataset[row])
        return open_any(image)

    def content(self, row: int) -> bytes:
        return np.asarray(self.open(row)).tobytes()


def _unpack(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item; None for a label that is not there."""
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def open_stored(path: str, labels: bool = True) -> dict[str, DatasetSource]:
    """Return the images that `datasets` finds at a path, by split; all under "" if there are no
    splits.

    `path` is a file, a pattern of files, a folder of files, or "hub:OWNER/NAME". Raises InputError
    if there are no such images.
    """
    is_hub = path.startswith(HUB)
    builder = _BUILDERS.get(Path(path).suffix.lower())
    if not is_hub and not builder and not find_files(Path(path), tuple(_BUILDERS)):
        wrong = "has no image" if Path(path).exists() else "does not exist"
        raise InputError(
            f"{path} {wrong}: give --data a folder of images, Parquet, tar or Arrow files, or"
            " hub:OWNER/NAME (hrvqvae data list names published sets; HEIC needs"
            " pip install '.[data]')"
        )
    import datasets

    datasets.disable_progress_bars()
    try:
        if builder:
            parts = datasets.load_dataset(builder, data_files=path)
        else:
            parts = datasets.load_dataset(path.removeprefix(HUB))
    except Exception as error:  # of many types
        raise InputError(f"{path} can't be read as images: {error}") from error

    splits = choose_splits({*parts}, path, has_others=len(parts) == 1)
    if splits is None:
        whole = datasets.concatenate_datasets([*parts.values()])
        return {"": DatasetSource(whole, path, labels)}
    return {name: DatasetSource(parts[name], f"{path}, {name}", labels) for name in splits}


def register_datasets(name: str, train: Any, test: Any = None) -> str:
    """Register data sets in this process, and return the value of `data.root` that names them.

    `name` is the folder of the run that is trained on them. If `test` is None, `data.split` divides
    `train`.
    """
    root = f"{PREFIX}{name}"
    _REGISTERED[root] = {"": train} if test is None else {TRAIN: train, "test": test}
    open_registered.cache_clear()
    return root


@cache  # labels are read once
def open_registered(root: str, labels: bool) -> dict[str, DatasetSource]:
    """Return the data sets that this process registered, by split; under "" if there are none."""
    if root not in _REGISTERED:
        raise InputError(
            f"{root.removeprefix(PREFIX)} is trained on a data set given from Python: give it again"
            " with data=..., or name its images with --data"
        )
    return {
        split: DatasetSource(dataset, f"the {split} data set" if split else "the data set", labels)
        for split, dataset in _REGISTERED[root].items()
    }
