"""The images that are turned into codes: each has a key, and they come in the order of their keys."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import SUFFIXES, opened_file
from hrvqvae.data.loading import open_whole
from hrvqvae.data.sources.base import WORDS, Source
from hrvqvae.utils.errors import InputError

LISTS = (".txt", ".list", ".tsv")
_CHUNK = 10_000


class NamedFiles(Source):
    """Image files by their names below a folder.

    Args:
        folder: that relative names are below.
        names: (N,) of the files; held as one block of text, since there may be millions.
    """

    def __init__(self, folder: Path, names: pa.StringArray) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return str(self.names[row].as_py())

    def where(self, row: int) -> str:
        return str(self.folder / self.name(row))

    def open(self, row: int) -> Image.Image:
        return opened_file(self.folder / self.name(row))


@dataclass(frozen=True)
class KeyedImages:
    """Images in the order of their keys.

    Attributes:
        source: where they lie.
        keys: (N,) sorted by their UTF-8 bytes, each once.
        rows: (N,) the place of each in the source.
        class_part: which part of a key is the class of the image; None where the source has the labels, if any.
    """

    source: Source
    keys: pa.StringArray
    rows: NDArray[np.int64]
    class_part: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, place: int) -> str:
        """The key of an image."""
        return str(self.keys[place].as_py())

    def label(self, place: int) -> str | int | None:
        """The class name of an image, or its number where classes have no names; None where it has none."""
        if self.class_part is not None:
            return self.key(place).split("/")[self.class_part]
        if self.source.labels is None:
            return None
        value = self.source.labels[self.rows[place]]
        if self.source.class_names:
            return self.source.class_names[int(value)]
        return None if value is None else value.item() if isinstance(value, np.generic) else value

    @property
    def label_type(self) -> pa.DataType:
        """The type of the labels in a shard."""
        numbers = self.source.labels is not None and self.source.labels.dtype.kind in "iu"
        return pa.int64() if numbers and not self.source.class_names else pa.string()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty where the labels have no names, or are missing."""
        if self.class_part is None:
            return self.source.class_names
        return tuple(sorted({str(self.label(place)) for place in range(len(self))}))

    def digest(self) -> str:
        """A name for these keys and labels, in this order."""
        state = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), _CHUNK):
            places = range(start, min(len(self), start + _CHUNK))
            state.update("".join(f"{self.key(place)}\0{self.label(place)!r}\0" for place in places).encode())
        return state.hexdigest()


def _names_below(folder: Path) -> Iterator[str]:
    """Names of image files at any depth. Links to folders directly inside are followed, as in training data."""
    for where, folders, names in os.walk(folder):
        if Path(where) == folder:
            for linked in [name for name in folders if (folder / name).is_symlink()]:
                folders.remove(linked)
                yield from (f"{linked}/{name}" for name in _names_below(folder / linked))
        below = Path(where).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if name.lower().endswith(SUFFIXES))


def _strings(names: Iterable[str]) -> pa.StringArray:
    """Names as one array, never all of them as Python objects. Raises InputError where one is not UTF-8."""
    parts, names = list[pa.Array](), iter(names)
    while some := list(islice(names, _CHUNK)):
        try:
            parts.append(pa.array(some, pa.string()))
        except UnicodeEncodeError as error:
            name = next(name for name in some if not _encodes(name))
            raise InputError(f"{name!r} has a name that is not UTF-8; rename it") from error
    return pa.chunked_array(parts, pa.string()).combine_chunks()


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(path: Path) -> tuple[list[str], list[str | None]]:
    """(names, labels) of a list: a name a line, and after a tab its label."""
    names, labels = list[str](), list[str | None]()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of images in UTF-8") from error
    for line in lines:
        name, tab, label = line.partition("\t")
        if name.strip():
            names.append(os.path.normpath(name.strip()).replace(os.sep, "/"))
            labels.append(label.strip() if tab and label.strip() else None)
    return names, labels


def _sorted(source: Source, keys: pa.StringArray, whose: str) -> KeyedImages:
    """Raises InputError where two images have one key."""
    rows = pc.sort_indices(keys).to_numpy().astype(np.int64)
    keys = keys.take(pa.array(rows))
    same = pc.equal(keys[1:], keys[:-1])
    if pc.any(same).as_py():
        key = keys[pc.index(same, True).as_py()].as_py()
        raise InputError(f"{whose} has two images named {key}; every image needs a name of its own")
    return KeyedImages(source, keys, rows)


def _class_part(keys: pa.StringArray) -> int | None:
    """Which part of the keys is a class folder: the first, below the folders of a given split; None without any."""
    tops = set(pc.unique(pc.replace_substring_regex(keys, "/.*", "")).to_pylist()) if len(keys) else set()
    depth = pc.min(pc.count_substring(keys, "/")).as_py()
    part = 1 if tops <= set(WORDS) else 0
    return part if depth > part else None


def keyed_images(source: Path) -> KeyedImages:
    """The images of a folder, of a list of images, or of tars, Parquet files or arrays as training takes them.

    A folder's keys are the paths below it; its labels are its class folders, where every image lies in one. A list has
    a path a line, from its own folder, and after a tab a label; its paths are the keys. In tars and the like the keys
    are the names that the images have there.

    Raises:
        InputError: nothing is there, no image is in it, or two images have one key.
    """
    source = source.absolute()
    if source.is_dir():
        names = _strings(_names_below(source))
        if len(names):
            found = _sorted(NamedFiles(source, names), names, str(source))
            return KeyedImages(found.source, found.keys, found.rows, _class_part(found.keys))
    elif source.is_file() and source.suffix.lower() in LISTS:
        listed, labels = _listed(source)
        if not listed:
            raise InputError(f"{source} names no image; it has a path a line")
        files = NamedFiles(source.parent, _strings(listed))
        files.labels = _labels(labels)
        keys = _strings(name.lstrip("/") for name in listed)
        return _sorted(files, keys, str(source))
    stored = open_whole(source)
    return _sorted(stored, _strings(stored.name(row) for row in range(len(stored))), str(source))


def _labels(labels: Sequence[str | None]) -> NDArray[np.object_] | None:
    return np.array(labels, object) if any(label is not None for label in labels) else None
