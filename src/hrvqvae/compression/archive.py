"""The archive, .hrva: one entropy model, then blocks of images, each with an index
(docs/format.md).

A writer appends a whole block at the end, and a reader ignores a block that is cut short. So a
killed writer damages no earlier block. Blocks behind a damaged block are found by their first
bytes.
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
from hashlib import sha256
from itertools import accumulate, cycle, groupby
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import MOST_PIXELS, EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import TOGETHER, ImageCodes, crc8, read_levels, read_varint, varint
from hrvqvae.compression.levels import count_required_bytes, encode_level
from hrvqvae.config import Grid
from hrvqvae.data.batches import chunk_by_size, group_by_size
from hrvqvae.utils.errors import DamagedFileError, InputError, explain_write_errors
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import check_output, replace_file, write_atomic
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrva"
MOST_NAME = 1024  # bytes per name
# the archive's, with the version, and a block's
_MAGIC = b"HRVA\x01"
_BLOCK_MAGIC = b"HRVB"
_BLOCK_HEAD_BYTES = 20  # before the index
# bytes; bytes and images per block
_MOST_TABLES = 1 << 28
_MOST_INDEX = 1 << 26
_MOST_IMAGES = 1 << 20
# bytes of an unpacked index: 1280 + 16 * bytes of its block
_MOST_PLAIN = 1280
_MOST_PLAIN_PER_BYTE = 16
# of all images: 2^24 + 128 * bytes of the archive
_MOST_CODES = 1 << 24
_MOST_CODES_PER_BYTE = 128
_LEAST_IMAGE_CODES = 1024  # counted for a smaller image, since reading it takes as long
# for damaged blocks, in bytes read: 2^28 + 8 * bytes of the archive
_MOST_WORK = 1 << 28
_MOST_WORK_PER_BYTE = 8
_WORK_PER_PLAIN_BYTE = 64  # to unpack a byte is as much work as to read so many
_VARINT_BYTES = 5  # per number in an index, at most
# of blocks that `salvage` writes; 1,024 records if they are short
_BLOCK_BYTES = 1 << 26
_LEAST_LENGTH = 1 << 16


class ArchiveEntry(NamedTuple):
    """An image: name or "", height and width in pixels, number of levels, offset and length of the
    record in bytes.
    """

    name: str
    size: Grid
    levels: int
    place: int  # offset in the file
    length: int


class Entries:
    """The images of an archive, in order. A million images take 50 MB; a list of `ArchiveEntry`
    would take 300 MB.
    """

    def __init__(self) -> None:
        # 5 fields per image
        self._fields = array("Q")
        self._ends = array("Q")
        self._names = bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ArchiveEntry:
        name = self._names[self._ends[index - 1] if index else 0 : self._ends[index]].decode()
        height, width, *others = self._fields[5 * index : 5 * index + 5]
        return ArchiveEntry(name, (height, width), *others)

    def __iter__(self) -> Iterator[ArchiveEntry]:
        return (self[index] for index in range(len(self)))

    def add(
        self,
        index: bytes,
        count: int,
        first_record: int,
        record_bytes: int,
        model: EntropyModel,
        max_codes: int,
    ) -> int:
        """Add the images of a block. Return their number of codes, in which a small image counts as
        1,024.

        `index` is unpacked; `first_record` is an offset in the file. An invalid index, or one of
        over `max_codes` codes, raises DamagedFileError, IndexError or UnicodeDecodeError, and adds
        nothing.
        """
        offset = 0

        def read_number() -> int:
            nonlocal offset
            number = index[offset]
            offset = offset + 1
            if number >= 128:
                number, offset = read_varint(index, offset - 1, _VARINT_BYTES)
            return number

        levels = read_number()
        num_sizes = read_number()
        if not 1 <= levels <= len(model.symbols) or num_sizes not in (1, count):
            raise DamagedFileError("levels or sizes")
        sides = array("Q", (read_number() + 1 for _ in range(2 * num_sizes)))
        least = read_number()
        lengths = array("Q", (least + read_number() for _ in range(count)))
        unit = model.geometry.unit
        margin = model.geometry.margin
        times = model.geometry.times
        per_position = sum(factor * factor for factor in times[:levels])
        num_codes = 0
        for height, width in zip(sides[::2], sides[1::2], strict=True):
            if height * width > MOST_PIXELS:
                raise DamagedFileError("too large an image")
            positions = -(-(height + margin) // unit) * -(-(width + margin) // unit)
            num_codes += count // num_sizes * max(positions * per_position, _LEAST_IMAGE_CODES)
        if num_codes > max_codes or sum(lengths) != record_bytes or min(lengths, default=1) < 1:
            raise DamagedFileError("too many codes, or wrong lengths of records")
        names = bytearray()
        ends = array("Q")
        for _ in range(count):
            length = read_number()
            name = index[offset : offset + length]
            offset += length
            if length > MOST_NAME:
                raise DamagedFileError("too long a name")
            name.decode()
            names += name
            ends.append(len(self._names) + len(names))
        if offset != len(index):
            raise DamagedFileError("the names end before or behind the end of the index")
        self._names += names
        self._ends += ends
        sizes = cycle(zip(sides[::2], sides[1::2], strict=True))
        for size, offset, length in zip(
            sizes, accumulate(lengths[:-1], initial=first_record), lengths, strict=False
        ):
            self._fields.extend((*size, levels, offset, length))
        return num_codes


@dataclass(frozen=True)
class Archive:
    """The index of an archive. Images are read on request."""

    path: Path
    entropy_model: EntropyModel  # decodes the images
    entries: Entries  # the images, in order
    codes: int  # number of codes of all images, where a small image counts as 1,024
    damaged: int  # bytes of damaged blocks
    damaged_blocks: int  # number of damaged blocks that were found, at least 1 per damaged place
    left_over: int  # bytes at the end that look like an unfinished block

    @property
    def damage(self) -> list[str]:
        """Messages about damaged and unfinished blocks."""
        size = counted(self.damaged, "byte")
        blocks = counted(self.damaged_blocks, "block")
        lines = [f"{size} in {blocks} are damaged, with the images in them"] if self.damaged else []
        if self.left_over:
            size = counted(self.left_over, "byte")
            lines.append(
                f"{size} at the end are no whole block: a writer was killed, or the file was cut"
            )
        return lines

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A unique name per image: the stored name, or else the index; name and index if the name
        is taken.
        """
        names: dict[str, None] = {}
        for index, entry in enumerate(self.entries):
            name = entry.name or f"{index:06d}"
            while name in names:
                name += f"-{index:06d}"
            names[name] = None
        return tuple(names)

    def faults(self) -> list[str]:
        """Decode the codes of all images, and return a message per image; "" for an image without
        fault.
        """
        groups = chunk_by_size(
            range(len(self.entries)), lambda index: math.prod(self.entries[index].size), TOGETHER
        )
        return [image.fault for group in groups for image in self.read(group)]

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the indices of images, each given by name or index. Raises InputError for an
        unknown name.
        """
        indices = {str(index): index for index in range(len(self.entries))}
        indices |= {name: index for index, name in enumerate(self.names)}
        for name in names:
            if name not in indices:
                raise InputError(f"{self.path} has no image named {name!r}")
        return [indices[name] for name in names]

    def read(
        self, indices: Sequence[int], levels: int | None = None, max_pixels: int = MOST_PIXELS
    ) -> list[ImageCodes]:
        """Return the codes of images, in the order of `indices`. A damaged or too large image has
        only a `fault`.
        """
        entries = [self.entries[index] for index in indices]
        images = dict[int, ImageCodes]()
        with self.path.open("rb") as stream:
            records = [_read_record(stream, entry) for entry in entries]
        for slot, entry in enumerate(entries):
            if math.prod(entry.size) > max_pixels:
                images[slot] = ImageCodes(
                    entry.size, (), fault=f"it has more than {max_pixels} pixels"
                )
            elif not records[slot] or crc8(records[slot]):
                images[slot] = ImageCodes(entry.size, (), fault="its record is damaged")
        whole = [slot for slot in range(len(entries)) if slot not in images]
        for group in group_by_size(
            [(*entries[slot].size, entries[slot].levels) for slot in whole], TOGETHER
        ):
            slots = [whole[index] for index in group]
            size = entries[slots[0]].size
            stored = entries[slots[0]].levels
            try:
                decoded = read_levels(
                    self.entropy_model, [records[slot][:-1] for slot in slots], size, levels, stored
                )
            except (
                DamagedFileError
            ) as error:  # with the levels that are not stored, the images have too many codes
                decoded = [ImageCodes(size, (), fault=str(error))] * len(slots)
            for slot, image in zip(slots, decoded, strict=True):
                images[slot] = (
                    ImageCodes(size, (), fault="its record is damaged") if image.fault else image
                )
        return [images[slot] for slot in range(len(entries))]


def _read_record(stream: BinaryIO, entry: ArchiveEntry) -> bytes:
    stream.seek(entry.place)
    return stream.read(entry.length)


def is_archive(path: Path) -> bool:
    """Return whether a path has the name of an archive."""
    return path.suffix.lower() == SUFFIX


def open_archive(path: Path, fallback: EntropyModel | None = None) -> Archive:
    """Read the index of an archive.

    `fallback` replaces a damaged entropy model of the archive if the two agree in at least half of
    their bytes.

    Raises:
        OSError, DamagedFileError: The file can't be read, is no archive, or its entropy model is
            damaged.
    """
    entries = Entries()
    codes = 0
    damaged = 0
    damaged_blocks = 0
    wrong_blocks = 0
    with path.open("rb") as stream:
        try:
            model = _read_head(path, stream)
            whole_end = stream.tell()
        except DamagedFileError:
            head = _build_head(fallback.content) if fallback else b""
            stream.seek(0)
            equal_bytes = sum(
                byte == other for byte, other in zip(head, stream.read(len(head)), strict=False)
            )
            if fallback is None or equal_bytes < len(head) / 2:
                raise
            model = fallback
            whole_end = len(head)
        with mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
            size = len(content)
            offset = content.find(_BLOCK_MAGIC, whole_end)
            max_codes = (
                _MOST_CODES + _MOST_CODES_PER_BYTE * size
            )  # both limits are against malicious archives
            remaining_work = _MOST_WORK + _MOST_WORK_PER_BYTE * size
            while offset >= 0 and remaining_work > 0:
                block_end, added, work = _read_block(
                    content, offset, entries, model, max_codes - codes
                )
                codes = codes + added
                remaining_work = remaining_work - work
                if block_end is None:
                    wrong_blocks += 1
                else:  # the bytes between this and the last whole block are damaged
                    damaged_blocks += max(wrong_blocks, int(offset > whole_end))
                    damaged = damaged + offset - whole_end
                    whole_end = block_end
                    wrong_blocks = 0
                offset = content.find(_BLOCK_MAGIC, block_end or offset + 1)
            head = content[whole_end : whole_end + _BLOCK_HEAD_BYTES]
    left_over = size - whole_end
    length = sum(int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
    cut_short = len(head) < _BLOCK_HEAD_BYTES or _BLOCK_HEAD_BYTES + length > left_over
    if left_over and not (cut_short and _BLOCK_MAGIC.startswith(head[:4])):
        left_over, damaged, damaged_blocks = (
            0,
            damaged + left_over,
            damaged_blocks + max(1, wrong_blocks),
        )
    return Archive(path, model, entries, codes, damaged, damaged_blocks, left_over)


def _read_head(path: Path, stream: BinaryIO) -> EntropyModel:
    """Return the entropy model at the beginning of an archive. Raises DamagedFileError if it can't
    be read.
    """
    start = stream.read(len(_MAGIC) + 4)
    if start[:4] != _MAGIC[:4] or len(start) < len(_MAGIC) + 4:
        raise DamagedFileError(f"{path} is not an archive ({SUFFIX}), or it is damaged")
    if start[4] != _MAGIC[4]:
        raise DamagedFileError(
            f"{path} is of version {start[4]}, which this program does not read; or it is damaged"
        )
    length = int.from_bytes(start[5:], "little")
    if length > min(path.stat().st_size, _MOST_TABLES):
        raise DamagedFileError(f"{path} is damaged: its entropy model is cut short")
    tables = stream.read(length)
    check = stream.read(4)
    if zlib.crc32(start + tables).to_bytes(4, "little") != check:
        raise DamagedFileError(
            f"{path} is damaged: its entropy model does not match its checksum; with the model that"
            f" made it the images can be read: hrvqvae salvage {path} NEW{SUFFIX} --model MODEL"
        )
    return read_entropy_model(tables, str(path))


def _read_block(
    content: mmap, offset: int, entries: Entries, model: EntropyModel, max_codes: int
) -> tuple[int | None, int, int]:
    """Add the images of a block. Return its end (None if damaged), its number of codes, and the
    work if damaged.
    """
    head = content[offset : offset + _BLOCK_HEAD_BYTES]
    count, index_bytes, record_bytes, check = (
        int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12, 16)
    )
    first_record = offset + _BLOCK_HEAD_BYTES + index_bytes
    end = first_record + record_bytes
    if count > min(_MOST_IMAGES, record_bytes) or index_bytes > _MOST_INDEX or end > len(content):
        return None, 0, 0
    index = content[first_record - index_bytes : first_record]
    plain = b""
    if zlib.crc32(head[:16] + index) != check:
        return None, 0, index_bytes
    try:
        unpack = zlib.decompressobj()
        plain = unpack.decompress(
            index, min(_MOST_INDEX, _MOST_PLAIN + _MOST_PLAIN_PER_BYTE * (end - offset))
        )
        if not unpack.eof or unpack.unused_data:
            raise DamagedFileError("longer than it may be")
        return end, entries.add(plain, count, first_record, record_bytes, model, max_codes), 0
    except (zlib.error, DamagedFileError, IndexError, UnicodeDecodeError):
        return None, 0, index_bytes + _WORK_PER_PLAIN_BYTE * len(plain)


def _encode_records(
    model: EntropyModel,
    codes: Sequence[NDArray[np.int32]],
    sizes: Sequence[Grid],
    names: Sequence[str],
    levels: int,
) -> list[bytes]:
    """Return the record of each image. Raises InputError if a record is too short for a reader to
    accept.
    """
    records = [b""] * len(codes)
    for size in set(sizes):
        group = [index for index, image_size in enumerate(sizes) if image_size == size]
        layout = model.layout(size)
        batch = np.stack([codes[index] for index in group])
        for level in range(levels):
            for index, stream in zip(
                group, encode_level(batch, layout, level, model.network(level)), strict=True
            ):
                records[index] += stream
        required = max(
            count_required_bytes(layout, level, model.network(level)) for level in range(levels)
        )
        for index in group:
            if len(records[index]) < required:
                raise InputError(
                    f"{names[index]!r} compresses too well for an archive; write it to a file"
                    " (.hrv)"
                )
    return [record + bytes([crc8(record)]) for record in records]


def _build_block(
    levels: int, records: Sequence[bytes], sizes: Sequence[Grid], names: Sequence[str]
) -> bytes:
    listed_sizes = sizes[:1] if len(set(sizes)) == 1 else sizes
    least = min(map(len, records))
    encoded = [name.encode() for name in names]
    numbers = [
        levels,
        len(listed_sizes),
        *(side - 1 for size in listed_sizes for side in size),
        least,
    ]
    plain = b"".join(map(varint, [*numbers, *(len(record) - least for record in records)]))
    plain += b"".join(varint(len(name)) + name for name in encoded)
    index = zlib.compress(plain, 9)
    body = b"".join(records)
    most_plain = _MOST_PLAIN + _MOST_PLAIN_PER_BYTE * (_BLOCK_HEAD_BYTES + len(index) + len(body))
    if (
        len(plain) > most_plain and len(records) > 1
    ):  # a reader refuses an index that compresses so well
        half = len(records) // 2
        halves = (slice(half), slice(half, None))
        return b"".join(
            _build_block(levels, records[images], sizes[images], names[images]) for images in halves
        )
    head = _BLOCK_MAGIC + b"".join(
        number.to_bytes(4, "little") for number in (len(records), len(index), len(body))
    )
    return head + zlib.crc32(head + index).to_bytes(4, "little") + index + body


def salvage(path: Path, out: Path, model: EntropyModel | None = None) -> tuple[int, list[str]]:
    """Copy all undamaged images of an archive into a new archive. `model` is the `fallback` of
    `open_archive`.

    Returns the number of images in the new archive, and messages about images that are lost. Raises
    InputError if no image can be read, or `out` exists or can't be written.
    """
    check_output(out, force=None, inputs=[path], suffix=SUFFIX)
    archive = open_archive(path, model)
    faults = archive.faults()
    whole = [entry for entry, fault in zip(archive.entries, faults, strict=True) if not fault]
    if not whole:
        raise DamagedFileError(f"{path} has no image that is whole")
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            replace_file(out) as temporary,
            temporary.open("xb") as target,
            path.open("rb") as source,
        ):
            begin = target.write(_build_head(archive.entropy_model.content))
            for block_bytes in (_BLOCK_BYTES, 1):  # a reader admits fewer codes in a smaller file
                target.seek(begin)
                for levels, group in groupby(whole, lambda entry: entry.levels):
                    for entries in chunk_by_size(
                        group, lambda entry: max(entry.length, _LEAST_LENGTH), block_bytes
                    ):
                        records = [_read_record(source, entry) for entry in entries]
                        names = [entry.name for entry in entries]
                        target.write(
                            _build_block(levels, records, [entry.size for entry in entries], names)
                        )
                if archive.codes <= _MOST_CODES + _MOST_CODES_PER_BYTE * target.tell():
                    break
            else:
                raise InputError(
                    f"the images of {path} compress too well for an archive; decompress them"
                    " instead"
                )
    lost = [
        f"{archive.names[index]} (image {index}): {fault}"
        for index, fault in enumerate(faults)
        if fault
    ]
    return len(whole), [*archive.damage, *lost]


_Appended = tuple[Grid, int, bytes]
"""An image that a writer appended: its size, number of levels, and the SHA-256 of its record."""


class ArchiveWriter:
    """Appends images to an archive. Opened by `appending`."""

    def __init__(self, path: Path, stream: BinaryIO, model: EntropyModel) -> None:
        archive = open_archive(path)
        if not archive.entropy_model.same_codes(model):
            raise InputError(
                f"{path} was made by another model or another entropy model: that of"
                f" {archive.entropy_model.name} (weights {archive.entropy_model.model[:12]}), not"
                f" of {model.name} ({model.model[:12]}); choose another file"
            )
        if archive.damaged:
            raise DamagedFileError(
                f"{path} is damaged ({counted(archive.damaged, 'byte')}), so nothing is added;"
                f" write what is whole into a new archive: hrvqvae salvage {path} NEW{SUFFIX}"
            )
        self.set_aside: Path | None = None  # the file to which an unfinished block was moved
        if archive.left_over:
            end = stream.seek(-archive.left_over, os.SEEK_END)
            rest = stream.read()
            self.set_aside = path.with_name(f"{path.name}.{end}-{zlib.crc32(rest):08x}.damaged")
            write_atomic(self.set_aside, rest)
            stream.truncate(end)
        self.archive = archive
        self._stream = stream
        self._codes = archive.codes
        self._entries: dict[str, ArchiveEntry | _Appended] = {
            entry.name: entry for entry in archive.entries if entry.name
        }

    def append(
        self,
        codes: Sequence[NDArray[np.int32]],
        sizes: Sequence[Grid],
        names: Sequence[str],
        levels: int,
    ) -> int:
        """Append the images that the archive does not have yet, and return the number of appended
        images.

        The archive has an image if name, size, number of levels and record are equal.

        Args:
            codes: The codes of each image (all codes,), of which the first `levels` levels are
                stored.
            sizes: Height and width in pixels of each image.
            names: The name of each image; "" for none.

        Raises InputError, and writes nothing, if another image has the same name, a name is longer
        than 1,024 bytes, or the images compress so well that a reader would refuse them.
        """
        path = self.archive.path
        records = _encode_records(self.archive.entropy_model, codes, sizes, names, levels)
        new = list[int]()
        added = dict[str, _Appended]()
        for index, name in enumerate(names):
            image = sizes[index], levels, sha256(records[index]).digest()
            entry = added.get(name) or self._entries.get(name)
            if isinstance(entry, ArchiveEntry) and (entry.size, entry.levels) == image[:2]:
                entry = *image[:2], sha256(_read_record(self._stream, entry)).digest()
            if name and entry == image:
                continue
            if name and entry:
                raise InputError(
                    f"{path} has another image named {name!r}; choose another name or file"
                )
            if len(name.encode()) > MOST_NAME:
                raise InputError(
                    f"{name[:40]!r}... has a name of more than {MOST_NAME} bytes; choose a shorter"
                    " name"
                )
            new.append(index)
            added[name] = image
        if new:
            new_names = [names[index] for index in new]
            block = _build_block(
                levels,
                [records[index] for index in new],
                [sizes[index] for index in new],
                new_names,
            )
            layouts = [self.archive.entropy_model.layout(sizes[index]) for index in new]
            total = self._codes + sum(
                max(int(layout.begins[levels]), _LEAST_IMAGE_CODES) for layout in layouts
            )
            end = self._stream.seek(0, os.SEEK_END)
            if total > _MOST_CODES + _MOST_CODES_PER_BYTE * (end + len(block)):
                raise InputError(
                    f"the images compress too well for the archive {path}; write them to files"
                    " (.hrv)"
                )
            with explain_write_errors(path):
                left = memoryview(block)
                try:
                    while left:
                        left = left[self._stream.write(left) :]
                    os.fsync(self._stream.fileno())
                except BaseException:
                    self._stream.truncate(end)
                    raise
            self._entries |= added
            self._codes = total
        return len(new)


@contextmanager
def appending(path: Path, model: EntropyModel) -> Iterator[ArchiveWriter]:
    """Open an archive to append images; create it if it does not exist, and delete it if an error
    ends the first batch.

    An unfinished block at the end, which a killed writer leaves, is moved to a file beside the
    archive. It is not deleted, because a damaged block can look like an unfinished block.

    Raises InputError if another process appends, another model made the archive, or it is damaged
    or can't be written.
    """
    with lock_file(path):
        is_new = not path.exists()
        writer = None
        if is_new:
            write_atomic(path, _build_head(model.content))
        try:
            with path.open(
                "a+b", buffering=0
            ) as stream:  # closing a buffer would write what did not fit before
                yield (writer := ArchiveWriter(path, stream, model))
        except BaseException:
            if is_new and not (writer and writer._entries):
                path.unlink()
            raise


def _build_head(tables: bytes) -> bytes:
    start = _MAGIC + len(tables).to_bytes(4, "little") + tables
    return start + zlib.crc32(start).to_bytes(4, "little")
