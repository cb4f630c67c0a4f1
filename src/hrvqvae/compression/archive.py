"""The archive, .hrva: the entropy model once, then blocks of images, each with an index (docs/format.md).

To append is to write a block at the end. A block counts if all of it is there, so a killed writer leaves all blocks
that were there before. The blocks behind a damaged one are found by their first bytes.
"""

from __future__ import annotations

import math
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, cycle, groupby, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import MOST_PIXELS, TOGETHER, ImageCodes, crc8, read_levels, read_varint, varint
from hrvqvae.compression.levels import encode_level, least_bytes
from hrvqvae.config import Grid
from hrvqvae.data.batches import group_by_size
from hrvqvae.data.image_sets import chunk_by_size
from hrvqvae.utils.errors import DamagedFileError, InputError, explain_write_errors
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import check_output, replace_file, write_atomic
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrva"
MOST_NAME = 1024  # bytes of a name
_MAGIC, _BLOCK = b"HRVA\x01", b"HRVB"  # with the version
_HEAD = 20  # bytes before the index of a block
_MOST_TABLES, _MOST_INDEX, _MOST_IMAGES = 1 << 28, 1 << 26, 1 << 20
_INDEX, _INDEX_PER_BYTE = 1280, 16  # most bytes of an unpacked index, by the bytes of its block
_CODES, _CODES_PER_BYTE = 1 << 24, 128  # most codes of all images, by the bytes of the archive
_LEAST_CODES = 1024  # that an image counts for, because reading one takes as long
_SEARCH, _SEARCH_PER_BYTE, _UNPACKING = 1 << 28, 8, 64  # most work on wrong blocks: bytes read, 64 per byte unpacked
_VARINT = 5  # bytes of a number in an index, at most
_WINDOW = 1 << 20  # bytes that are searched at once
_IMAGES_PER_BLOCK = 1024  # that `salvage` writes


class ArchiveEntry(NamedTuple):
    """An image: its name or "", height and width in pixels, its levels, and the place and bytes of its record."""

    name: str
    size: Grid
    levels: int
    place: int
    length: int


class Entries:
    """The images of an archive in order. A million take 50 MB; as many objects would take six times as much."""

    def __init__(self) -> None:
        self._numbers, self._ends, self._names = array("Q"), array("Q"), bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ArchiveEntry:
        name = self._names[self._ends[index - 1] if index else 0 : self._ends[index]].decode()
        height, width, *others = self._numbers[5 * index : 5 * index + 5]
        return ArchiveEntry(name, (height, width), *others)

    def __iter__(self) -> Iterator[ArchiveEntry]:
        return (self[index] for index in range(len(self)))

    def add(self, index: bytes, count: int, records: int, record_bytes: int, model: EntropyModel, codes: int) -> int:
        """Add the images of a block, and return how many codes they count for, at most `codes`.

        Args:
            index: The unpacked index of the block.
            count: How many images it has.
            records: Where the first record begins.

        Raises:
            DamagedFileError, IndexError, UnicodeDecodeError: The index is not sound; nothing is added.
        """
        place = 0

        def read_number() -> int:
            nonlocal place
            number, place = index[place], place + 1
            if number >= 128:
                number, place = read_varint(index, place - 1, _VARINT)
            return number

        levels, kinds = read_number(), read_number()
        if not 1 <= levels <= len(model.symbols) or kinds not in (1, count):
            raise DamagedFileError("levels or sizes")
        sides = array("Q", (read_number() + 1 for _ in range(2 * kinds)))
        least = read_number()
        lengths = array("Q", (least + read_number() for _ in range(count)))
        repeated, rule = count if kinds == 1 else 1, model.geometry
        positions = list[int]()
        for height, width in zip(sides[::2], sides[1::2], strict=True):
            if height * width > MOST_PIXELS:
                raise DamagedFileError("too large an image")
            positions.append(-(-(height + rule.margin) // rule.unit) * -(-(width + rule.margin) // rule.unit))
        per_position = sum(times * times for times in rule.times[:levels])
        used = repeated * sum(max(count * per_position, _LEAST_CODES) for count in positions)
        if used > codes or sum(lengths) != record_bytes or min(lengths, default=1) < 1:
            raise DamagedFileError("too many codes, or other lengths than the records have")
        names, ends = bytearray(), array("Q")
        for _ in range(count):
            length = read_number()
            name = index[place : place + length]
            place += length
            if length > MOST_NAME:
                raise DamagedFileError("too long a name")
            name.decode()
            names += name
            ends.append(len(self._names) + len(names))
        if place != len(index):
            raise DamagedFileError("more or fewer bytes than it says")
        self._names += names
        self._ends += ends
        sizes = cycle(zip(sides[::2], sides[1::2], strict=True))
        for size, place, length in zip(sizes, accumulate(lengths[:-1], initial=records), lengths, strict=False):
            self._numbers.extend((*size, levels, place, length))
        return used


@dataclass(frozen=True)
class Archive:
    """What an archive holds; its images are read when they are asked for."""

    path: Path
    entropy_model: EntropyModel  # by which its codes are read
    entries: Entries  # its images, in order
    codes: int  # that they count for
    damaged: int  # bytes that were blocks
    damaged_blocks: int  # how many blocks, as far as their first bytes tell
    left_over: int  # bytes at the end that can be the beginning of a block

    @property
    def damage(self) -> list[str]:
        """What is damaged, in words."""
        size, blocks = counted(self.damaged, "byte"), counted(self.damaged_blocks, "block")
        lines = [f"{size} in {blocks} are damaged, with the images in them"] if self.damaged else []
        if self.left_over:
            size = counted(self.left_over, "byte")
            lines.append(f"{size} at the end are no whole block: a writer was killed, or the file was cut")
        return lines

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each image: its own, or its number; both if an earlier image has the name."""
        names: dict[str, None] = {}
        for index, entry in enumerate(self.entries):
            name = entry.name or f"{index:06d}"
            while name in names:
                name += f"-{index:06d}"
            names[name] = None
        return tuple(names)

    def faults(self) -> list[str]:
        """Decode the codes of all images, and return what is wrong with each; "" for nothing."""
        groups = chunk_by_size(range(len(self.entries)), lambda index: math.prod(self.entries[index].size), TOGETHER)
        return [image.fault for group in groups for image in self.read(group)]

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the indices of images by name, or else by number. Raises InputError for another name."""
        indices = {str(index): index for index in range(len(self.entries))}
        indices |= {name: index for index, name in enumerate(self.names)}
        for name in names:
            if name not in indices:
                raise InputError(f"{self.path} has no image named {name!r}")
        return [indices[name] for name in names]

    def read(
        self, indices: Sequence[int], levels: int | None = None, max_pixels: int = MOST_PIXELS
    ) -> list[ImageCodes]:
        """Return the codes of images, in order; an image that is damaged or too large has no codes and a `fault`."""
        entries, images = [self.entries[index] for index in indices], dict[int, ImageCodes]()
        with self.path.open("rb") as stream:
            records = [_read_at(stream, entry) for entry in entries]
        for place, entry in enumerate(entries):
            if math.prod(entry.size) > max_pixels:
                images[place] = ImageCodes(entry.size, (), fault=f"it has more than {max_pixels} pixels")
            elif not records[place] or crc8(records[place]):
                images[place] = ImageCodes(entry.size, (), fault="its record is damaged")
        whole = [place for place in range(len(entries)) if place not in images]
        for group in group_by_size([(*entries[place].size, entries[place].levels) for place in whole], TOGETHER):
            places = [whole[index] for index in group]
            size, stored = entries[places[0]].size, entries[places[0]].levels
            decoded = read_levels(self.entropy_model, [records[place][:-1] for place in places], size, levels, stored)
            for place, image in zip(places, decoded, strict=True):
                images[place] = ImageCodes(size, (), fault="its record is damaged") if image.fault else image
        return [images[place] for place in range(len(entries))]


def _read_at(stream: BinaryIO, entry: ArchiveEntry) -> bytes:
    stream.seek(entry.place)
    return stream.read(entry.length)


def is_archive(path: Path) -> bool:
    """Return whether a path has the name of an archive."""
    return path.suffix.lower() == SUFFIX


def open_archive(path: Path, model: EntropyModel | None = None) -> Archive:
    """Return an archive with its index; no image is read yet.

    Args:
        path: The file.
        model: Stands in for the file's entropy model if that is damaged, and half of its bytes are the same.

    Raises:
        OSError, DamagedFileError: The file can't be read, or is no archive.
    """
    with path.open("rb") as stream:
        return _opened(path, stream, model)


def _opened(path: Path, stream: BinaryIO, fallback: EntropyModel | None = None) -> Archive:
    size = stream.seek(0, os.SEEK_END)
    try:
        model = _read_head(path, stream, size)
        begin = stream.tell()
    except DamagedFileError:
        head = _head_of(fallback.content) if fallback else b""
        stream.seek(0)
        same = sum(byte == other for byte, other in zip(head, stream.read(len(head)), strict=False))
        if fallback is None or same < len(head) / 2:
            raise
        model, begin = fallback, len(head)
    blocks = _Blocks(stream, size, model)
    end, damaged, damaged_blocks = begin, 0, 0
    for start, stop, skipped in blocks.find_all(begin):
        damaged, damaged_blocks, end = damaged + start - end, damaged_blocks + skipped, stop
    stream.seek(end)
    head = stream.read(_HEAD)
    length = _HEAD + sum(int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
    left = size - end
    if left and not (_BLOCK.startswith(head[:4]) and (len(head) < _HEAD or end + length > size)):
        left, damaged, damaged_blocks = 0, damaged + left, damaged_blocks + max(1, blocks.wrong)
    return Archive(path, model, blocks.entries, blocks.codes, damaged, damaged_blocks, left)


def _read_head(path: Path, stream: BinaryIO, size: int) -> EntropyModel:
    """Return the entropy model at the beginning. Raises DamagedFileError."""
    stream.seek(0)
    start = stream.read(len(_MAGIC) + 4)
    if start[:4] != _MAGIC[:4] or len(start) < len(_MAGIC) + 4:
        raise DamagedFileError(f"{path} is not an archive ({SUFFIX}), or it is damaged")
    if start[4] != _MAGIC[4]:
        raise DamagedFileError(f"{path} is of version {start[4]}, which this program does not read; or it is damaged")
    length = int.from_bytes(start[5:], "little")
    if length > min(size, _MOST_TABLES):
        raise DamagedFileError(f"{path} is damaged: its entropy model is cut short")
    tables, check = stream.read(length), stream.read(4)
    if zlib.crc32(start + tables).to_bytes(4, "little") != check:
        raise DamagedFileError(
            f"{path} is damaged: its entropy model does not match its checksum; with the model that made it the images "
            f"can be read: hrvqvae salvage {path} NEW{SUFFIX} --model MODEL"
        )
    return read_entropy_model(tables, str(path))


class _Blocks:
    """The search for whole blocks, whose work and memory grow with the bytes of the archive, whatever these are."""

    def __init__(self, stream: BinaryIO, size: int, model: EntropyModel) -> None:
        self.entries, self.codes = Entries(), 0
        self.wrong = 0  # beginnings since the last whole block that belong to none
        self._stream, self._size, self._model = stream, size, model
        self._work = _SEARCH + _SEARCH_PER_BYTE * size
        self._window, self._begin = b"", 0  # bytes of the file, and where they begin

    def find_all(self, place: int) -> Iterator[tuple[int, int, int]]:
        """Yield where each whole block begins and ends, and how many wrong ones were passed over before it."""
        end = place
        while (place := self._find(place)) < self._size and self._work > 0:
            stop = self._read(place)
            if stop is None:
                self.wrong += 1
                place += 1
                continue
            yield place, stop, max(self.wrong, 1) if place > end else 0
            end = place = stop
            self.wrong = 0

    def _find(self, place: int) -> int:
        """Return where the next block may begin; the size of the file if nowhere."""
        while place < self._size:
            if not self._begin <= place <= self._begin + len(self._window) - len(_BLOCK):
                self._stream.seek(place)
                self._window, self._begin = self._stream.read(_WINDOW), place
            offset = self._window.find(_BLOCK, place - self._begin)
            if offset >= 0:
                return self._begin + offset
            place = self._begin + max(len(self._window) - len(_BLOCK) + 1, 1)
        return self._size

    def _read(self, place: int) -> int | None:
        """Add the images of the block that begins at a place. Return its end, or None if there is no whole block."""
        self._stream.seek(place)
        head = self._stream.read(_HEAD)
        count, index_bytes, record_bytes, check = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12, 16))
        records = place + _HEAD + index_bytes
        end = records + record_bytes
        if count > min(_MOST_IMAGES, record_bytes) or index_bytes > _MOST_INDEX or end > self._size:
            return None
        index = self._stream.read(index_bytes)
        self._work -= index_bytes
        if zlib.crc32(head[:16] + index) != check:
            return None
        most, plain = min(_MOST_INDEX, _most_index(end - place)), b""
        try:
            unpack = zlib.decompressobj()
            plain = unpack.decompress(index, most)
            if not unpack.eof or unpack.unused_data:
                raise DamagedFileError("longer than it may be")
            left = _most_codes(self._size) - self.codes
            self.codes += self.entries.add(plain, count, records, record_bytes, self._model, left)
        except (zlib.error, DamagedFileError, IndexError, UnicodeDecodeError):
            self._work -= _UNPACKING * len(plain)
            return None
        self._work += index_bytes
        return end


def _most_codes(archive_bytes: int) -> int:
    """Return how many codes the images of an archive may have."""
    return _CODES + _CODES_PER_BYTE * archive_bytes


def _most_index(block_bytes: int) -> int:
    """Return how many bytes the unpacked index of a block may have."""
    return _INDEX + _INDEX_PER_BYTE * block_bytes


def _records_of(
    model: EntropyModel, codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], names: Sequence[str], levels: int
) -> list[bytes]:
    """Return the record of each image. Raises InputError if a reader would refuse an image as a bomb."""
    records = [b""] * len(codes)
    for size in set(sizes):
        group, layout = [index for index, other in enumerate(sizes) if other == size], model.layout(size)
        batch = np.stack([codes[index] for index in group])
        for level in range(levels):
            network = model.network(level)
            for index, stream in zip(group, encode_level(batch, layout, level, network), strict=True):
                records[index] += stream
                if len(records[index]) < least_bytes(layout, level, network):
                    raise InputError(
                        f"{names[index]!r} has too few bytes for so many pixels; write a file (.hrv) of it"
                    )
    return [record + bytes([crc8(record)]) for record in records]


def _block_of(levels: int, records: Sequence[bytes], sizes: Sequence[Grid], names: Sequence[str]) -> bytes:
    kinds = sizes[:1] if len(set(sizes)) == 1 else sizes
    least = min(map(len, records))
    encoded = [name.encode() for name in names]
    numbers = [levels, len(kinds), *(side - 1 for size in kinds for side in size), least]
    plain = b"".join(map(varint, [*numbers, *(len(record) - least for record in records)]))
    plain += b"".join(varint(len(name)) + name for name in encoded)
    index, body = zlib.compress(plain, 9), b"".join(records)
    if len(plain) > _most_index(_HEAD + len(index) + len(body)) and len(records) > 1:  # names that are long and alike
        half = len(records) // 2
        parts = (slice(half), slice(half, None))
        return b"".join(_block_of(levels, records[part], sizes[part], names[part]) for part in parts)
    head = _BLOCK + b"".join(number.to_bytes(4, "little") for number in (len(records), len(index), len(body)))
    return head + zlib.crc32(head + index).to_bytes(4, "little") + index + body


def salvage(path: Path, out: Path, model: EntropyModel | None = None) -> tuple[int, list[str]]:
    """Write the images of an archive whose records are whole into a new one, as they are.

    Args:
        model: As for `open_archive`.

    Returns:
        The number of images in the new archive, and lines that say what is not in it.

    Raises:
        InputError, DamagedFileError: No image can be read, `out` exists or can't be written.
    """
    check_output(out, inputs=[path], suffix=SUFFIX)
    archive = open_archive(path, model)
    faults = archive.faults()
    whole = [entry for entry, fault in zip(archive.entries, faults, strict=True) if not fault]
    if not whole:
        raise DamagedFileError(f"{path} has no image that is whole")
    with (
        explain_write_errors(out),
        replace_file(out) as temporary,
        temporary.open("xb") as target,
        path.open("rb") as source,
    ):
        target.write(_head_of(archive.entropy_model.content))
        for levels, group in groupby(whole, lambda entry: entry.levels):
            while entries := list(islice(group, _IMAGES_PER_BLOCK)):
                records = [_read_at(source, entry) for entry in entries]
                names = [entry.name for entry in entries]
                target.write(_block_of(levels, records, [entry.size for entry in entries], names))
    lost = [f"{archive.names[index]} (image {index}): {fault}" for index, fault in enumerate(faults) if fault]
    return len(whole), [*archive.damage, *lost]


class ArchiveWriter:
    """Appends images to an archive, see `appending`."""

    def __init__(self, path: Path, stream: BinaryIO, model: EntropyModel) -> None:
        archive = _opened(path, stream)
        if not archive.entropy_model.same_codes(model):
            raise InputError(
                f"{path} was made by another model or another entropy model: that of {archive.entropy_model.name} "
                f"(weights {archive.entropy_model.model[:12]}), not of {model.name} ({model.model[:12]}); choose "
                "another file"
            )
        if archive.damaged:
            raise DamagedFileError(
                f"{path} is damaged ({counted(archive.damaged, 'byte')}), so nothing is added; write what is whole "
                f"into a new archive: hrvqvae salvage {path} NEW{SUFFIX}"
            )
        self.set_aside: Path | None = None  # the file that has got what lay behind the last whole block
        if archive.left_over:
            end = stream.seek(-archive.left_over, os.SEEK_END)
            rest = stream.read()
            self.set_aside = path.with_name(f"{path.name}.{end}-{zlib.crc32(rest):08x}.damaged")
            write_atomic(self.set_aside, rest)
            stream.truncate(end)
        self.archive, self._stream, self._codes = archive, stream, archive.codes
        self._entries: dict[str, ArchiveEntry | None] = {entry.name: entry for entry in archive.entries if entry.name}

    def append(
        self, codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], names: Sequence[str], levels: int
    ) -> int:
        """Write a block of the images that are not there yet, by name and record, and return how many these are.

        Args:
            codes: Of each image (all codes,), of which `levels` are stored.
            names: The name of each image; empty for none.

        Raises:
            InputError: Another image of such a name is there already, a name is longer than 1,024 bytes, or an image
                has too few bytes for its pixels; nothing is written.
        """
        path = self.archive.path
        records, new = _records_of(self.archive.entropy_model, codes, sizes, names, levels), list[int]()
        added = dict[str, ArchiveEntry | None]()
        for index, name in enumerate(names):
            entry = self._entries.get(name)
            same = entry is not None and (entry.size, entry.levels) == (sizes[index], levels)
            if entry is not None and same and _read_at(self._stream, entry) == records[index]:
                continue
            if name and (name in self._entries or name in added):
                raise InputError(f"{path} has another image named {name!r}; choose another name or file")
            if len(name.encode()) > MOST_NAME:
                raise InputError(f"{name[:40]!r}... has a name of more than {MOST_NAME} bytes; choose a shorter name")
            new.append(index)
            added[name] = None
        if new:
            new_names = [names[index] for index in new]
            block = _block_of(levels, [records[index] for index in new], [sizes[index] for index in new], new_names)
            layouts = [self.archive.entropy_model.layout(sizes[index]) for index in new]
            self._codes += sum(max(int(layout.begins[levels]), _LEAST_CODES) for layout in layouts)
            if self._codes > _most_codes(self._stream.seek(0, os.SEEK_END) + len(block)):
                raise InputError(
                    f"the images have too few bytes for so many pixels in {path}; write files (.hrv) of them"
                )
            with explain_write_errors(path):
                self._stream.write(block)
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._entries |= added
        return len(new)


@contextmanager
def appending(path: Path, model: EntropyModel) -> Iterator[ArchiveWriter]:
    """Append images to an archive, which is made if it does not exist.

    The beginning of a block that a killed writer left is moved into a file beside it, as a damaged block can look so.

    Raises:
        InputError: Another process writes to it, it was made by another model, or it can't be written.
        DamagedFileError: The file is no archive, or it is damaged.
    """
    with lock_file(path):
        if not path.exists():
            write_atomic(path, _head_of(model.content))
        with path.open("a+b") as stream:
            yield ArchiveWriter(path, stream, model)


def _head_of(tables: bytes) -> bytes:
    start = _MAGIC + len(tables).to_bytes(4, "little") + tables
    return start + zlib.crc32(start).to_bytes(4, "little")
