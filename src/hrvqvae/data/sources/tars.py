"""WebDataset tars: shards of images that are read by index.

A sample is the members that lie beside each other and have one name up to its first dot: `cats/001.png` and
`cats/001.cls`. Each PNG, JPEG and WebP member is an image. Its label is the whole number in `.cls`, else under "label"
in `.json`; class names are the lines of `classnames.txt` beside the shards or in the folder above them.

A shard is opened for each image, so there is no limit of open files. Where each image lies is found by reading the
headers once, and kept in the user's cache folder for as long as the shards have the same names, sizes and times.
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
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import SUFFIXES, opened_file
from hrvqvae.data.sources import Part, Source, decoded, encoded
from hrvqvae.data.sources.files import normal
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import write_atomic
from hrvqvae.utils.progress import note, waiting

CLASS_NAMES = "classnames.txt"
NO_LABEL = int(np.iinfo(np.int64).min)
KEPT_FROM = 2_000  # images, from which an index is kept
_FORMAT = 3  # of a kept index
_BLOCK = 512  # bytes, of which a tar is made
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # of a member's name, as WebDataset divides it


class TarSource(Source):
    """The image members of tars, shard after shard."""

    def __init__(
        self, files: Sequence[Path], counts: Sequence[int], places: NDArray[np.int64], names: NDArray[np.bytes_],
        labels: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """`places` (N, 2) are where each image begins in its shard and its bytes; `labels` (N,) may be NO_LABEL."""
        super().__init__(counts)
        self.files, self._places, self._names, self.given = tuple(files), places, names, labels

    def name(self, row: int) -> str:
        return normal(decoded(self._names, row))

    def where(self, row: int) -> str:
        return f"{self.files[self.place(row)[0]]}: {decoded(self._names, row)}"

    def open(self, row: int) -> Image.Image:
        start, size = map(int, self._places[row])
        with self.files[self.place(row)[0]].open("rb", buffering=0) as stream:
            stream.seek(start)
            content = stream.read(size)
        if len(content) != size:
            raise OSError("the shard has become shorter")
        return opened_file(io.BytesIO(content))


def read(parts: Sequence[Part], labels: bool) -> TarSource:
    """The images of shards. Raises InputError as `scan`, and where there is no image in any."""
    files = [part.path for part in parts]
    try:
        source = _indexed(files)
    except OSError as error:
        raise InputError(f"{error.filename} can't be read ({error.strerror})") from error
    if not len(source):
        raise InputError(f"{files[0]}: no PNG, JPEG or WebP image is in it")
    if labels and NO_LABEL not in source.given:
        source.labels, source.class_names = source.given, _class_names(files)
    return source


def _class_names(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of the classes, from the file beside the shards or above them; empty where there is none."""
    for folder in dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)):
        path = folder / CLASS_NAMES
        if path.is_file():
            names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            if len(set(names)) < len(names):
                raise InputError(f"{path} names a class twice")
            return names
    return ()


def _indexed(files: Sequence[Path]) -> TarSource:
    """Shards by an index that was kept, or that is made now."""
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    known = hashlib.blake2b(repr((_FORMAT, states)).encode(), digest_size=16).hexdigest()
    kept = Path(platformdirs.user_cache_dir("hrvqvae", appauthor=False)) / "indexes" / f"{known}.npz"
    with contextlib.suppress(Exception), kept.open("rb") as stream:  # what is damaged raises whatever it runs into
        return TarSource(files, **np.load(stream))
    if len(files) > 1:
        waiting(f"reading what is in {len(files):,} shards")
    counts, starts, told, names = list[int](), array("q"), array("q"), list[str]()
    for path in files:
        scan(path, starts, told, names)
        counts.append(len(names) - sum(counts))
    places, labels = np.array(starts, np.int64).reshape(-1, 2), np.array(told, np.int64)
    index: dict[str, Any] = {"counts": counts, "places": places, "names": encoded(names), "labels": labels}
    if len(names) >= KEPT_FROM:
        content = io.BytesIO()
        np.savez(content, **index)
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, content.getvalue())
    return TarSource(files, **index)


def scan(path: Path, places: array[int], labels: array[int], names: list[str]) -> None:
    """Append the image members of a tar by its headers: where each begins, how long it is, its label and name.

    Links are left out, with a line in the log.

    Raises:
        InputError: it is cut short, damaged, or no uncompressed tar; a label is no whole number.
    """
    links = list[str]()
    with path.open("rb") as stream:
        samples = ((_KEY.fullmatch(member.name), member) for member in _members(path, stream))
        named = ((matched[1], matched[2], member) for matched, member in samples if matched)
        for _, members in groupby(named, key=lambda one: one[0]):
            told, before = dict[str, int](), len(names)
            for _, kind, member in members:
                is_image = member.name.lower().endswith(SUFFIXES)
                if not member.isreg():
                    links += [member.name] if is_image or kind in ("cls", "json") else []
                elif is_image:
                    places.extend((member.offset_data, member.size))
                    names.append(member.name.removeprefix("./"))
                elif kind in ("cls", "json"):
                    stream.seek(member.offset_data)
                    told[kind] = _label(kind, stream.read(member.size), f"{path}: {member.name}")
            labels.extend([told.get("cls", told.get("json", NO_LABEL))] * (len(names) - before))
    if links:
        note(f"{path}: links such as {links[0]} are left out; pack it with tar --dereference --hard-dereference")


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files and links in a tar, in order. Raises InputError where it is cut short, damaged or no tar."""
    latest, reason = "", ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
                latest = f" after its member {member.name}"
                if member.isreg() or member.issym() or member.islnk():
                    yield member
            stream.seek(archive.offset)
            if stream.read(_BLOCK) == bytes(_BLOCK):
                return
    except (tarfile.TarError, EOFError) as error:
        reason = f" ({error})"
    fault = "is cut short or damaged" if latest else "is no uncompressed tar that can be read by index"
    raise InputError(f"{path} {fault}{latest}{reason}; get or pack it again")


def _label(kind: str, content: bytes, where: str) -> int:
    """The label in a `.cls` or a `.json`; `NO_LABEL` where the latter has none."""
    found: Any = None
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        found = int(content) if kind == "cls" else json.loads(content)["label"]
    if type(found) is int and NO_LABEL < found < 2**63:
        return found
    if kind == "cls":
        raise InputError(f"{where} is not the number of a class")
    return NO_LABEL
