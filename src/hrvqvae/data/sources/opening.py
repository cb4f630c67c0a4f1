"""From a path to the images of a split: what the path is decides the form, once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hrvqvae.config import DataConfig
from hrvqvae.data.image_sets import StoredImages
from hrvqvae.data.images import NoImageError, list_folder, nothing_in
from hrvqvae.data.sources import array_files, parquet, tars
from hrvqvae.data.sources.base import Form, Part, Source
from hrvqvae.data.sources.files import FileSource
from hrvqvae.data.sources.naming import files_below, named_files
from hrvqvae.data.splits import HELD_OUT, TRAIN, WORDS, given_split, held_out
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_FORMS: Mapping[str, Form] = {".tar": tars, ".parquet": parquet, ".npy": array_files, ".npz": array_files}
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_WILD = re.compile(r"[*?{\[]")


def open_stored(path: Path, split: str, config: DataConfig, say: Callable[[str], None]) -> StoredImages:
    """Images of the split "train" or "test" that a path stands for.

    The path is a folder of image files (`images.list_folder`); or tars, Parquet files or arrays: one file, a pattern
    of files such as `train-{000..099}.tar` or `train-*.parquet`, or a folder of such files without image files.

    How tars and the like are divided:

    1. Names with the word `train` beside names with `test`, `val` or `validation` (of a file, of a folder that it lies
       in, or of an array in an .npz) are a given split, as folders of these names are. Others are in neither split.
    2. Else the images are divided as those of a folder: by `data.split`, in their order or by a hash of their names.

    Images have classes where every one of both splits has a label.

    Args:
        say: is told what in a folder is not read.

    Raises:
        InputError: nothing is there, or it is damaged, without images, or can't be divided.
    """
    if path.is_dir():
        try:
            return _folder(path, split, config, say)
        except NoImageError:
            if not _files(path)[0]:
                raise
    form, parts = _parts(path, *_files(path))
    given = _given(path, parts)
    if given is None:
        source = form.read(parts, config.labels)
        sources = {TRAIN: source, HELD_OUT[0]: source}
        rows = dict(zip(sources, _divided(source, config), strict=True))
    else:
        chosen = {TRAIN: given[0], HELD_OUT[0]: given[1]}
        wanted = chosen if config.labels else {split: chosen[split]}  # classes are those of both
        sources = {name: form.read(some, config.labels) for name, some in wanted.items()}
        rows = {name: np.arange(len(source)) for name, source in sources.items()}
    if not len(rows[split]):
        raise InputError(nothing_in(split, str(path), len(sources[split])))
    classes, labels = _classes(path, sources)
    source = sources[split]
    return StoredImages(source, rows[split], labels[split][rows[split]], classes, config)


def _files(path: Path) -> tuple[list[Path], Path]:
    """Tars, Parquet files or arrays that a path names, none for a folder without any; and the folder of all."""
    if path.is_dir():
        return files_below(path, tuple(_FORMS)), path
    if path.name.lower().endswith(_COMPRESSED):
        raise InputError(f"{path} is compressed, and can't be read by index; unpack it to a .tar and name that")
    if names_files(path):
        files = named_files(path)
        return files, Path(os.path.commonpath([file.parent for file in files]))
    raise InputError(
        f"{path} is not a folder; nor is it named as tars, Parquet files (.parquet) or arrays (.npy, .npz)"
    )


def names_files(path: Path) -> bool:
    """Whether a path is named as a file or a pattern of files that hold images, and not as a folder."""
    return path.suffix.lower() in _FORMS or _WILD.search(str(path)) is not None


def open_whole(path: Path) -> Source:
    """Every image of tars, Parquet files or arrays, undivided, with their labels where they have some.

    Raises:
        InputError: nothing is there, or it is damaged or without images.
    """
    files, base = _files(path)
    if not files:
        raise InputError(f"{path} has no image: neither image files nor tars, Parquet files or arrays")
    form, parts = _parts(path, files, base)
    return form.read(parts, True)


def _folder(path: Path, split: str, config: DataConfig, say: Callable[[str], None]) -> StoredImages:
    first = config.train_samples if config.split == "sorted" else 0
    listing = list_folder(path, split, test_fraction=config.test_fraction, labels=config.labels, first=first)
    beside = [one for one in path.iterdir() if one.suffix.lower() in (".tar", ".parquet")]
    if beside:
        shards = f"{beside[0].suffix} files"
        say(f"{path}: its images are read and its {shards} are not; to read these: --data '{path}/*{beside[0].suffix}'")
    rows = np.arange(len(listing.paths))
    return StoredImages(FileSource(listing.paths), rows, np.asarray(listing.labels, np.int64), listing.classes, config)


def _parts(path: Path, files: Sequence[Path], base: Path) -> tuple[Form, list[Part]]:
    forms = {file.suffix.lower(): _FORMS.get(file.suffix.lower()) for file in files}
    form = forms[files[0].suffix.lower()]
    if form is None or any(other is not form for other in forms.values()):
        kinds = ", ".join(sorted(suffix or "no suffix" for suffix in forms))
        raise InputError(f"{path} names files of several kinds ({kinds}); name tars, Parquet files or arrays alone")
    return form, form.parts(files, base)


def _given(path: Path, parts: Sequence[Part]) -> tuple[list[Part], list[Part]] | None:
    """(training, test) parts of a given split; None where there is none."""
    by_word: dict[str, list[Part]] = {}
    for part in parts:
        words = re.findall("[a-z]+", part.name.lower())
        by_word.setdefault(next((word for word in words if word in WORDS), ""), []).append(part)
    given = given_split(by_word)
    if given is not None:
        return by_word[given[0]], by_word[given[1]]
    if path.is_dir() and "" not in by_word:
        names, example = " and ".join(sorted(by_word)), parts[0].path
        missing = "no train" if TRAIN not in by_word else f"none of {', '.join(HELD_OUT)}"
        raise InputError(
            f"{path} has {counted(len(parts), 'file')} of {names}, but {missing}: add what is missing, or name "
            f"the files, whose images are then divided: --data '{example.parent}/*{example.suffix}'"
        )
    return None


def _divided(source: Source, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """(training, test) rows of a source without a given split."""
    rows = np.arange(len(source))
    if config.split == "sorted":
        return rows[: config.train_samples], rows[config.train_samples :]
    test = held_out((source.name(row) for row in range(len(source))), config.test_fraction)
    return rows[~test], rows[test]


def _classes(path: Path, sources: Mapping[str, Source]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(names of the classes, number of the class of each image of each source)."""
    labels = {name: source.labels for name, source in sources.items() if source.labels is not None}
    if not labels:
        return (), {name: np.zeros(len(source), np.int64) for name, source in sources.items()}
    if len(labels) < len(sources):
        without = next(name for name in sources if name not in labels)
        raise InputError(
            f"{path}: images of the {without} split have no labels, those of the other do; "
            "label them alike, or take no classes with --data.labels false"
        )
    classes = next(iter(sources.values())).class_names
    if any(source.class_names != classes for source in sources.values()):
        raise InputError(f"{path}: the splits name other classes; take none with --data.labels false")
    if not classes:
        values = np.unique(np.concatenate([np.unique(some) for some in labels.values()]))
        return tuple(map(str, values)), {name: np.searchsorted(values, some) for name, some in labels.items()}
    for name, some in labels.items():
        wrong = np.flatnonzero((some < 0) | (some >= len(classes)))
        if len(wrong):
            raise InputError(
                f"{sources[name].where(int(wrong[0]))} has label {some[wrong[0]]}, and there are "
                f"{counted(len(classes), 'class name')}; take no classes with --data.labels false"
            )
    return classes, {name: some.astype(np.int64) for name, some in labels.items()}
