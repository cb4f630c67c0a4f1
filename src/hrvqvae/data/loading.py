"""From a configuration to the images of a split.

`<root>/mnist/train-images-idx3-ubyte.gz`, `<root>/cifar10/data_batch_1.bin`, `<root>/photos/*.jpg`. A name that is no
data set of the registry is a folder below the root, or the root itself; what the root may be otherwise (tars, Parquet
files, arrays) is said in `sources.opening`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs

from hrvqvae.config import DataConfig
from hrvqvae.config.registry import DATASETS, Dataset, imported
from hrvqvae.data.arrays import Arrays
from hrvqvae.data.image_sets import ImageSet, MemoryImages, in_memory
from hrvqvae.data.sources.opening import names_files, open_stored
from hrvqvae.utils.errors import InputError


def note(line: str) -> None:
    """Tell a person something that is no result: on standard error."""
    print(line, file=sys.stderr)


def data_root(given: str | None) -> Path:
    """The folder of the data: `given`, else the variable HRVQVAE_DATA, else the user's cache folder."""
    chosen = given or os.environ.get("HRVQVAE_DATA") or platformdirs.user_cache_dir("hrvqvae", appauthor=False)
    return Path(chosen).expanduser()


def dataset_folder(root: Path, name: str) -> Path:
    """`root/name`, or the root itself where somebody names the data set's own folder."""
    return root / name if (root / name).is_dir() else root


def missing_files(dataset: Dataset, root: Path) -> list[Path]:
    """Files of a published set that are not there, below the folder where they belong."""
    base = dataset_folder(root, dataset.name)
    return [base / name for name in dataset.files or () if not (base / name).is_file()]


def load_images(config: DataConfig, split: str, say: Callable[[str], None] = note) -> ImageSet:
    """Images of the split "train" or "test" that the configuration describes.

    Args:
        say: is told how many broken images were skipped, and how many images were converted to the channels that
            `config` asks for. Of images that are not held in memory, `batches` tells it when it meets the first.

    Raises:
        InputError: the data is not there (and how to get it), a published set has other channels or another size,
            or images can't be divided (`sources.opening.open_stored`).
        BrokenImageError: an image can't be decoded and `on_error` says stop.
    """
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}; there are train and test")
    root = data_root(config.root)
    dataset = DATASETS.get(config.dataset) if config.dataset in DATASETS else None
    if dataset is None or not dataset.read:
        return _load_stored(config, root, split, say)
    absent = missing_files(dataset, root)
    if absent and names_files(root) and not root.is_dir():
        raise InputError(
            f"{config.dataset} is read from its published files, and {root} are others; to read these, name them "
            "as other data, such as --data.dataset mine"
        )
    if absent:
        raise InputError(
            f"{dataset.name} is not in {root} ({absent[0].name} is missing); get it with: "
            f"hrvqvae data get {dataset.name} ({dataset.how})"
        )
    found: Arrays = imported(dataset.read)(dataset_folder(root, dataset.name), split)
    shape = found.images.shape
    if shape[1] != config.channels:
        raise InputError(f"{dataset.name} has {shape[1]} channels, data.channels is {config.channels}")
    if shape[2:] != (config.size, config.size):
        raise InputError(f"{dataset.name} has {shape[2]}x{shape[3]} pixels, data.size is {config.size}")
    return MemoryImages(found.images, found.labels, found.classes, config.flip)


def _load_stored(config: DataConfig, root: Path, split: str, say: Callable[[str], None]) -> ImageSet:
    named = root / config.dataset
    if not named.is_dir() and config.root is None:
        if config.dataset in DATASETS:
            raise InputError(f"no folder {named}: {config.dataset} is {DATASETS.get(config.dataset).how}")
        raise InputError(f"no folder {named}; name it with --data DIR, or take one of {', '.join(DATASETS)}")
    images = open_stored(dataset_folder(root, config.dataset), split, config, say)
    return images if split == "train" and config.crop == "random" else in_memory(images, say)
