"""Where the images lie in tars: found by reading the headers once, and kept beside the shards.

`.hrvqvae-index.npz` in the folder of the shards, or where that can't be written in the user's cache folder, holds what
was found in each shard, by its name, size and time of change. A shard for which these differ is read again. Sets of
few images are not worth a file, and get none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import uuid
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.typing import NDArray

from hrvqvae.data.images import SUFFIXES
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted

NO_LABEL = int(np.iinfo(np.int64).min)
KEPT_FROM = 2_000  # images of a folder of shards, from which their index is kept
FILE = ".hrvqvae-index.npz"
_FORMAT = 1
_BLOCK = 512  # bytes, of which a tar is made
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # of a member's name, as WebDataset divides it
_Stamp = tuple[str, int, int]  # name, size and time of change of a shard


@dataclass(frozen=True)
class TarIndex:
    """The image members of one tar or of several, in order.

    Attributes:
        offsets, sizes: (N,) where the content of each begins in its tar, and how many bytes it has.
        labels: (N,), NO_LABEL where there is none.
        ends: (N,) where the name of each ends in `names`.
        names: the UTF-8 bytes of all names, one after another.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    ends: NDArray[np.int64]
    names: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, row: int) -> str:
        """Name of a member."""
        start = int(self.ends[row - 1]) if row else 0
        return self.names[start : int(self.ends[row])].tobytes().decode("utf-8", "surrogateescape")

    @staticmethod
    def joined(indexes: Sequence[TarIndex]) -> TarIndex:
        """Several as one."""
        lengths = np.cumsum([0, *(len(index.names) for index in indexes)])
        ends = [index.ends + before for index, before in zip(indexes, lengths[:-1], strict=True)]
        columns = [[getattr(index, name) for index in indexes] for name in ("offsets", "sizes", "labels")]
        return TarIndex(*map(np.concatenate, (*columns, ends, [index.names for index in indexes])))

    def part(self, first: int, last: int) -> TarIndex:
        """The members first .. last - 1."""
        begin, end = (int(self.ends[place - 1]) if place else 0 for place in (first, last))
        rows = slice(first, last)
        return TarIndex(
            self.offsets[rows], self.sizes[rows], self.labels[rows], self.ends[rows] - begin, self.names[begin:end]
        )


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, in order. Raises InputError where it is cut short, damaged or no tar."""
    length, whole, latest = os.fstat(stream.fileno()).st_size, "", ""
    fault = ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
                latest = member.name
                if member.offset_data + member.size <= length:
                    whole = latest
                if member.isreg():
                    yield member
            stream.seek(archive.offset)
            ending = stream.read(_BLOCK)
    except (tarfile.TarError, EOFError) as error:
        fault = (
            "is cut short" if latest else f"is not a tar that can be read by index ({error}); compressed ones are not"
        )
    else:
        if ending != bytes(_BLOCK):
            fault = "is damaged" if len(ending) == _BLOCK else "is cut short"
    if fault:
        last = f" after its member {whole}" if whole else ""
        raise InputError(f"{path} {fault}{last}; get or pack it again")


def _label(kind: str, content: bytes, where: str) -> int:
    """The label in a member, `NO_LABEL` where it tells none."""
    try:
        if kind == "cls":
            return int(content.decode())
        value = json.loads(content)
    except ValueError as error:
        if kind == "cls":
            raise InputError(f"{where} is not a whole number; take no classes, or make the shards anew") from error
        return NO_LABEL
    found = value.get("label") if isinstance(value, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else NO_LABEL


def _numbers(column: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(column.tobytes(), np.int64)


def scan(path: Path) -> TarIndex:
    """The image members of a tar, by reading its headers.

    Raises:
        InputError: it is cut short (the last whole member is named), damaged, or no uncompressed tar; a `.cls` holds
            no whole number.
    """
    offsets, sizes, labels, ends, names = array("q"), array("q"), array("q"), array("q"), bytearray()
    key, first, told = "", 0, dict[str, int]()

    def close_sample() -> None:
        label = told.get("cls", told.get("json", NO_LABEL))
        labels.extend([label] * (len(offsets) - first))

    try:
        with path.open("rb") as stream:
            for member in _members(path, stream):
                matched = _KEY.fullmatch(member.name)
                if matched is None:
                    continue
                if matched[1] != key:
                    close_sample()
                    key, first, told = matched[1], len(offsets), {}
                if member.name.lower().endswith(SUFFIXES):
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    names += member.name.removeprefix("./").encode("utf-8", "surrogateescape")
                    ends.append(len(names))
                elif matched[2] in ("cls", "json"):
                    stream.seek(member.offset_data)
                    told[matched[2]] = _label(matched[2], stream.read(member.size), f"{path}: {member.name}")
            close_sample()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error
    text = np.frombuffer(bytes(names), np.uint8)
    return TarIndex(_numbers(offsets), _numbers(sizes), _numbers(labels), _numbers(ends), text)


def _places(folder: Path) -> tuple[Path, Path]:
    """Where the index of a folder's shards may lie: beside them, or in the cache folder."""
    known = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=8).hexdigest()
    return folder / FILE, Path(platformdirs.user_cache_dir("hrvqvae", appauthor=False)) / "indexes" / f"{known}.npz"


def _unpacked(file: Mapping[str, NDArray[Any]]) -> dict[_Stamp, TarIndex]:
    """What a file of an index holds. Raises ValueError where it is of another format."""
    if int(file["format"]) != _FORMAT:
        raise ValueError("another format")
    whole = TarIndex(*(file[name] for name in ("offsets", "sizes", "labels", "ends", "names")))
    last = np.cumsum(file["counts"]).tolist()
    stamps = zip(file["shards"].tolist(), file["lengths"].tolist(), file["changed"].tolist(), strict=True)
    return {stamp: whole.part(begin, end) for stamp, begin, end in zip(stamps, [0, *last[:-1]], last, strict=True)}


def _kept(folder: Path) -> dict[_Stamp, TarIndex]:
    """What is kept of a folder's shards; what can't be read is as if it were not there."""
    for path in _places(folder):
        with contextlib.suppress(Exception), path.open("rb") as stream:  # what is damaged raises whatever it runs into
            return _unpacked(np.load(stream))
    return {}


def _keep(folder: Path, found: dict[_Stamp, TarIndex]) -> None:
    """Keep what was found in a folder's shards, where a place can be written."""
    shards, lengths, changed = zip(*found, strict=True)
    whole = TarIndex.joined(list(found.values()))
    columns: dict[str, Any] = {
        "format": _FORMAT, "shards": shards, "lengths": lengths, "changed": changed,
        "counts": [len(index) for index in found.values()], **vars(whole),
    }  # fmt: skip
    for path in _places(folder):
        temporary = path.with_name(f".writing-{uuid.uuid4().hex[:8]}{FILE}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as stream:
                np.savez(stream, **columns)
            temporary.replace(path)
            return
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _stamp(file: Path) -> _Stamp:
    state = file.stat()
    return file.name, state.st_size, state.st_mtime_ns


def indexed(files: Sequence[Path]) -> list[TarIndex]:
    """The index of each shard: kept, or made now and kept. Raises InputError as `scan` does."""
    known: dict[Path, TarIndex] = {}
    for folder, some in groupby(sorted(files), lambda file: file.parent):
        stamps = {_stamp(file): file for file in some}
        kept = _kept(folder)
        there = {stamp: kept[stamp] for stamp in kept if stamp in stamps or _unchanged(folder, stamp)}
        missing = [stamp for stamp in stamps if stamp not in there]
        if len(missing) > 1:
            waiting(f"reading what is in {counted(len(missing), 'shard')} of {folder}")
        try:
            for stamp in missing:
                there[stamp] = scan(stamps[stamp])
        finally:
            if missing and sum(map(len, there.values())) >= KEPT_FROM:
                _keep(folder, there)
        known |= {file: there[stamp] for stamp, file in stamps.items()}
    return [known[file] for file in files]


def _unchanged(folder: Path, stamp: _Stamp) -> bool:
    """Whether a shard that nobody asks for now is still as it was when it was indexed."""
    with contextlib.suppress(OSError):
        return _stamp(folder / stamp[0]) == stamp
    return False
