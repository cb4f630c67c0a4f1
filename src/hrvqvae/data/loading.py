"""Open the images of a split, as a configuration describes them.

`data.dataset` names a published set of the registry, or a folder below `find_data_root(None)`.
`data.root`, if set, is the folder of the published set or the folder above it, the path of other
images (a folder, or files that `datasets` reads), a data set of the hub ("hub:OWNER/NAME"), or the
name of a data set given from Python.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.config.registry import DATASETS
from hrvqvae.data import datasets
from hrvqvae.data.batches import ImageSet, evaluation_batches
from hrvqvae.data.fetch import Arrays, find_folder, list_missing_files
from hrvqvae.data.folders import TRAIN, Source, open_folder
from hrvqvae.utils.errors import InputError, require
from hrvqvae.utils.progress import note_once
from hrvqvae.utils.quantities import counted

_CHOOSE_SPLIT = "has splits: measure --split train or --split test"
_BATCH = 64  # images per batch while decoding into memory


def load_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train" or "test", decoded as far as `decode` does. Raises as
    `open_images` and `decode`.
    """
    images = open_images(config, split)
    decode(images, split)
    return images


def decode(images: ImageSet, split: str) -> None:
    """Decode images of a split into memory, unless they do not fit or are cropped at random.

    Raises BrokenImageError if an image can't be decoded and `on_error` is "stop".
    """
    config = images.config
    shape = (len(images), config.channels, *config.image_size)
    is_cropped = split == "train" and config.crop == "random"
    if images.source is None or is_cropped or math.prod(shape) > config.memory_mb * 2**20:
        return

    pixels = np.empty(shape, np.uint8)
    labels = list[int]()
    for batch in evaluation_batches(images, batch_size=_BATCH, workers=config.workers):
        start = len(labels)
        labels += batch.labels.tolist()
        pixels[start : len(labels)] = batch.images.numpy()
    images.pixels = pixels[: len(labels)]
    images.labels = np.array(labels)


def open_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train", "test" or "all" without decoding any.

    With `data.validation`, "test" is that share of the training split, and "train" the rest.
    Without folders or files named as splits, `data.split` divides the images, and "all" are all
    images. The images have classes if every image of both splits has a label.

    Raises:
        InputError: There is no such split, the data is missing or damaged, a published set has
            other channels or another size, or a split is empty.
    """
    require(split in ("train", "test", "all"), "split", split, "train, test or all")
    if config.validation and split != "all":
        return _open_validation(config, split)
    if is_published(config.dataset) and not is_named(config.root):
        return _read_published(config, split)
    return _select_split(*_open_sources(config), split, config)


def _open_validation(config: DataConfig, split: str) -> ImageSet:
    images = open_images(dataclasses.replace(config, validation=0.0), "train")

    # Spread the validation images evenly: counts[i] is their number before image i.
    counts = np.floor(np.arange(len(images) + 1) * config.validation)
    selected = (counts[1:] > counts[:-1]) == (split == "test")
    if not selected.any():
        share = f"data.validation {config.validation} of {len(images):,} training images"
        raise InputError(f"{share} leaves a split empty")
    images = dataclasses.replace(images, config=config, labels=images.labels[selected])
    if images.pixels is None:
        images.rows = images.rows[selected]
    else:
        images.pixels = images.pixels[selected]
    return images


def is_named(root: str | None) -> bool:
    """Return whether `data.root` is no path, but names a data set of Python or of the hub."""
    return root is not None and root.startswith((datasets.PREFIX, datasets.HUB))


def is_published(dataset: str) -> bool:
    """Return whether a data set is one of the published sets, whose files have a reader."""
    return dataset in DATASETS and bool(DATASETS.get(dataset).read)


def is_undivided(config: DataConfig) -> bool:
    """Return whether `data.split` divides the images, for they have no splits by their names."""
    return "" in _open_sources(config)[1]


def _open_sources(config: DataConfig) -> tuple[str, Mapping[str, Source]]:
    """Return a name of the data, for messages, and the source of each split by its name.

    If `data.split` divides the images, the source of all images has the name "".
    """
    if config.root and config.root.startswith(datasets.PREFIX):
        return "the data set", datasets.open_registered(config.root, config.labels)
    if config.root and config.root.startswith(datasets.HUB):
        return config.root, datasets.open_stored(config.root, config.labels)
    path = find_folder(config.dataset, config.root)
    sources = open_folder(path) if path.is_dir() else {}
    return str(path), sources or datasets.open_stored(str(path), config.labels)


def _read_published(config: DataConfig, split: str) -> ImageSet:
    dataset = DATASETS.get(config.dataset)
    folder = find_folder(dataset.name, config.root)
    if missing := list_missing_files(dataset, folder):
        raise InputError(
            f"{dataset.name} is not in {folder} ({missing[0].name} is missing); get it with:"
            f" hrvqvae data get {dataset.name}, or take other images: --data DIR, and in a training"
            " --data.dataset mine"
        )
    if split == "all":
        raise InputError(f"{dataset.name} {_CHOOSE_SPLIT}")
    data: Arrays = resolve_name(dataset.read)(folder, split)
    images, labels, classes = data
    channels, height, width = images.shape[1:]
    if (channels, height, width) != (config.channels, *config.image_size):
        raise InputError(
            f"{dataset.name} has {channels} channels of {height}x{width} pixels; data.channels is"
            f" {config.channels}, data.size is {config.size}"
        )
    return ImageSet(config, labels, classes, pixels=images)


def _select_split(
    where: str, sources: Mapping[str, Source], split: str, config: DataConfig
) -> ImageSet:
    """Return the images of a split; `sources` are those of `_open_sources`."""
    # Choose the source: one holds all images, or there are a training and a test source. The test
    # source has one of several names.
    is_divided = "" not in sources
    if is_divided and split == "all":
        raise InputError(f"{where} {_CHOOSE_SPLIT}")
    name = ""
    if is_divided:
        name = next(name for name in sources if (name == TRAIN) == (split == "train"))
    source = sources[name]

    # Choose the rows of the split in the source.
    rows = np.arange(len(source))
    if not is_divided and split != "all":
        is_test = _mark_test_images(source, config)
        rows = rows[is_test] if split == "test" else rows[~is_test]
    if not len(rows):
        images = counted(len(source), "image")
        raise InputError(
            f"{where} has {images}, none in the {split} split; add images, or change --data.split"
        )

    classes: tuple[str, ...] = ()
    labels = np.zeros(len(rows), np.int64)
    if config.labels:
        classes, numbers = _number_classes(where, sources)
        if classes:
            labels = numbers[name][rows]
    images = counted(len(rows), "image")
    note_once(f"{where}, {name or split}: {images}; classes: {len(classes) or 'none'}")
    return ImageSet(config, labels, classes, source, rows)


def _mark_test_images(source: Source, config: DataConfig) -> NDArray[np.bool_]:
    """Return a mask (N,) of the test images, as `data.split` decides: by position, or by a hash of
    each name.
    """
    if config.split == "sorted":
        return np.arange(len(source)) >= config.train_samples

    # A hash is a number below 2^64, and each number is equally likely.
    threshold = config.test_fraction * 2**64
    is_test = np.zeros(len(source), np.bool_)
    for row in range(len(source)):
        name = source.name(row).encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(name, digest_size=8).digest()
        is_test[row] = int.from_bytes(digest, "big") < threshold

    # Leave no split empty.
    if len(is_test) > 1 and not is_test.any():
        is_test[-1] = True
    if len(is_test) > 1 and is_test.all():
        is_test[0] = False
    return is_test


def _number_classes(
    where: str, sources: Mapping[str, Source]
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of the classes, and the class numbers of each split; both are empty without
    labels. Raises InputError if only a part of the images has labels.
    """
    labels = {name: source.labels for name, source in sources.items()}
    together = np.concatenate([*labels.values()])
    is_missing = np.isin(together.astype(str), ("", "-1"))
    if is_missing.all():
        return (), {}
    if is_missing.any():
        images = counted(int(is_missing.sum()), "image")
        raise InputError(
            f"{where} has {images} without a label beside others with one: give every image a"
            " label (a class folder), or train without, by --data.labels false"
        )
    names = next(iter(sources.values())).class_names
    if names:
        return names, labels
    values = np.unique(together)
    numbers = {name: np.searchsorted(values, array) for name, array in labels.items()}
    return tuple(map(str, values)), numbers
