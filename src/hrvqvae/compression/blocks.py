"""Blocks of an archive: records of images with an index, as bytes and back. docs/format.md states them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.checksum import crc8
from hrvqvae.compression.geometry import Grid
from hrvqvae.compression.levels import NOT_WHOLE, decode_level, encode_level
from hrvqvae.compression.stream import MOST_PIXELS, Codec, Picture, read_varint, varint
from hrvqvae.utils.errors import DamagedFileError

BLOCK = b"HRVB"
_HEAD = 20  # bytes before the index of a block
_MOST_INDEX, _MOST_IMAGES = 1 << 26, 1 << 20
_VARINT = 5  # bytes of a number in an index, at most


@dataclass(frozen=True)
class Entry:
    """Where an image is.

    Attributes:
        name: its name, or empty.
        size: height and width in pixels.
        levels: how many levels it has.
        place: of its record in the file.
        length: bytes of its record.
    """

    name: str
    size: Grid
    levels: int
    place: int
    length: int


def read_block(stream: BinaryIO, place: int, size: int, most_levels: int) -> tuple[list[Entry], int] | None:
    """The images of the block that begins here, and its end; None where there is no whole block."""
    stream.seek(place)
    head = stream.read(_HEAD)
    if len(head) < _HEAD or head[:4] != BLOCK:
        return None
    count, index_bytes, record_bytes, check = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12, 16))
    records = place + _HEAD + index_bytes
    if count > _MOST_IMAGES or records + record_bytes > size:
        return None
    index = stream.read(index_bytes)
    if zlib.crc32(head[:16] + index) != check:
        return None
    try:
        unpack = zlib.decompressobj()
        plain = unpack.decompress(index, _MOST_INDEX)
        if not unpack.eof or unpack.unused_data:
            return None
        entries = _entries(plain, count, records, most_levels)
    except (zlib.error, DamagedFileError, UnicodeDecodeError):
        return None
    if entries and entries[-1].place + entries[-1].length != records + record_bytes:
        return None
    return entries, records + record_bytes


def _entries(index: bytes, count: int, records: int, most_levels: int) -> list[Entry]:
    place = 0

    def number() -> int:
        nonlocal place
        found, place = read_varint(index, place, _VARINT)
        return found

    levels, kinds = number(), number()
    if not 1 <= levels <= most_levels or kinds not in (1, count):
        raise DamagedFileError("an index is not sound")
    sizes = [(number() + 1, number() + 1) for _ in range(kinds)] * (count if kinds == 1 else 1)
    if any(height * width > MOST_PIXELS for height, width in sizes):
        raise DamagedFileError("an image is larger than is admitted")
    least = number()
    lengths = [least + number() for _ in range(count)]
    entries = []
    for size, length in zip(sizes, lengths, strict=True):
        name_bytes = number()
        name = index[place : place + name_bytes].decode()
        place += name_bytes
        if place > len(index):
            raise DamagedFileError("an index is cut short")
        entries.append(Entry(name, size, levels, records, length))
        records += length
    if place != len(index):
        raise DamagedFileError("an index is longer than its images")
    return entries


def block_of(
    codec: Codec, codes: Sequence[NDArray[np.int32]], sizes: Sequence[Grid], names: Sequence[str], levels: int
) -> bytes:
    """The block of these images: codes of each (all codes,), its size, its name or empty; levels that are stored."""
    records = [b""] * len(codes)
    for size in set(sizes):
        some = [number for number, one in enumerate(sizes) if one == size]
        batch, layout = np.stack([codes[number] for number in some]), codec.layout(size)
        for level in range(levels):
            streams = encode_level(batch, layout, level, codec.network(level, by_tables=True))
            for number, stream in zip(some, streams, strict=True):
                records[number] += stream
    records = [record + bytes([crc8(record)]) for record in records]
    kinds = sizes[:1] if len(set(sizes)) == 1 else sizes
    least = min(map(len, records))
    encoded = [name.encode() for name in names]
    numbers = [levels, len(kinds), *(side - 1 for size in kinds for side in size), least]
    index = b"".join(map(varint, [*numbers, *(len(record) - least for record in records)]))
    index = zlib.compress(index + b"".join(varint(len(name)) + name for name in encoded), 9)
    body = b"".join(records)
    head = BLOCK + b"".join(number.to_bytes(4, "little") for number in (len(records), len(index), len(body)))
    return head + zlib.crc32(head + index).to_bytes(4, "little") + index + body


def decode_records(
    codec: Codec, records: Sequence[bytes], size: Grid, stored: int, levels: int
) -> list[Picture | None]:
    """The first levels of records of images of one size that have `stored` levels; None where a level is not whole."""
    layout = codec.layout(size)
    content = np.frombuffer(b"".join(records), np.uint8)
    stops = np.cumsum([len(one) for one in records])
    places = stops - [len(one) for one in records]
    stops = stops - 1  # of the check
    codes = np.zeros((len(records), layout.begins[-1]), np.int32)
    lengths = []
    whole = np.ones(len(records), bool)
    for level in range(levels):
        ends = decode_level(content, places, stops, codes, layout, level, codec.network(level, by_tables=True))
        whole &= ends != NOT_WHOLE
        ends = np.where(whole, ends, stops)
        lengths.append(ends - places)
        places = ends
    if levels == stored:
        whole &= places == stops
    grids = [(int(height), int(width)) for height, width in layout.grids]
    return [
        Picture(
            size, tuple(row[layout.part(level)].reshape(grids[level]) for level in range(levels)),
            tuple(int(length[number]) for length in lengths), True, 0, "",
        )
        if whole[number] else None
        for number, row in enumerate(codes)
    ]  # fmt: skip
