"""Open the images of a split, as a configuration describes them.

`data.dataset` names a published set of the registry, or a folder below `find_data_root(None)`.
`data.root`, if set, is the folder of the published set or the folder above it, the path of other
images (a folder, tars, Parquet files or arrays), or the name of a data set given from Python.
"""

import dataclasses
import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.config.entries import Dataset
from hrvqvae.config.registry import DATASETS
from hrvqvae.data.batches import ImageSet, evaluation_batches
from hrvqvae.data.images import SUFFIXES
from hrvqvae.data.sets import Arrays
from hrvqvae.data.sources import (
    SPLIT_NAMES,
    TRAIN,
    Shard,
    Source,
    arrays,
    datasets,
    files,
    find_data_root,
    parquet,
    tars,
)
from hrvqvae.utils.errors import InputError, require
from hrvqvae.utils.progress import note_once
from hrvqvae.utils.quantities import counted

_SOURCES: Mapping[str, Callable[[Sequence[Shard], bool], Source]] = {
    ".tar": tars.TarSource,
    ".parquet": parquet.ParquetSource,
    ".npy": arrays.ArraySource,
    ".npz": arrays.ArraySource,
}
_PATTERN_CHARACTERS = re.compile(r"[*?{\[]")
_CHOOSE_SPLIT = "has splits: measure --split train or --split test"
_BATCH = 64  # images per batch while decoding into memory


def find_published(dataset: Dataset, root: Path) -> Path:
    """Return the folder of a published set, which is `root/NAME` or `root` itself.

    It is `root/NAME` if that is a folder, or if `root` has the name of another data set.
    """
    below = root / dataset.name
    is_other = root.name != dataset.name and root.name in DATASETS
    return below if is_other or below.is_dir() else root


def list_missing_files(dataset: Dataset, folder: Path) -> list[Path]:
    """Return the files of a published set that its folder lacks."""
    return [folder / name for name in dataset.files or () if not (folder / name).is_file()]


def load_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train" or "test", in memory if they fit and are not cropped
    at random.

    Raises InputError as `open_images`, and BrokenImageError if an image can't be decoded and
    `on_error` is "stop".
    """
    images = open_images(config, split)
    shape = (len(images), config.channels, *config.image_size)
    if (
        images.source is None
        or (split == "train" and config.crop == "random")
        or math.prod(shape) > config.memory_mb * 2**20
    ):
        return images
    pixels = np.empty(shape, np.uint8)
    labels = list[int]()
    for batch in evaluation_batches(images, batch_size=_BATCH, workers=config.workers):
        start = len(labels)
        labels += batch.labels.tolist()
        pixels[start : len(labels)] = batch.images.numpy()
    if not labels:
        raise InputError(f"all images are broken ({len(images)} of {len(images)})")
    images.pixels = pixels[: len(labels)]
    images.labels = np.array(labels)
    return images


def open_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train", "test" or "all" without decoding any.

    With `data.validation`, "test" is that share of the training split, and "train" the rest.

    docs/own-data.md says which names of folders and files divide the images into splits. Without
    such names, `data.split` divides them, and "all" are all images. The images have classes if
    every image of both splits has a label.

    Raises:
        InputError: there is no such split, the data is missing or damaged, a published set has
            other channels or another size, a split would be empty, or is "all" of images that have
            splits by their names.
    """
    require(split in ("train", "test", "all"), "split", split, "train, test or all")
    if config.validation and split != "all":
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
    # `get` raises an error for an unknown name.
    dataset = DATASETS.get(config.dataset) if config.dataset in DATASETS else None
    # `read` names the function that reads a published set; sets without it are folders of images.
    if dataset and dataset.read and not (config.root or "").startswith(datasets.PREFIX):
        return _read_published(dataset, find_data_root(config.root), config, split)
    return _select_split(*_open_sources(config, split), split, config)


def is_undivided(config: DataConfig) -> bool:
    """Return whether the images have no splits by their names, so that `data.split` divides them.
    Raises InputError as `open_images`.
    """
    return "" in _open_sources(config, "test")[1]


def find_images(config: DataConfig) -> Path:
    """Return the folder, file or pattern of the images of a set that is no published one."""
    root = find_data_root(config.root)
    below = root / config.dataset
    if config.root is None:
        return below
    # The root may be a folder of data sets, as for `find_published`.
    is_known = config.dataset in DATASETS and not DATASETS.get(config.dataset).takes_any_folder
    return below if is_known and below.is_dir() else root


def _open_sources(config: DataConfig, split: str) -> tuple[str, Mapping[str, Source]]:
    """Return a name of the data, for messages, and the source of each split by its name.

    If `data.split` divides the images, the source of all images has the name "".
    """
    if config.root and config.root.startswith(datasets.PREFIX):
        return "the data set", datasets.open_registered(config.root, config.labels)
    path = find_images(config)
    if config.root is None and not path.is_dir():
        hint = f", or take one of {', '.join(DATASETS)}"
        if config.dataset in DATASETS:
            hint = f": {config.dataset} is {DATASETS.get(config.dataset).how}"
        raise InputError(f"no folder {path}; name it with --data DIR{hint}")
    sources: Mapping[str, Source] = files.open_folder(path) if path.is_dir() else {}
    if sources:
        _note_shards_beside(path)
    return str(path), sources or _open_shards(path, split, config.labels)


def _note_shards_beside(folder: Path) -> None:
    for kind in sorted({file.suffix.lower() for file in folder.iterdir()} & {*_SOURCES}):
        note_once(
            f"{folder}: its images are read and its {kind} files are not; to read these:"
            f" '{folder}/*{kind}'"
        )


def _read_published(dataset: Dataset, root: Path, config: DataConfig, split: str) -> ImageSet:
    folder = find_published(dataset, root)
    if missing := list_missing_files(dataset, folder):
        raise InputError(
            f"{dataset.name} is not in {root} ({missing[0].name} is missing); get it with: hrvqvae"
            f" data get {dataset.name} ({dataset.how}), or train on other data: --data.dataset mine"
        )
    if split == "all":
        raise InputError(f"{dataset.name} {_CHOOSE_SPLIT}")
    data: Arrays = resolve_name(dataset.read)(folder, split)
    channels, height, width = data.images.shape[1:]
    if (channels, height, width) != (config.channels, *config.image_size):
        raise InputError(
            f"{dataset.name} has {channels} channels of {height}x{width} pixels; data.channels is"
            f" {config.channels}, data.size is {config.size}"
        )
    return ImageSet(config, data.labels, data.classes, pixels=data.images)


def _select_split(
    where: str, sources: Mapping[str, Source], split: str, config: DataConfig
) -> ImageSet:
    """Return the images of a split; `sources` are those of `_open_sources`."""
    name = ""
    if "" not in sources:
        if split == "all":
            raise InputError(f"{where} {_CHOOSE_SPLIT}")
        # "test" is the split that is not for training, which has one of several names.
        name = next(name for name in sources if (name == TRAIN) == (split == TRAIN))
        rows = np.arange(len(sources[name]))
        counts = " and ".join(f"{len(part):,} images in {name}" for name, part in sources.items())
    elif split == "all":
        rows = np.arange(len(sources[name]))
        counts = f"all {len(rows):,} images"
    else:
        is_test = _mark_test_images(sources[name], config)
        rows = np.flatnonzero(is_test == (split == "test"))
        num_test = np.count_nonzero(is_test)
        how = "their names" if config.split == "hash" else "their order"
        counts = f"{len(is_test) - num_test:,} images to train and {num_test:,} to test, by {how}"
    source = sources[name]
    if not len(rows):
        images = counted(len(source), "image")
        raise InputError(
            f"{where} has {images}, none in the {split} split; add images, or change --data.split"
        )

    classes, numbers = _number_classes(where, sources) if config.labels else ((), {})
    summary = "1 class" if len(classes) == 1 else f"{len(classes) or 'no'} classes"
    # why there are no classes
    reasons = [part.unlabelled for part in sources.values() if part.unlabelled]
    if not config.labels:
        # A source without labels may have none, or has left them unread: no reason is known.
        reasons = [] if source.labels is None else ["data.labels is false"]
    if reasons and not classes:
        summary += f": {reasons[0]}"
    note_once(f"{where}: {counts}; {summary}")
    labels = numbers[name][rows] if classes else np.zeros(len(rows), np.int64)
    return ImageSet(config, labels, classes, source, rows)


def is_shard_path(path: Path) -> bool:
    """Return whether a path is a pattern, or has the suffix of a tar, a Parquet file or an
    array.
    """
    return path.suffix.lower() in _SOURCES or _PATTERN_CHARACTERS.search(str(path)) is not None


def open_whole(path: Path, labels: bool = True) -> Source:
    """Return all images of a folder, a list, tars, Parquet files or arrays, with labels if any.
    Raises InputError.

    If `labels` is false, the labels in Parquet files and arrays are not read. So they may be of any
    type.
    """
    if path.is_dir() and (names := sorted(files.find_names(path, SUFFIXES))):
        _note_shards_beside(path)
        return files.read_whole_folder(path, names)
    if path.suffix.lower() in files.LIST_SUFFIXES and path.is_file():
        return files.read_list(path)
    source_class, shards = _list_shards(path)
    return source_class(shards, labels)


def _list_shards(path: Path) -> tuple[Callable[[Sequence[Shard], bool], Source], list[Shard]]:
    """Return the shards at a path (tars, Parquet files or arrays of one kind) and the source class
    that opens them.
    """
    if path.is_dir():
        base = path
        paths = sorted(path / name for name in files.find_names(path, tuple(_SOURCES)))
        if not paths:
            raise InputError(
                f"{path} has no image: neither PNG, JPEG or WebP nor tars, Parquet files or arrays"
            )
    elif path.exists() or is_shard_path(path):
        paths = files.match_files(path)
        base = Path(os.path.commonpath([file.parent for file in paths]))
    else:
        raise InputError(f"{path}: there is no such file or folder")
    kinds = sorted({file.suffix.lower() for file in paths})
    source_class = _SOURCES.get(kinds[0])
    if source_class is None:
        advice = "unpack compressed files, and give .tar, .parquet, .npy or .npz"
        if kinds[0] in SUFFIXES:
            advice = f"for images give their folder: {base}"
        raise InputError(f"{path} names {kinds[0] or 'other'} files; {advice}")
    if any(_SOURCES.get(kind) is not source_class for kind in kinds):
        raise InputError(
            f"{path} names files of several kinds ({', '.join(kinds)}); name those of one kind"
        )
    if source_class is arrays.ArraySource:
        return source_class, arrays.list_arrays(paths, base)
    return source_class, [Shard(file.relative_to(base).as_posix(), file) for file in paths]


def _open_shards(path: Path, split: str, labels: bool) -> dict[str, Source]:
    """Return the images of tars, Parquet files or arrays by split name; all under "" if
    `data.split` divides them.
    """
    source_class, shards = _list_shards(path)
    by_name = defaultdict[str, list[Shard]](list)
    for shard in shards:
        words = re.findall("[a-z]+", shard.name.lower())
        names_of_splits = [word for word in words if word in SPLIT_NAMES]
        by_name[names_of_splits[-1] if names_of_splits else ""].append(shard)
    # `find_splits` raises an error if one split is there and nothing else (""). A pattern may match
    # the files of one split alone, which `data.split` divides: add "" for it.
    present = {*by_name} if path.is_dir() else {*by_name, ""}
    first = shards[0].path
    pattern = f"'{first.with_name('*')}{first.suffix}'"  # the `--data` that `find_splits` advises
    splits = files.find_splits(present, path, pattern)
    if splits is None:
        return {"": source_class(shards, labels)}
    if outside := [shard for name in by_name if name not in splits for shard in by_name[name]]:
        note_once(
            f"{path}: {counted(len(outside), 'shard')} outside of {' and '.join(splits)} left out,"
            f" such as {outside[0].name}"
        )
    # Both splits decide the classes; without labels, the other split is not read.
    needed = [name for name in splits if labels or (name == TRAIN) == (split == "train")]
    return {name: source_class(by_name[name], labels) for name in needed}


def _mark_test_images(source: Source, config: DataConfig) -> NDArray[np.bool_]:
    """Return a mask (N,) of the test images, as `data.split` decides: by position, or by a hash of
    each name.
    """
    if config.split == "sorted":
        return np.arange(len(source)) >= config.train_samples
    names = (source.name(row).encode("utf-8", "surrogateescape") for row in range(len(source)))
    hashes = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    threshold = config.test_fraction * 2**64
    test = np.fromiter((int.from_bytes(value, "big") < threshold for value in hashes), np.bool_)
    if len(test) > 1:
        # Leave no split empty: the last image goes to an empty test split, or the first image to
        # an empty training split.
        test[-1] |= not test.any()
        test[0] &= not test.all()
    return test


def check_labels(source: Source) -> None:
    """Raise InputError if a source has class names and one of its labels is not the index of a
    class name.
    """
    if source.labels is None or not source.class_names:
        return
    count = len(source.class_names)
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= count))
    if len(wrong):
        raise InputError(
            f"{source.where(int(wrong[0]))} has label {source.labels[wrong[0]]}, but there are"
            f" {counted(count, 'class name')}; correct the labels, or train with --data.labels"
            " false"
        )


def _number_classes(
    where: str, sources: Mapping[str, Source]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the names of the classes, and the class numbers of each split; both are empty without
    labels.
    """
    labels = {name: part.labels for name, part in sources.items() if part.labels is not None}
    if not labels:
        return (), {}
    if len(labels) < len(sources):
        raise InputError(
            f"{where}: images of the {min(sources.keys() - labels)} split alone have no labels; use"
            " --data.labels false"
        )
    # class names, and whether labels are integers, of each split
    schemes = {
        (part.class_names, labels[name].dtype.kind in "iu") for name, part in sources.items()
    }
    if len(schemes) > 1:
        raise InputError(f"{where}: the splits name different classes; use --data.labels false")
    ((classes, _),) = schemes
    if classes:
        for source in sources.values():
            check_labels(source)
        return classes, {name: array.astype(np.int64) for name, array in labels.items()}
    values = np.unique(np.concatenate([np.unique(array) for array in labels.values()]))
    numbers = {name: np.searchsorted(values, array) for name, array in labels.items()}
    return tuple(map(str, values)), numbers
