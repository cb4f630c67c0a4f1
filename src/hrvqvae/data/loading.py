"""From a configuration to the images of a split.

`data.dataset` is a published set of the registry, or the name of a folder in the default root. With `data.root`, that
is itself the folder of images, or tars, Parquet files or arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray

from hrvqvae.config import DataConfig
from hrvqvae.config.registry import DATASETS, Dataset
from hrvqvae.data.batches import chunk_samples, read_batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.images import SUFFIXES
from hrvqvae.data.sets import Arrays
from hrvqvae.data.sources import TRAIN, WORDS, Shard, Source, arrays, datasets, find_user_cache, parquet, tars
from hrvqvae.data.sources.files import LISTS, FolderSource, find_names, find_split, match_files, open_folder, read_list
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note
from hrvqvae.utils.quantities import counted

_READERS = {".tar": tars.read, ".parquet": parquet.read, ".npy": arrays.read, ".npz": arrays.read}
_WILD = re.compile(r"[*?{\[]")
_BATCH = 64  # images that are decoded into memory at a time


def find_data_root(root: str | None) -> Path:
    """Return the folder of the data: `root`, else the variable HRVQVAE_DATA, else the user's cache folder.

    Raises InputError if the folder is below the home folder, and there is none.
    """
    chosen = root or os.environ.get("HRVQVAE_DATA")
    try:
        return Path(chosen).expanduser() if chosen else find_user_cache()
    except RuntimeError as error:
        raise InputError(f"{chosen}: there is no home folder here; give a path without ~") from error


def _find_folder(dataset: Dataset, root: Path) -> Path:
    """Return the folder of a published set: `root/name`, or the root itself."""
    return root / dataset.name if (root / dataset.name).is_dir() else root


def list_missing_files(dataset: Dataset, root: Path) -> list[Path]:
    """Return the files of a published set that are missing."""
    folder = _find_folder(dataset, root)
    return [folder / name for name in dataset.files or () if not (folder / name).is_file()]


def load_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train" or "test", decoded into memory if they fit and are not cropped at random.

    Raises InputError as `open_images`, and BrokenImageError if an image can't be decoded and `on_error` is "stop".
    """
    return _decode_into_memory(open_images(config, split), split)


def open_images(config: DataConfig, split: str) -> ImageSet:
    """Return the images of the split "train" or "test" without decoding any.

    With `data.validation`, that share of the training split stands for the test split.

    Raises:
        InputError: the data is missing, a published set has other channels or another size, or images can't be divided.
    """
    if config.validation:
        return _cut_validation(open_images(dataclasses.replace(config, validation=0.0), "train"), config, split)
    if (config.root or "").startswith(datasets.PREFIX):
        sources = datasets.open_registered(str(config.root), config.labels)
        return _select_split(sources, "the data set", split, config)
    root = find_data_root(config.root)
    dataset = DATASETS.get(config.dataset) if config.dataset in DATASETS else None
    if dataset is not None and dataset.read:
        return _read_published(dataset, root, config, split)
    folder = root / config.dataset if config.root is None else root
    if config.root is None and not folder.is_dir():
        how = f": {config.dataset} is {dataset.how}" if dataset else f", or take one of {', '.join(DATASETS)}"
        raise InputError(f"no folder {folder}; name it with --data DIR{how}")
    return open_stored(folder, split, config)


def _cut_validation(images: ImageSet, config: DataConfig, split: str) -> ImageSet:
    """Return the images of a training split that are left for training, or that stand for the test split."""
    steps = np.floor(np.arange(len(images) + 1) * config.validation)
    chosen = (steps[1:] > steps[:-1]) == (split == "test")
    if not chosen.any():
        raise InputError(f"data.validation {config.validation} of {len(images):,} training images leaves a split empty")
    rows = images.rows[chosen] if images.source else images.rows
    pixels = None if images.pixels is None else images.pixels[chosen]
    return dataclasses.replace(images, config=config, labels=images.labels[chosen], rows=rows, pixels=pixels)


def _read_published(dataset: Dataset, root: Path, config: DataConfig, split: str) -> ImageSet:
    if absent := list_missing_files(dataset, root):
        advice = f"hrvqvae data get {dataset.name} ({dataset.how}), or name other data with --data.dataset mine"
        raise InputError(f"{dataset.name} is not in {root} ({absent[0].name} is missing); get it with: {advice}")
    stored: Arrays = resolve_name(dataset.read)(_find_folder(dataset, root), split)
    channels, height, width = stored.images.shape[1:]
    if (channels, height, width) != (config.channels, config.size, config.size):
        expected = f"data.channels is {config.channels}, data.size is {config.size}"
        raise InputError(f"{dataset.name} has {channels} channels of {height}x{width} pixels; {expected}")
    return ImageSet(config, stored.labels, stored.classes, pixels=stored.images)


def _decode_into_memory(images: ImageSet, split: str) -> ImageSet:
    """Decode images into memory, unless they are there already, are cropped at random or do not fit."""
    config = images.config
    size = len(images) * config.channels * config.size**2
    if images.source is None or (split == "train" and config.crop == "random") or size > config.memory_mb * 2**20:
        return images
    pixels = np.empty((len(images), config.channels, config.size, config.size), np.uint8)
    labels, count = np.empty(len(images), np.int64), 0
    broken = list[str]()
    for batch in read_batches(images, chunk_samples(range(len(images)), _BATCH), config.workers):
        target = slice(count, count := count + len(batch.images))
        pixels[target], labels[target] = batch.images.numpy().reshape(-1, *pixels.shape[1:]), batch.labels.numpy()
        broken += batch.broken
    if not count:
        raise InputError(f"all images are broken ({len(images)} of {len(images)}): {broken[0]}")
    if broken:
        note(f"broken images skipped: {len(broken)} of {len(images)}, the first: {broken[0]}")
    images.pixels, images.labels = pixels[:count], labels[:count]
    return images


# Images that are stored in files


def open_stored(path: Path, split: str, config: DataConfig) -> ImageSet:
    """Return the images of the split "train" or "test" of a folder, tars, Parquet files or arrays.

    The path is a folder of image files (`sources.files.open_folder`); or a tar, Parquet file or array, a pattern of
    such files (`train-{000..099}.tar`, `train-*.parquet`), or a folder of such files without image files. Names with
    the word `train` beside names with `test`, `val` or `validation` (of a file, of a folder above it, or of an array in
    an .npz) are a given split; else `data.split` decides. There are classes if every image of both splits has a label.

    Raises:
        InputError: nothing is there, or it is damaged, without images, or can't be divided.
    """
    sources: Mapping[str, Source] = open_folder(path) if path.is_dir() else {}
    if sources:
        for kind in sorted({file.suffix for file in path.iterdir()} & {".tar", ".parquet"}):
            note(f"{path}: its images are read and its {kind} files are not; to read these: --data '{path}/*{kind}'")
    else:
        sources = _open_shards(path, split, config.labels)
    return _select_split(sources, str(path), split, config)


def _select_split(sources: Mapping[str, Source], where: str, split: str, config: DataConfig) -> ImageSet:
    """Return the images of a split from the sources of both splits, or from a source that `data.split` divides."""
    if "" in sources:
        source = sources[""]
        rows = np.flatnonzero(_hold_out(source, config) == (split == "test"))
    else:
        source = next(sources[word] for word in sources if (word == TRAIN) == (split == "train"))
        rows = np.arange(len(source))
    if not len(rows):
        images = counted(len(source), "image")
        raise InputError(f"{where} has {images}, none in the {split} split; add images, or change --data.split")
    classes, labels = _number_classes(where, sources) if config.labels else ((), {})
    numbers = labels[source] if classes else np.zeros(len(source), np.int64)
    return ImageSet(config, numbers[rows], classes, source, rows)


def is_stored(path: Path) -> bool:
    """Return whether a path names tars, Parquet files or arrays, by its suffix or as a pattern."""
    return path.suffix.lower() in _READERS or _WILD.search(str(path)) is not None


def open_whole(path: Path) -> Source:
    """Return all images of a folder, a list, tars, Parquet files or arrays, with labels. Raises as `open_stored`."""
    if path.is_dir() and (names := sorted(find_names(path, SUFFIXES))):
        return FolderSource(path, names, depth=int({name.split("/")[0] for name in names} <= set(WORDS)))
    if path.suffix.lower() in LISTS and path.is_file():
        return read_list(path)
    read, shards = _list_shards(path)
    return read(shards, True)


def _list_shards(path: Path) -> tuple[Callable[[Sequence[Shard], bool], Source], list[Shard]]:
    """Return the tars, Parquet files or arrays that a path names, and their reader."""
    if path.is_dir():
        base, files = path, sorted(path / name for name in find_names(path, tuple(_READERS)))
        if not files:
            raise InputError(f"{path} has no image: neither PNG, JPEG or WebP nor tars, Parquet files or arrays")
    elif is_stored(path):
        files = match_files(path)
        base = Path(os.path.commonpath([file.parent for file in files]))
    elif not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    else:
        raise InputError(f"{path} is no folder, nor .tar, .parquet, .npy or .npz files; unpack what is compressed")
    kinds = sorted({file.suffix.lower() for file in files})
    read = _READERS.get(kinds[0])
    if read is None or any(_READERS.get(kind) is not read for kind in kinds):
        raise InputError(f"{path} names files of several kinds ({', '.join(kinds)}); name those of one kind")
    if read is arrays.read:
        return read, arrays.list_arrays(files, base)
    return read, [Shard(file.relative_to(base).as_posix(), file) for file in files]


def _open_shards(path: Path, split: str, labels: bool) -> dict[str, Source]:
    """Return the images of tars and the like by the word of their split, or all of them under ""."""
    read, shards = _list_shards(path)
    by_word: dict[str, list[Shard]] = {}
    for shard in shards:
        words = re.findall("[a-z]+", shard.name.lower())
        by_word.setdefault(next((word for word in words if word in WORDS), ""), []).append(shard)
    splits = find_split(by_word if path.is_dir() else {*by_word, ""}, path)
    if splits is None:
        return {"": read(shards, labels)}
    needed = splits if labels else (splits[split != "train"],)  # the classes are those of both splits
    return {word: read(by_word[word], labels) for word in needed}


def _hold_out(source: Source, config: DataConfig) -> NDArray[np.bool_]:
    """Return which images (N,) are of the test split, by a hash of each name; of two images, each split has one."""
    if config.split == "sorted":
        return np.arange(len(source)) >= config.train_samples
    names = (source.name(row).encode("utf-8", "surrogateescape") for row in range(len(source)))
    hashes = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    share = config.test_fraction * 2**64
    test = np.fromiter((int.from_bytes(value, "big") < share for value in hashes), np.bool_)
    if len(test) > 1 and not test.any():
        test[-1] = True
    if len(test) > 1 and test.all():
        test[0] = False
    return test


def _number_classes(
    where: str, sources: Mapping[str, Source]
) -> tuple[tuple[str, ...], dict[Source, NDArray[np.int64]]]:
    """Return the names of the classes, and the class of each image of each source; neither without labels."""
    labels = {source: source.labels for source in sources.values() if source.labels is not None}
    if not labels:
        return (), {}
    if len(labels) < len(sources):
        unlabelled = next(word for word, source in sources.items() if source not in labels)
        raise InputError(f"{where}: images of the {unlabelled} split alone have no labels; use --data.labels false")
    classes = next(iter(labels)).class_names
    if any(source.class_names != classes for source in labels):
        raise InputError(f"{where}: the splits name different classes; use --data.labels false")
    if not classes:
        values = np.unique(np.concatenate([np.unique(array) for array in labels.values()]))
        return tuple(map(str, values)), {source: np.searchsorted(values, array) for source, array in labels.items()}
    for source, array in labels.items():
        wrong = np.flatnonzero((array < 0) | (array >= len(classes)))
        if len(wrong):
            fault = f"label {array[wrong[0]]}, but there are {counted(len(classes), 'class name')}"
            raise InputError(f"{source.where(int(wrong[0]))} has {fault}; use --data.labels false")
    return classes, {source: array.astype(np.int64) for source, array in labels.items()}
