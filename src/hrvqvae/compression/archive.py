"""The archive, .hrva: the tables once, then blocks of images, each with an index. docs/format.md states it.

To append is to write a block at the end. A block counts when it is there as a whole, so a killed writer leaves all
blocks that were there before, and bytes after them that the next writer cuts off.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.blocks import BLOCK, Entry, block_of, decode_records, read_block
from hrvqvae.compression.checksum import crc8
from hrvqvae.compression.geometry import Grid
from hrvqvae.compression.stream import Codec, Picture
from hrvqvae.compression.tables import Tables, read_tables
from hrvqvae.utils.errors import DamagedFileError, InputError

SUFFIX = ".hrva"
_MAGIC = b"HRVA\x00"
_MOST_TABLES = 1 << 28


@dataclass(frozen=True)
class Archive:
    """What an archive holds; its images are read when they are asked for.

    Attributes:
        path: of the file.
        codec: by which its codes are read: its own tables.
        entries: its images, in order.
        end: where its last whole block ends.
        left_over: bytes after that, which a killed writer left.
    """

    path: Path
    codec: Codec
    entries: tuple[Entry, ...]
    end: int
    left_over: int

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers of images by name. Raises InputError where one is not there."""
        known = {entry.name: number for number, entry in enumerate(self.entries)}
        for name in names:
            if name not in known:
                raise InputError(f"{self.path} has no image named {name!r}")
        return [known[name] for name in names]

    def read(self, numbers: Sequence[int], levels: int | None = None) -> list[Picture]:
        """The codes of these images, in order. `lengths` of levels count no checks: a record has one.

        Raises:
            InputError: there is no image of such a number.
            DamagedFileError: a record is damaged; the image is named.
        """
        if not all(0 <= number < len(self.entries) for number in numbers):
            raise InputError(f"{self.path} has images 0 to {len(self.entries) - 1}, not all of {list(numbers)[:5]}")
        together: dict[tuple[Grid, int], list[int]] = {}
        with self.path.open("rb") as stream:
            records = {number: _read_at(stream, self.entries[number]) for number in set(numbers)}
        for number, record in records.items():
            entry = self.entries[number]
            if crc8(record):
                raise DamagedFileError(f"{self.path}: image {number} ({entry.name or 'without a name'}) is damaged")
            together.setdefault((entry.size, entry.levels), []).append(number)
        found: dict[int, Picture] = {}
        for (size, stored), some in together.items():
            pictures = decode_records(
                self.codec, [records[number] for number in some], size, stored, min(levels or stored, stored)
            )
            for number, picture in zip(some, pictures, strict=True):
                if picture is None:
                    raise DamagedFileError(f"{self.path}: image {number} is damaged")
                found[number] = picture
        return [found[number] for number in numbers]


def _read_at(stream: BinaryIO, entry: Entry) -> bytes:
    stream.seek(entry.place)
    return stream.read(entry.length)


def open_archive(path: Path) -> Archive:
    """An archive with its index; no image is read yet.

    Raises:
        InputError: there is no such file.
        DamagedFileError: it is no archive, or its head is damaged.
    """
    try:
        with path.open("rb") as stream:
            return _opened(path, stream)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such archive") from error


def _opened(path: Path, stream: BinaryIO) -> Archive:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(len(_MAGIC) + 4)
    if start[:4] != _MAGIC[:4] or len(start) < len(_MAGIC) + 4:
        raise DamagedFileError(f"{path} is not an archive ({SUFFIX}), or it is damaged")
    if start[4] != _MAGIC[4]:
        raise DamagedFileError(
            f"{path} is of version {start[4]}, and this program reads version {_MAGIC[4]}; or the file is damaged"
        )
    length = int.from_bytes(start[5:], "little")
    if length > min(size, _MOST_TABLES):
        raise DamagedFileError(f"{path} is damaged: its tables are cut short")
    tables, check = stream.read(length), stream.read(4)
    if zlib.crc32(start + tables).to_bytes(4, "little") != check:
        raise DamagedFileError(f"{path} is damaged: its tables do not match their checksum")
    codec = _codec_of(read_tables(tables, str(path)))
    entries = list[Entry]()
    end = stream.tell()
    while (block := read_block(stream, end, size, len(codec.symbols))) is not None:
        some, end = block
        entries += some
    return Archive(path, codec, tuple(entries), end, size - end)


def _codec_of(tables: Tables) -> Codec:
    return Codec(tables.name, tables.model, tables.geometry, tables.symbols, tables)


def _head(tables: bytes) -> bytes:
    start = _MAGIC + len(tables).to_bytes(4, "little") + tables
    return start + zlib.crc32(start).to_bytes(4, "little")


@contextmanager
def appending(path: Path, codec: Codec) -> Iterator[Callable[..., None]]:
    """Append images to an archive, which is made if it does not exist.

    Gives a function (codes, sizes, names, levels) that appends a block: codes of each image (all codes,), its size, its
    name or "", and how many levels are stored. When the function returns, the block is on the disk.

    Raises:
        InputError: another process writes to it, it was made by another model, or it can't be written.
        DamagedFileError: the file is no archive, or one that is damaged before its last block.
    """
    tables = codec.tables or Tables(
        codec.name, codec.model, codec.geometry, codec.symbols, (None,) * len(codec.symbols)
    )
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{path} is being written to by another process; wait until it has ended") from error
        _write_head(stream, _head(tables.content))
        archive = _opened(path, stream)
        if archive.codec.tables is None or archive.codec.tables.digest != tables.digest:
            raise InputError(
                f"{path} was made by another model or other tables: those of {archive.codec.name} (weights "
                f"{archive.codec.model[:12]}), not of {codec.name} ({codec.model[:12]}); choose another file"
            )
        if archive.left_over and _whole_block_follows(stream, archive):
            raise DamagedFileError(
                f"{path} is damaged at byte {archive.end}, and whole blocks follow, which appending would destroy; "
                "append to another file"
            )
        stream.truncate(archive.end)

        def append(
            codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], names: Sequence[str], levels: int
        ) -> None:
            _flushed(stream, block_of(archive.codec, codes, sizes, names, levels))

        yield append


def _whole_block_follows(stream: BinaryIO, archive: Archive) -> bool:
    """Whether a whole block lies behind the end of the blocks that are read: a block before it is damaged."""
    stream.seek(archive.end)
    rest, size = stream.read(), archive.end + archive.left_over
    place = rest.find(BLOCK)
    while place >= 0:
        if read_block(stream, archive.end + place, size, len(archive.codec.symbols)) is not None:
            return True
        place = rest.find(BLOCK, place + 1)
    return False


def _write_head(stream: BinaryIO, head: bytes) -> None:
    """Write the head of a new archive, or of one whose writer was killed before it was there."""
    stream.seek(0)
    there = stream.read(len(head))
    if len(there) < len(head) and head.startswith(there):
        stream.truncate(0)
        _flushed(stream, head)


def _flushed(stream: BinaryIO, content: bytes) -> None:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
