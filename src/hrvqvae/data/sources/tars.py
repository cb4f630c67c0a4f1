"""WebDataset tars: shards of images with random access by an index.

docs/own-data.md describes samples, labels and class names. The first call reads the headers of all shards and writes an
index of the images to the user's cache folder. Later calls use the index while the paths, sizes and times of the shards
are the same. A shard is opened for each image, so the limit of open files does not limit the number of shards.
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
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import SUFFIXES, open_image_file
from hrvqvae.data.sources import ENDING_BYTES, Shard, Source, decode_name, encode_names, find_user_cache, read_end
from hrvqvae.data.sources.files import normalize
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import write_atomic
from hrvqvae.utils.progress import note, waiting

CLASS_NAMES = "classnames.txt"
NO_LABEL = int(np.iinfo(np.int64).min)
MIN_INDEXED_IMAGES = 2_000  # an index of fewer images is not written to the cache
_FORMAT, _ARRAYS = 3, ("counts", "spans", "names", "labels")  # version and arrays of the index in the cache
_BLOCK = 512  # bytes; a tar is made of blocks
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # sample and extension in the name of a member, as in WebDataset


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
        if labels and NO_LABEL not in stored_labels:
            self.labels, self.class_names = stored_labels, _read_class_names(self.files)

    def name(self, row: int) -> str:
        return normalize(decode_name(self._names, row))

    def where(self, row: int) -> str:
        return f"{self.files[self.locate(row)[0]]}: {decode_name(self._names, row)}"

    def open(self, row: int) -> Image.Image:
        start, size = map(int, self._spans[row])
        encoded = read_end(self.files[self.locate(row)[0]], start, size, size)
        if len(encoded) != size:
            raise OSError("the shard has become shorter")
        return open_image_file(io.BytesIO(encoded))

    def content(self, row: int, ending: bool) -> bytes:
        start, size = map(int, self._spans[row])
        file = self.files[self.locate(row)[0]]
        return b"%d %b" % (size, read_end(file, start, size, ENDING_BYTES) if ending else b"")


def _read_class_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of the classes from `classnames.txt` beside the shards or one folder above; () without it."""
    for folder in dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)):
        path = folder / CLASS_NAMES
        if path.is_file():
            names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            if len(set(names)) < len(names):
                raise InputError(f"{path} names a class twice")
            return names
    return ()


def _load_index(files: Sequence[Path]) -> list[NDArray[Any]]:
    """Return the images per shard, offset and length (N, 2), name and label (N,) or NO_LABEL of each image.

    The index is loaded from the cache, or else made, and written to the cache if it is large.
    """
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = hashlib.blake2b(repr((_FORMAT, states)).encode(), digest_size=16).hexdigest()
    # A damaged index may raise any error. Without a home folder there is no cache.
    with contextlib.suppress(Exception), (find_user_cache() / "indexes" / f"{name}.npz").open("rb") as stream:
        index = np.load(stream)
        return [index[name] for name in _ARRAYS]
    if len(files) > 1:
        waiting(f"reading the headers of {len(files):,} shards")
    counts, spans, labels, names = list[int](), array("q"), array("q"), list[str]()
    for path in files:
        scan(path, spans, labels, names)
        counts.append(len(names) - sum(counts))
    arrays: list[Any] = [
        np.array(counts), np.array(spans, np.int64).reshape(-1, 2), encode_names(names), np.array(labels, np.int64)
    ]  # fmt: skip
    if len(names) >= MIN_INDEXED_IMAGES:
        content = io.BytesIO()
        np.savez(content, **dict(zip(_ARRAYS, arrays, strict=True)))
        with contextlib.suppress(OSError, InputError):
            folder = find_user_cache() / "indexes"
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"{name}.npz", content.getvalue())
    return arrays


def scan(path: Path, spans: array[int], labels: array[int], names: list[str]) -> None:
    """Append the span (offset, length), label and name of each image of a tar. A note tells that links are left out.

    Raises InputError if the file is cut short, damaged or no uncompressed tar, or if a .cls file is no whole number.
    """
    links = list[str]()
    with path.open("rb") as stream:
        keys = ((_KEY.fullmatch(member.name), member) for member in _read_members(path, stream))
        named = ((matched[1], matched[2], member) for matched, member in keys if matched)
        for _, members in groupby(named, key=lambda parts: parts[0]):
            sample_labels, first = dict[str, int](), len(names)
            for _, kind, member in members:
                is_image = member.name.lower().endswith(SUFFIXES)
                if not member.isreg():
                    links += [member.name] if is_image or kind in ("cls", "json") else []
                elif is_image:
                    spans.extend((member.offset_data, member.size))
                    names.append(member.name.removeprefix("./"))
                elif kind in ("cls", "json"):
                    stream.seek(member.offset_data)
                    sample_labels[kind] = _read_label(kind, stream.read(member.size), f"{path}: {member.name}")
            label = sample_labels.get("cls", sample_labels.get("json", NO_LABEL))
            labels.extend([label] * (len(names) - first))
    if links:
        note(f"{path}: links such as {links[0]} are left out; pack it with tar --dereference --hard-dereference")


def _read_members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the files and links in a tar, in order. Raises InputError if the tar is cut short, damaged or no tar."""
    latest, reason = "", ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
                latest = f" after its member {member.name}"
                if member.isreg() or member.issym() or member.islnk():
                    yield member
            stream.seek(archive.offset)
            if stream.read(_BLOCK) == bytes(_BLOCK):
                return
    except (tarfile.TarError, EOFError) as error:
        reason = f" ({error})"
    fault = "is cut short or damaged" if latest else "is no uncompressed tar"
    raise InputError(f"{path} {fault}{latest}{reason}; get or pack it again")


def _read_label(kind: str, content: bytes, where: str) -> int:
    """Return the label in a `.cls` or `.json` member; `NO_LABEL` for a `.json` without a label."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        label: Any = int(content) if kind == "cls" else json.loads(content)["label"]
        if type(label) is int and NO_LABEL < label < 2**63:
            return label
    if kind == "cls":
        raise InputError(f"{where} is not the number of a class")
    return NO_LABEL
