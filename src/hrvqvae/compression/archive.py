"""The archive, .hrva: the file of tables once, then blocks of images, each with an index. docs/format.md states it.

To append is to write a block at the end. A block counts when it is there as a whole, so a killed writer leaves all
blocks that were there before. Where a block is damaged, those behind it are found by their first bytes.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import MOST_PIXELS, STARTS, ImageCodes, crc8, read_levels, read_varint, varint
from hrvqvae.compression.levels import encode_level
from hrvqvae.config import Grid
from hrvqvae.data.batches import same_size
from hrvqvae.utils.errors import DamagedFileError, InputError, explain_write_errors
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import replace_file, write_atomic
from hrvqvae.utils.quantities import counted

_SUFFIX = ".hrva"
_MAGIC, _BLOCK = b"HRVA\x01", b"HRVB"  # with the version
_HEAD = 20  # bytes before the index of a block
_MOST_TABLES, _MOST_INDEX, _MOST_IMAGES = 1 << 28, 1 << 26, 1 << 20
_VARINT = 5  # bytes of a number in an index, at most
_MOST_FALSE = 64  # first bytes of a block that begin none
_WINDOW = 1 << 20  # bytes that are searched at once
_TOGETHER = 1024  # images that are verified at once, or written into a new block


@dataclass(frozen=True)
class Entry:
    """An image: its name or "", height and width in pixels, its levels, and the place and bytes of its record."""

    name: str
    size: Grid
    levels: int
    place: int
    length: int


@dataclass(frozen=True)
class Archive:
    """What an archive holds; its images are read when they are asked for.

    Attributes:
        path: of the file.
        version: of the format.
        entropy_model: by which its codes are read.
        entries: its images, in order.
        damaged: bytes that were blocks.
        left_over: bytes at the end that can be the beginning of a block.
    """

    path: Path
    version: int
    entropy_model: EntropyModel
    entries: tuple[Entry, ...]
    damaged: int
    left_over: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each image: its own, or its number; both where an earlier image has the name."""
        found: dict[str, None] = {}
        for number, entry in enumerate(self.entries):
            name = entry.name or f"{number:06d}"
            while name in found:
                name += f"-{number:06d}"
            found[name] = None
        return tuple(found)

    def faults(self) -> list[str]:
        """What is wrong with each image, whose codes are decoded; "" for nothing."""
        starts = range(0, len(self.entries), _TOGETHER)
        some = (self.read(range(start, min(start + _TOGETHER, len(self.entries)))) for start in starts)
        return [image.fault for images in some for image in images]

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers of images by name, or by number where none has that name. Raises InputError: one is not there."""
        known = {str(number): number for number in range(len(self.entries))}
        known |= {name: number for number, name in enumerate(self.names)}
        for name in names:
            if name not in known:
                raise InputError(f"{self.path} has no image named {name!r}")
        return [known[name] for name in names]

    def read(
        self, numbers: Sequence[int], levels: int | None = None, max_pixels: int = MOST_PIXELS
    ) -> list[ImageCodes]:
        """The codes of these images, in order.

        An image whose record is damaged, or that has more pixels than are admitted, has no codes, and a `fault`.
        """
        entries, found = [self.entries[number] for number in numbers], dict[int, ImageCodes]()
        with self.path.open("rb") as stream:
            records = [_read_at(stream, entry) for entry in entries]
        for some in same_size([(*entry.size, entry.levels) for entry in entries], MOST_PIXELS):
            size, stored = entries[some[0]].size, entries[some[0]].levels
            if math.prod(size) > max_pixels:
                decoded = [ImageCodes(size, (), fault=f"it has more than {max_pixels} pixels")] * len(some)
            else:
                read = read_levels(self.entropy_model, [records[one][:-1] for one in some], size, levels, stored)
                whole = [records[one] != b"" and crc8(records[one], STARTS[self.version]) == 0 for one in some]
                damaged = ImageCodes(size, (), fault="its record is damaged")
                decoded = [one if good and not one.fault else damaged for one, good in zip(read, whole, strict=True)]
            found.update(zip(some, decoded, strict=True))
        return [found[place] for place in range(len(numbers))]


def _read_at(stream: BinaryIO, entry: Entry) -> bytes:
    stream.seek(entry.place)
    return stream.read(entry.length)


def is_archive(path: Path) -> bool:
    """Whether a path has the name of an archive."""
    return path.suffix.lower() == _SUFFIX


def open_archive(path: Path, entropy_model: EntropyModel | None = None) -> Archive:
    """An archive with its index; no image is read yet.

    Args:
        entropy_model: stands in for the file's entropy model where that is damaged, if half of its bytes are the same.

    Raises:
        OSError, DamagedFileError: it is none.
    """
    with path.open("rb") as stream:
        return _opened(path, stream, entropy_model)


def _opened(path: Path, stream: BinaryIO, known: EntropyModel | None = None) -> Archive:
    size = stream.seek(0, os.SEEK_END)
    try:
        entropy_model, version = _read_head(path, stream, size)
        place = stream.tell()
    except DamagedFileError:
        head = _head_of(known.content) if known else b""
        stream.seek(0)
        alike = sum(one == other for one, other in zip(head, stream.read(len(head)), strict=False))
        if known is None or alike < len(head) / 2:
            raise
        stream.seek(4)
        entropy_model, place, version = known, len(head), min(stream.read(1)[0], _MAGIC[4])
    entries = list[Entry]()
    end, damaged, false = place, 0, 0
    while place < size and false < _MOST_FALSE:
        block = _read_block(stream, place, size, len(entropy_model.symbols))
        if block is None:
            false += 1
            place = _find_block(stream, place + 1, size)
            continue
        entries += block[0]
        damaged += place - end
        end = place = block[1]
    stream.seek(end)
    head = stream.read(_HEAD)
    length = _HEAD + sum(int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
    cut = _BLOCK.startswith(head[:4]) and (len(head) < _HEAD or end + length > size)
    left, damaged = (size - end, damaged) if cut else (0, damaged + size - end)
    return Archive(path, version, entropy_model, tuple(entries), damaged, left)


def _read_head(path: Path, stream: BinaryIO, size: int) -> tuple[EntropyModel, int]:
    """The entropy model at the beginning, and the version. Raises DamagedFileError."""
    stream.seek(0)
    start = stream.read(len(_MAGIC) + 4)
    if start[:4] != _MAGIC[:4] or len(start) < len(_MAGIC) + 4:
        raise DamagedFileError(f"{path} is not an archive ({_SUFFIX}), or it is damaged")
    if start[4] > _MAGIC[4]:
        raise DamagedFileError(
            f"{path} is of version {start[4]}, later than this program reads; or the file is damaged"
        )
    length = int.from_bytes(start[5:], "little")
    if length > min(size, _MOST_TABLES):
        raise DamagedFileError(f"{path} is damaged: its entropy model is cut short")
    tables, check = stream.read(length), stream.read(4)
    if zlib.crc32(start + tables).to_bytes(4, "little") != check:
        raise DamagedFileError(
            f"{path} is damaged: its entropy model does not match its checksum; with the model that made it the images "
            f"can be read: hrvqvae salvage {path} NEW{_SUFFIX} --model MODEL"
        )
    return read_entropy_model(tables, str(path)), start[4]


def _find_block(stream: BinaryIO, place: int, size: int) -> int:
    """Where the next block may begin from here on; `size` where there is none."""
    while place < size:
        stream.seek(place)
        found = stream.read(_WINDOW).find(_BLOCK)
        if found >= 0:
            return place + found
        place += _WINDOW - len(_BLOCK) + 1
    return size


def _read_block(stream: BinaryIO, place: int, size: int, most_levels: int) -> tuple[list[Entry], int] | None:
    """The images of the block that begins here, and its end; None where there is no whole block."""
    stream.seek(place)
    head = stream.read(_HEAD)
    if len(head) < _HEAD or head[:4] != _BLOCK:
        return None
    count, index_bytes, record_bytes, check = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12, 16))
    records = place + _HEAD + index_bytes
    if count > min(_MOST_IMAGES, record_bytes) or records + record_bytes > size:
        return None
    index = stream.read(index_bytes)
    if zlib.crc32(head[:16] + index) != check:
        return None
    try:
        unpack = zlib.decompressobj()
        plain = unpack.decompress(index, _MOST_INDEX)
        entries = _entries(plain, count, records, most_levels) if unpack.eof and not unpack.unused_data else None
    except (zlib.error, DamagedFileError, UnicodeDecodeError):
        return None
    if entries is None or sum(entry.length for entry in entries) != record_bytes:
        return None
    return entries, records + record_bytes


def _entries(index: bytes, count: int, records: int, most_levels: int) -> list[Entry] | None:
    """The images of an index, whose records begin there; None where it is not sound."""
    place = 0

    def number() -> int:
        nonlocal place
        found, place = read_varint(index, place, _VARINT)
        return found

    levels, kinds = number(), number()
    if not 1 <= levels <= most_levels or kinds not in (1, count):
        return None
    sizes = [(number() + 1, number() + 1) for _ in range(kinds)] * (count if kinds == 1 else 1)
    least = number()
    lengths = [least + number() for _ in range(count)]
    entries = []
    for size, length in zip(sizes, lengths, strict=True):
        name_bytes = number()
        end = place + name_bytes
        entries.append(Entry(index[place:end].decode(), size, levels, records, length))
        records, place = records + length, end
    if place != len(index) or any(math.prod(size) > MOST_PIXELS for size in sizes):
        return None
    return entries


def _records_of(
    archive: Archive, codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], levels: int
) -> list[bytes]:
    records, entropy_model = [b""] * len(codes), archive.entropy_model
    for size in set(sizes):
        some = [number for number, one in enumerate(sizes) if one == size]
        batch, layout = np.stack([codes[number] for number in some]), entropy_model.layout(size)
        for level in range(levels):
            streams = encode_level(batch, layout, level, entropy_model.network(level))
            for number, stream in zip(some, streams, strict=True):
                records[number] += stream
    return [record + bytes([crc8(record, STARTS[archive.version])]) for record in records]


def _block_of(levels: int, records: Sequence[bytes], sizes: Sequence[Grid], names: Sequence[str]) -> bytes:
    kinds = sizes[:1] if len(set(sizes)) == 1 else sizes
    least = min(map(len, records))
    encoded = [name.encode() for name in names]
    numbers = [levels, len(kinds), *(side - 1 for size in kinds for side in size), least]
    index = b"".join(map(varint, [*numbers, *(len(record) - least for record in records)]))
    index = zlib.compress(index + b"".join(varint(len(name)) + name for name in encoded), 9)
    body = b"".join(records)
    head = _BLOCK + b"".join(number.to_bytes(4, "little") for number in (len(records), len(index), len(body)))
    return head + zlib.crc32(head + index).to_bytes(4, "little") + index + body


def salvage(path: Path, out: Path, entropy_model: EntropyModel | None = None) -> int:
    """Write the images of an archive whose records are whole into a new one, as they are; -> how many.

    Args:
        entropy_model: as for `open_archive`.

    Raises:
        InputError, DamagedFileError: no image can be read, `out` exists or can't be written.
    """
    opened = open_archive(path, entropy_model)
    whole = [number for number, fault in enumerate(opened.faults()) if not fault]
    if not whole:
        raise DamagedFileError(f"{path} has no image that is whole")
    if out.exists():
        raise InputError(f"{out} exists already; choose another file")
    with (
        explain_write_errors(out),
        replace_file(out) as temporary,
        temporary.open("xb") as target,
        path.open("rb") as source,
    ):
        target.write(_head_of(opened.entropy_model.content, opened.version))
        for levels, some in groupby(whole, lambda number: opened.entries[number].levels):
            while numbers := list(islice(some, _TOGETHER)):
                entries = [opened.entries[number] for number in numbers]
                records = [_read_at(source, entry) for entry in entries]
                sizes, names = [entry.size for entry in entries], [entry.name for entry in entries]
                target.write(_block_of(levels, records, sizes, names))
    return len(whole)


class ArchiveWriter:
    """Appends images to an archive, see `appending`.

    `set_aside` is the file that has got what lay behind the last whole block of `archive`, as it was before.
    """

    def __init__(self, path: Path, stream: BinaryIO, entropy_model: EntropyModel) -> None:
        archive = _opened(path, stream)
        if not archive.entropy_model.same_codes(entropy_model):
            raise InputError(
                f"{path} was made by another model or another entropy model: that of {archive.entropy_model.name} "
                f"(weights {archive.entropy_model.model[:12]}), not of {entropy_model.name} "
                f"({entropy_model.model[:12]}); choose another file"
            )
        if archive.damaged:
            raise DamagedFileError(
                f"{path} is damaged ({counted(archive.damaged, 'byte')}), so nothing is added; write what is whole "
                f"into a new archive: hrvqvae salvage {path} NEW{_SUFFIX}"
            )
        self.set_aside: Path | None = None
        if archive.left_over:
            end = stream.seek(-archive.left_over, os.SEEK_END)
            rest = stream.read()
            self.set_aside = path.with_name(f"{path.name}.{end}-{zlib.crc32(rest):08x}.damaged")
            write_atomic(self.set_aside, rest)
            stream.truncate(end)
        self.archive, self._stream = archive, stream
        self._known: dict[str, Entry | None] = {entry.name: entry for entry in archive.entries if entry.name}

    def append(
        self, codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], names: Sequence[str], levels: int
    ) -> int:
        """Write a block of the images that are not there yet to the disk, by name and record; -> how many these are.

        Args:
            codes: of each image, (all codes,), of which so many levels are stored.
            sizes: height and width of each in pixels.
            names: of each; empty for none.

        Raises:
            InputError: another image of such a name is there already; nothing is written.
        """
        records, new = _records_of(self.archive, codes, sizes, levels), list[int]()
        named = dict[str, Entry | None]()
        for number, name in enumerate(names):
            entry = self._known.get(name)
            same = entry is not None and (entry.size, entry.levels) == (sizes[number], levels)
            if entry is not None and same and _read_at(self._stream, entry) == records[number]:
                continue
            if name and (name in self._known or name in named):
                raise InputError(f"{self.archive.path} has another image named {name!r}; choose another name or file")
            new.append(number)
            named[name] = None
        if new:
            chosen = [(records[number], sizes[number], names[number]) for number in new]
            self._stream.write(_block_of(levels, *zip(*chosen, strict=True)))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._known |= named
        return len(new)


@contextmanager
def appending(path: Path, entropy_model: EntropyModel) -> Iterator[ArchiveWriter]:
    """Append images to an archive, which is made if it does not exist.

    The beginning of a block, as a killed writer leaves it, is moved into a file beside it: a damaged block can look so.

    Raises:
        InputError: another process writes to it, it was made by another model, or it can't be written.
        DamagedFileError: the file is no archive, or it is damaged.
    """
    with lock_file(path):
        if not path.exists():
            write_atomic(path, _head_of(entropy_model.content))
        with path.open("a+b") as stream:
            yield ArchiveWriter(path, stream, entropy_model)


def _head_of(tables: bytes, version: int = _MAGIC[4]) -> bytes:
    start = _MAGIC[:4] + bytes([version]) + len(tables).to_bytes(4, "little") + tables
    return start + zlib.crc32(start).to_bytes(4, "little")
