"""Data sets given from Python: map-style data sets of torch, data sets of Hugging Face, sequences.

An item is an image as `open_any` takes it, a tuple (image, label), or a mapping with an image and
a label, as of Hugging Face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from hrvqvae.data.images import open_any
from hrvqvae.data.sources import HELD_OUT, TRAIN, Source
from hrvqvae.data.sources.parquet import IMAGE_COLUMNS, LABEL_COLUMNS
from hrvqvae.utils.errors import InputError

PREFIX = "python:"  # data.root is "python:RUN" for data sets that Python code gives
_MAX_REGISTERED = 2  # such as of a training and of an evaluation
_REGISTERED: dict[str, dict[str, Any]] = {}  # by data.root, then by split


def register_datasets(name: str, train: Any, test: Any = None) -> str:
    """Register data sets in this process, and return the value of `data.root` that names them.

    `name` is the folder of the run that is trained on them. If `test` is None, `data.split` divides
    `train`, unless that is a mapping with both splits. Only the data sets of the two newest names
    are kept, to free the memory of older ones. Raises InputError if a data set has no items by
    number.
    """
    if test is None and isinstance(train, Mapping):
        test = next((train[split] for split in HELD_OUT if split in train), None)
        if TRAIN not in train or test is None:
            raise InputError(f"data has {', '.join(map(str, train))}; give one of these as data")
        train = train[TRAIN]
    splits = {"": train} if test is None else {"train": train, "test": test}
    root = f"{PREFIX}{name}"
    open_registered.cache_clear()
    _REGISTERED.pop(root, None)  # added below as the newest
    _REGISTERED[root] = {split: _require_items(dataset) for split, dataset in splits.items()}
    if len(_REGISTERED) > _MAX_REGISTERED:
        del _REGISTERED[next(iter(_REGISTERED))]
    return root


def _require_items(dataset: Any) -> Any:
    """Return a data set with items by number: of a loader its data set, of a table or a column of
    pandas a list. Raises InputError.
    """
    if isinstance(dataset, DataLoader):
        dataset = dataset.dataset
    if _is_pair(dataset):
        dataset = list(zip(*dataset, strict=True))
    if hasattr(dataset, "iloc"):  # of pandas, whose items are found by their labels
        dataset = dataset.to_dict("records") if hasattr(dataset, "columns") else dataset.tolist()
    try:
        len(dataset)  # raises TypeError without a length
        has_items = hasattr(dataset, "__getitem__")
    except TypeError:
        has_items = False
    if not has_items or isinstance(dataset, IterableDataset):
        raise InputError(
            f"data is a {type(dataset).__name__}, which has no items by number: give a folder, a"
            " map-style Dataset, or list(...) of it"
        )
    return dataset


def _is_pair(data: Any) -> bool:
    """Return whether data is a pair (images, labels) of arrays or tensors of one length."""
    if not isinstance(data, tuple) or len(data) != 2 or getattr(data[0], "ndim", 0) < 3:
        return False
    images, labels = data
    return np.ndim(labels) == 1 and len(images) == len(labels)


@cache  # labels are read once
def open_registered(root: str, labels: bool) -> dict[str, DatasetSource]:
    """Return the data sets that this process registered by split name; one that `data.split`
    divides is under "".
    """
    if root not in _REGISTERED:
        advice = "give it again with data=..., or name its images with --data"
        raise InputError(
            f"{root.removeprefix(PREFIX)} is trained on a data set given from Python: {advice}"
        )
    return {
        split: DatasetSource(dataset, split, labels) for split, dataset in _REGISTERED[root].items()
    }


class DatasetSource(Source):
    """The items of a data set. The name of an image is its index."""

    has_stable_names = False

    def __init__(self, dataset: Any, split: str, labels: bool) -> None:
        """Read the labels: from the data set's list of labels if it has one, else from every
        item.
        """
        super().__init__([len(dataset)])
        self.dataset = dataset
        self._title = f"the {split} data set" if split else "the data set"
        if not len(self):
            raise InputError(f"{self._title} has no item")
        if not labels or _unpack_item(dataset[0])[1] is None:
            return
        targets, class_names = _read_annotations(dataset)
        if targets is None:
            targets = [_unpack_item(dataset[row])[1] for row in range(len(self))]
        try:
            self.labels = np.array(
                [label.item() if hasattr(label, "item") else label for label in targets]
            )
        except (RuntimeError, ValueError):  # labels of several values
            self.labels = np.empty(0)
        if self.labels.shape != (len(self),) or self.labels.dtype.kind not in "iuU":
            raise InputError(f"{self._title} has labels that are neither whole numbers nor texts")
        if self.labels.dtype.kind != "U":
            self.class_names = class_names

    def name(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        return f"item {row} of {self._title}"

    def content(self, row: int, ending: bool = True) -> bytes:
        return np.asarray(self.open(row)).tobytes()

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of the number of images and of at most 64 images, unless an image differs
        when it is read again (a random augmentation).
        """
        sample = [*map(int, rows[:: -(-len(rows) // 64)])]
        with suppress(Exception):  # an item that can't be read is reported when it is decoded
            first, second = (b"".join(map(self.content, sample)) for _ in range(2))
            images = hashlib.blake2b(first).hexdigest() if first == second else ""
            return f"{len(rows)} {images}"
        return f"{len(rows)}"

    def open(self, row: int) -> Image.Image:
        return open_any(_unpack_item(self.dataset[row])[0])


def _unpack_item(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item; None for a label that is not there."""
    if isinstance(item, Mapping):
        image = next((name for name in IMAGE_COLUMNS if name in item), None)
        if image is None:
            raise InputError(f"it has {', '.join(map(str, item))}, and no {IMAGE_COLUMNS[0]}")
        return item[image], item.get(_find_label_column(item))  # None without such a column
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _find_label_column(names: Any) -> str | None:
    return next((name for name in LABEL_COLUMNS if name in names), None)


def _read_annotations(dataset: Any) -> tuple[Sequence[Any] | None, tuple[str, ...]]:
    """Return the labels that a data set keeps apart from its images, or None, and its class names,
    or ().

    Labels are `targets`, as in torchvision, or the column of a data set of Hugging Face. Where a
    transform may change labels, they are those of the items. A ConcatDataset has no class names if
    its parts have different ones.
    """
    if isinstance(dataset, Subset):
        targets, classes = _read_annotations(dataset.dataset)
        return targets and [targets[index] for index in dataset.indices], classes
    if isinstance(dataset, ConcatDataset):
        parts, class_lists = zip(*map(_read_annotations, dataset.datasets), strict=True)
        whole = None if None in parts else [*chain(*parts)]
        return whole, class_lists[0] if len(set(class_lists)) == 1 else ()
    if hasattr(dataset, "column_names"):
        column = _find_label_column(dataset.column_names)
        if column is None:
            return None, ()
        is_transformed = dataset.format["type"] == "custom"
        targets = None if is_transformed else dataset[column]
        names = getattr(dataset.features[column], "names", None)
    else:
        is_transformed = getattr(dataset, "target_transform", None) is not None
        targets = None if is_transformed else getattr(dataset, "targets", None)
        names = getattr(dataset, "classes", None)
    class_names = tuple(map(str, names)) if isinstance(names, Iterable) else ()
    return None if targets is None else list(targets), class_names
