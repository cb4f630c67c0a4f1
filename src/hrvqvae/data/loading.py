"""From a configuration to the images of a split.

A name that is no data set of the registry is a folder below the root, or the root itself, which may be tars, Parquet
files or arrays as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.config.registry import DATASETS, Dataset, imported
from hrvqvae.data.batches import in_order, read_batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.images import SUFFIXES
from hrvqvae.data.sets import Arrays
from hrvqvae.data.sources import TRAIN, WORDS, Part, Source, arrays, datasets, given_split, parquet, tars
from hrvqvae.data.sources.files import LISTS, FolderSource, folder_sources, listed_images, named_files, names_below
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note
from hrvqvae.utils.quantities import counted

_READERS = {".tar": tars.read, ".parquet": parquet.read, ".npy": arrays.read, ".npz": arrays.read}
_WILD = re.compile(r"[*?{\[]")
_BATCH = 64  # images that are brought into memory together


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


def load_images(config: DataConfig, split: str) -> ImageSet:
    """Images of the split "train" or "test" that the configuration describes.

    With `data.validation`, that share of the training split stands for the test split.

    Raises:
        InputError: the data is not there (and how to get it), a published set has other channels or another size,
            or images can't be divided (`open_stored`).
        BrokenImageError: an image can't be decoded and `on_error` says stop.
    """
    if config.validation:
        images = load_images(dataclasses.replace(config, validation=0.0), "train")
        places = np.arange(len(images) + 1) * config.validation
        validation = np.floor(places[1:]) > np.floor(places[:-1])
        some = validation == (split == "test")
        if not some.any():
            raise InputError(
                f"data.validation {config.validation} of {len(images):,} training images leaves one part empty"
            )
        pixels, rows = images.pixels, images.rows  # no rows without a source, and more than pixels beside broken images
        images.pixels = None if pixels is None else pixels[some]
        images.rows = rows[some] if len(rows) == len(some) else rows
        return dataclasses.replace(images, config=config, labels=images.labels[some])
    if (config.root or "").startswith(datasets.PREFIX):
        sources = datasets.given_sources(str(config.root), config.labels)
        return _in_memory(_select_split(sources, "the data set", split, config), split)
    root = data_root(config.root)
    dataset = DATASETS.get(config.dataset) if config.dataset in DATASETS else None
    if dataset is not None and dataset.read:
        return _published(dataset, root, config, split)
    if config.root is None and not (root / config.dataset).is_dir():
        how = f": {config.dataset} is {dataset.how}" if dataset else f", or take one of {', '.join(DATASETS)}"
        raise InputError(f"no folder {root / config.dataset}; name it with --data DIR{how}")
    return _in_memory(open_stored(dataset_folder(root, config.dataset), split, config), split)


def _published(dataset: Dataset, root: Path, config: DataConfig, split: str) -> ImageSet:
    if absent := missing_files(dataset, root):
        raise InputError(
            f"{dataset.name} is not in {root} ({absent[0].name} is missing); get it with: "
            f"hrvqvae data get {dataset.name} ({dataset.how}), or name other data with --data.dataset mine"
        )
    found: Arrays = imported(dataset.read)(dataset_folder(root, dataset.name), split)
    channels, height, width = found.images.shape[1:]
    if (channels, height, width) != (config.channels, config.size, config.size):
        raise InputError(
            f"{dataset.name} has {channels} channels of {height}x{width} pixels; "
            f"data.channels is {config.channels}, data.size is {config.size}"
        )
    return ImageSet(config, found.labels, found.classes, pixels=found.images)


def _in_memory(images: ImageSet, split: str) -> ImageSet:
    """Decode images into memory, unless they are cropped at random or do not fit."""
    config = images.config
    bytes_of_all = len(images) * config.channels * config.size**2
    if (split == "train" and config.crop == "random") or bytes_of_all > config.memory_mb * 2**20:
        return images
    pixels = np.empty((len(images), config.channels, config.size, config.size), np.uint8)
    labels, count = np.empty(len(images), np.int64), 0
    broken = list[str]()
    for batch in read_batches(images, in_order(range(len(images)), _BATCH), config.workers):
        some = slice(count, count := count + len(batch.images))
        pixels[some], labels[some] = batch.images.numpy().reshape(-1, *pixels.shape[1:]), batch.labels.numpy()
        broken += batch.broken
    if not count:
        raise InputError(f"all images are broken ({len(images)} of {len(images)}): {broken[0]}")
    if broken:
        note(f"broken images skipped: {len(broken)} of {len(images)}, the first: {broken[0]}")
    images.pixels, images.labels = pixels[:count], labels[:count]
    return images


# Images that are stored in files


def open_stored(path: Path, split: str, config: DataConfig) -> ImageSet:
    """Images of the split "train" or "test" that a path stands for.

    The path is a folder of image files (`sources.files.folder_sources`); or tars, Parquet files or arrays: one file, a
    pattern of files such as `train-{000..099}.tar` or `train-*.parquet`, or a folder of such files without image files.
    Names with the word `train` beside names with `test`, `val` or `validation` (of a file, of a folder that it lies in,
    or of an array in an .npz) are a given split; else `data.split` decides. Images have classes where every one of both
    splits has a label.

    Raises:
        InputError: nothing is there, or it is damaged, without images, or can't be divided.
    """
    sources: Mapping[str, Source] = folder_sources(path) if path.is_dir() else {}
    if sources:
        for kind in sorted({one.suffix for one in path.iterdir()} & {".tar", ".parquet"}):
            note(f"{path}: its images are read and its {kind} files are not; to read these: --data '{path}/*{kind}'")
    else:
        sources = _of_files(path, split, config.labels)
    return _select_split(sources, str(path), split, config)


def _select_split(sources: Mapping[str, Source], where: str, split: str, config: DataConfig) -> ImageSet:
    """Return the images of a split from sources by the words of their splits, or from one that is to be divided."""
    if "" in sources:
        source = sources[""]
        rows = np.flatnonzero(_held_out(source, config) == (split == "test"))
    else:
        source = next(one for word, one in sources.items() if (word == TRAIN) == (split == "train"))
        rows = np.arange(len(source))
    if not len(rows):
        raise InputError(
            f"{where} has {counted(len(source), 'image')}, none in the {split} split; "
            "add images, or divide them otherwise with --data.split"
        )
    classes, labels = _classes(where, sources) if config.labels else ((), {})
    own = labels[source] if classes else np.zeros(len(source), np.int64)
    return ImageSet(config, own[rows], classes, source, rows)


def is_stored(path: Path) -> bool:
    """Whether a path names tars, Parquet files or arrays, by its suffix or as a pattern."""
    return path.suffix.lower() in _READERS or _WILD.search(str(path)) is not None


def open_whole(path: Path) -> Source:
    """Every image of a folder, a list, tars, Parquet files or arrays, undivided, with labels.

    Raises InputError as `open_stored`.
    """
    if path.is_dir() and (names := sorted(names_below(path, SUFFIXES))):
        return FolderSource(path, names, above=int({name.split("/")[0] for name in names} <= set(WORDS)))
    if path.suffix.lower() in LISTS and path.is_file():
        return listed_images(path)
    read, parts = _parts(path)
    return read(parts, True)


def _parts(path: Path) -> tuple[Callable[[Sequence[Part], bool], Source], list[Part]]:
    """The reader and the parts of the tars, Parquet files or arrays that a path names."""
    if path.is_dir():
        base, found = path, names_below(path, tuple(_READERS))
        files = sorted(path / name for name in found if not any(part.startswith(".") for part in name.split("/")))
        if not files:
            raise InputError(f"{path} has no image: neither PNG, JPEG or WebP nor tars, Parquet files or arrays")
    elif is_stored(path):
        files = named_files(path)
        base = Path(os.path.commonpath([file.parent for file in files]))
    else:
        raise InputError(f"{path} is no folder, nor .tar, .parquet, .npy or .npz files; unpack what is compressed")
    kinds = sorted({file.suffix.lower() for file in files})
    read = _READERS.get(kinds[0])
    if read is None or any(_READERS.get(kind) is not read for kind in kinds):
        raise InputError(f"{path} names files of several kinds ({', '.join(kinds)}); name those of one kind")
    if read is arrays.read:
        return read, arrays.parts(files, base)
    return read, [Part(file.relative_to(base).as_posix(), file) for file in files]


def _of_files(path: Path, split: str, labels: bool) -> dict[str, Source]:
    """The images of tars and the like by the word of their split, or all under the empty word."""
    read, parts = _parts(path)
    by_word: dict[str, list[Part]] = {}
    for part in parts:
        words = re.findall("[a-z]+", part.name.lower())
        by_word.setdefault(next((word for word in words if word in WORDS), ""), []).append(part)
    given = given_split(by_word if path.is_dir() else {*by_word, ""}, path)
    if given is None:
        return {"": read(parts, labels)}
    wanted = given if labels else (given[split != "train"],)  # classes are those of both
    return {word: read(by_word[word], labels) for word in wanted}


def _held_out(source: Source, config: DataConfig) -> NDArray[np.bool_]:
    """(N,) which images are of the test split, by a hash of each name alone; neither split of two images is empty."""
    if config.split == "sorted":
        return np.arange(len(source)) >= config.train_samples
    names = (source.name(row).encode("utf-8", "surrogateescape") for row in range(len(source)))
    draws = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    share = config.test_fraction * 2**64
    test = np.fromiter((int.from_bytes(draw, "big") < share for draw in draws), np.bool_)
    if len(test) > 1 and not test.any():
        test[-1] = True
    if len(test) > 1 and test.all():
        test[0] = False
    return test


def _classes(where: str, sources: Mapping[str, Source]) -> tuple[tuple[str, ...], dict[Source, NDArray[np.int64]]]:
    """(names of the classes, the class of each image of each source); none without labels."""
    labels = {source: source.labels for source in sources.values() if source.labels is not None}
    if not labels:
        return (), {}
    if len(labels) < len(sources):
        without = next(word for word, source in sources.items() if source not in labels)
        raise InputError(
            f"{where}: images of the {without} split have no labels, those of the other do; "
            "take no classes with --data.labels false"
        )
    classes = next(iter(labels)).class_names
    if any(source.class_names != classes for source in labels):
        raise InputError(f"{where}: the splits name other classes; take none with --data.labels false")
    if not classes:
        values = np.unique(np.concatenate([np.unique(some) for some in labels.values()]))
        return tuple(map(str, values)), {source: np.searchsorted(values, some) for source, some in labels.items()}
    for source, some in labels.items():
        wrong = np.flatnonzero((some < 0) | (some >= len(classes)))
        if len(wrong):
            raise InputError(
                f"{source.where(int(wrong[0]))} has label {some[wrong[0]]}, and there are "
                f"{counted(len(classes), 'class name')}; take no classes with --data.labels false"
            )
    return classes, {source: some.astype(np.int64) for source, some in labels.items()}
