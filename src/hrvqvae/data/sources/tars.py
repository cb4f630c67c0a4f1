"""WebDataset tars: shards of images with random access by an index.

docs/own-data.md describes samples, labels and class names. The first process reads the headers of
all shards and writes an index of the images to the user's cache folder. Later processes use the
index while the paths, sizes and times of the shards are the same. A shard is opened for each image,
so the limit of open files does not limit the number of shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import SUFFIXES, open_image_file
from hrvqvae.data.sources import (
    ENDING_BYTES,
    Shard,
    Source,
    decode_name,
    encode_names,
    find_user_cache,
    read_end,
)
from hrvqvae.data.sources.files import OTHER_IMAGES, normalize
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import write_atomic
from hrvqvae.utils.progress import note, waiting
from hrvqvae.utils.quantities import counted

CLASS_NAMES = "classnames.txt"
NO_LABEL = int(np.iinfo(np.int64).min)
BAD_LABEL = NO_LABEL + 1  # a .cls file that is no whole number
MIN_INDEXED_IMAGES = 2_000  # an index of fewer images is not written to the cache
# version and arrays of the index in the cache
_FORMAT = 5
_ARRAYS = ("counts", "spans", "names", "labels")
_BLOCK = 512  # bytes; a tar is made of blocks
# (sample, extension), as in WebDataset, but never a file or a folder whose name begins with a dot,
# such as ._a.png and .AppleDouble/a.png of macOS; "", . and .. are parts of paths
_MEMBER_NAME = re.compile(r"((?:(?:[.]{0,2}|[^./][^/]*)/)*[^./]+)[.]([^/]*)")


class TarSource(Source):
    """The image members of tars, shard after shard."""

    def __init__(self, shards: Sequence[Shard], labels: bool) -> None:
        """Open the images of shards. Raises InputError as `scan`, or if no shard has an image."""
        self.files = tuple(shard.path for shard in shards)
        try:
            counts, self._spans, self._names, stored_labels = _load_index(self.files)
        except OSError as error:
            raise InputError(f"{error.filename} can't be read ({error.strerror})") from error
        super().__init__(counts)
        if not len(self):
            raise InputError(f"{self.files[0]}: no PNG, JPEG or WebP image is in it")
        if labels and BAD_LABEL in stored_labels:
            where = self.where(int(np.argmax(stored_labels == BAD_LABEL)))
            raise InputError(
                f"{where}: its .cls file is no number; correct it, or train with --data.labels"
                " false"
            )
        if missing := int((stored_labels == NO_LABEL).sum()):
            self.unlabelled = f"{counted(missing, 'image')} without a whole number in .cls or .json"
        elif labels:
            self.labels = stored_labels
            self.class_names = _read_class_names(self.files)

    def name(self, row: int) -> str:
        return normalize(decode_name(self._names, row))

    def where(self, row: int) -> str:
        return f"{self.files[self.locate(row)[0]]}: {decode_name(self._names, row)}"

    def open(self, row: int) -> Image.Image:
        start, size = map(int, self._spans[row])
        # all of the member
        encoded = read_end(self.files[self.locate(row)[0]], start, size, size)
        if len(encoded) != size:
            raise OSError("the shard has become shorter")
        return open_image_file(io.BytesIO(encoded))

    def content(self, row: int, ending: bool) -> bytes:
        start, size = map(int, self._spans[row])
        file = self.files[self.locate(row)[0]]
        return b"%d %b" % (size, read_end(file, start, size, ENDING_BYTES) if ending else b"")


def _read_class_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of the classes from `classnames.txt` beside the shards or one folder above;
    () without it.
    """
    folders = [file.parent for file in files]
    for folder in dict.fromkeys([*folders, *(folder.parent for folder in folders)]):
        path = folder / CLASS_NAMES
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not in UTF-8") from error
            names = tuple(line.strip() for line in lines if line.strip())
            if len(set(names)) < len(names):
                raise InputError(f"{path} names a class twice")
            return names
    return ()


def _load_index(files: Sequence[Path]) -> list[NDArray[Any]]:
    """Return four arrays: images per shard, and per image (offset, length), name and label (or
    NO_LABEL, BAD_LABEL).

    The arrays are loaded from the cache, or else made, and written to the cache if there are many
    images.
    """
    states = [
        (str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    digest = hashlib.blake2b(repr((_FORMAT, states)).encode(), digest_size=16).hexdigest()
    # Often there is no index. A damaged one may raise any error.
    with (
        contextlib.suppress(Exception),
        (find_user_cache() / "indexes" / f"{digest}.npz").open("rb") as stream,
    ):
        index = np.load(stream)
        return [index[name] for name in _ARRAYS]
    if len(files) > 1:
        waiting(f"reading the headers of {len(files):,} shards")
    counts = list[int]()
    spans = array("q")
    labels = array("q")
    names = list[str]()
    for path in files:
        scan(path, spans, labels, names)
        counts.append(len(names) - sum(counts))
    arrays: list[Any] = [
        np.array(counts),
        np.array(spans, np.int64).reshape(-1, 2),
        encode_names(names),
        np.array(labels, np.int64),
    ]
    if len(names) >= MIN_INDEXED_IMAGES:
        content = io.BytesIO()
        np.savez(content, **dict(zip(_ARRAYS, arrays, strict=True)))
        with contextlib.suppress(OSError, InputError):
            folder = find_user_cache() / "indexes"
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"{digest}.npz", content.getvalue())
    return arrays


def scan(path: Path, spans: array[int], labels: array[int], names: list[str]) -> None:
    """Append the span (offset, length), label and name of each image of a tar. Notes tell what is
    left out.

    Raises InputError if the file is cut short, damaged or no uncompressed tar.
    """
    links = list[str]()
    others = []
    with path.open("rb") as stream:
        for _, members in groupby(_read_members(path, stream), itemgetter(0)):
            label_by_extension = {}
            first = len(names)
            for _, extension, member in members:
                is_image = member.name.lower().endswith(SUFFIXES)
                if not member.isreg():
                    links += [member.name] if is_image or extension in ("cls", "json") else []
                elif is_image:
                    spans.extend((member.offset_data, member.size))
                    names.append(member.name.removeprefix("./"))
                elif OTHER_IMAGES.fullmatch(Path(member.name).suffix.lower()):
                    others.append(member.name)
                elif extension in ("cls", "json"):
                    stream.seek(member.offset_data)  # tarfile finds the next header by itself
                    content = stream.read(member.size)
                    label_by_extension[extension] = _read_label(extension, content)
            label = label_by_extension.get("cls", label_by_extension.get("json", NO_LABEL))
            labels.extend([label] * (len(names) - first))
    if links:
        note(
            f"{path}: links such as {links[0]} are left out; pack it with tar --dereference"
            " --hard-dereference"
        )
    if others:
        note(
            f"{path}: {counted(len(others), 'image')} such as {others[0]} left out; convert to PNG,"
            " JPEG or WebP"
        )


def _read_members(path: Path, stream: BinaryIO) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield (sample, extension, member) of each file and link in a tar, in order.

    Raises InputError if the tar is cut short, damaged or no tar.
    """
    place = ""  # of the fault
    reason = ""
    size = path.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                # otherwise tarfile keeps every header
                archive.members = []  # type: ignore[attr-defined]
                if not member.issparse() and not 0 <= member.size <= size - member.offset_data:
                    raise EOFError(f"{member.name} is longer than the file")
                place = f" after its member {member.name}"
                matched = _MEMBER_NAME.fullmatch(member.name)
                if matched and (member.isreg() or member.issym() or member.islnk()):
                    yield matched[1], matched[2], member
            # A complete tar ends with blocks of zeros, where the next header would be.
            stream.seek(archive.offset)
            if stream.read(_BLOCK) == bytes(_BLOCK):
                return
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        reason = f" ({error})"
    fault = "is cut short or damaged" if place else "is no uncompressed tar"
    raise InputError(f"{path} {fault}{place}{reason}; get or pack it again")


def _read_label(extension: str, content: bytes) -> int:
    """Return the label in a `.cls` or `.json` member; `BAD_LABEL` or `NO_LABEL` if it has none."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        label: Any = int(content) if extension == "cls" else json.loads(content)["label"]
        if type(label) is int and BAD_LABEL < label < 2**63:
            return label
    return BAD_LABEL if extension == "cls" else NO_LABEL
