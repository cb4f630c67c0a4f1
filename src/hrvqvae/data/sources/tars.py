"""WebDataset tars: shards of images that are read by index.

A sample is the members that lie beside each other and have one name up to its first dot: `cats/001.png` and
`cats/001.cls`. Each PNG, JPEG and WebP member is an image. Its label is the whole number in `.cls`, else under "label"
in `.json`; class names are the lines of `classnames.txt` beside the shards or in the folder above them.

A shard is opened for each image, as a file of a folder is: so there is nothing that processes would share, no limit of
open files, and no part of a shard is in memory but that image. What is in memory is the index, some 40 bytes an image
beside its name.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hrvqvae.data.images import opened_file
from hrvqvae.data.sources.base import Part, Source, file_parts
from hrvqvae.data.sources.tar_index import NO_LABEL, TarIndex, indexed
from hrvqvae.utils.errors import InputError

CLASS_NAMES = "classnames.txt"

parts = file_parts


class TarSource(Source):
    """The image members of tars, shard after shard.

    Args:
        files: the shards.
        indexes: of each.
    """

    def __init__(self, files: Sequence[Path], indexes: Sequence[TarIndex], class_names: tuple[str, ...] = ()) -> None:
        self.files = tuple(files)
        self._index = TarIndex.joined(indexes)
        self._first = np.cumsum([0, *(len(index) for index in indexes)])
        if len(self._index) and not (self._index.labels == NO_LABEL).any():
            self.labels, self.class_names = self._index.labels, class_names

    def __len__(self) -> int:
        return len(self._index)

    def _file(self, row: int) -> Path:
        return self.files[int(np.searchsorted(self._first, row, "right")) - 1]

    def name(self, row: int) -> str:
        return unicodedata.normalize("NFC", self._index.name(row))

    def where(self, row: int) -> str:
        return f"{self._file(row)}: {self._index.name(row)}"

    def open(self, row: int) -> Image.Image:
        start, size = int(self._index.offsets[row]), int(self._index.sizes[row])
        with self._file(row).open("rb", buffering=0) as shard:
            shard.seek(start)
            content = shard.read(size)
        if len(content) != size:
            raise OSError("the shard has become shorter")
        return opened_file(io.BytesIO(content))


def _class_names(parts: Sequence[Part]) -> tuple[str, ...]:
    """Lines of the file that names the classes of these shards; none where there is none."""
    for folder in dict.fromkeys(folder for part in parts for folder in (part.path.parent, part.path.parent.parent)):
        path = folder / CLASS_NAMES
        if path.is_file():
            names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            if len(set(names)) < len(names):
                raise InputError(f"{path} names a class twice")
            return names
    return ()


def read(parts: Sequence[Part], labels: bool) -> TarSource:
    """The images of shards, by the index that is kept of them or that is made now.

    Raises:
        InputError: a shard is cut short, damaged or compressed, or there is no image in any.
    """
    files = [part.path for part in parts]
    source = TarSource(files, indexed(files), _class_names(parts) if labels else ())
    if not len(source):
        others = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        raise InputError(f"{files[0]}{others}: no PNG, JPEG or WebP image is in it")
    if not labels:
        source.labels, source.class_names = None, ()
    return source
