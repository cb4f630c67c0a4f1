"""The file of one image, .hrv: a header of five or six bytes for a small image, then its levels, coarse first.

    1 byte      0xD0 + 4 * version (0) + 2 if the image is square + 1 if the levels are coded by tables
    3 bytes     fingerprint: of the tables (SHA-256) or, without them, of the model
    varints     height - 1, and unless it is square, width - 1
    levels      each: the range coder's bytes, which end where the last code of the level does; then a CRC-8, chosen so
                that the register over the whole file so far is 0

A file may end after any level. docs/format.md states all of it for other decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.checksum import crc8
from hrvqvae.compression.geometry import Geometry, Grid
from hrvqvae.compression.levels import NOT_WHOLE, Layout, decode_level, encode_level
from hrvqvae.compression.network import Network
from hrvqvae.compression.tables import Tables
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

MOST_PIXELS, MOST_CODES = 1 << 26, 1 << 27
_MARK, _SQUARE, _BY_TABLES = 0xD0, 2, 1
_FINGERPRINT = 3
_CHECK = 1

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Codec:
    """What turns codes into files and back.

    Attributes:
        name: of the model, for messages.
        model: the digest of its weights, hexadecimal.
        geometry: grids of the levels by image size.
        symbols: values of a code of each level, coarse first.
        tables: its integer models; None codes all symbols alike.
    """

    name: str
    model: str
    geometry: Geometry
    symbols: tuple[int, ...]
    tables: Tables | None = None

    def fingerprint(self, by_tables: bool) -> bytes:
        """Three bytes that name the model, or its tables. They are in every file."""
        return (self.tables.digest if by_tables and self.tables else bytes.fromhex(self.model))[:_FINGERPRINT]

    def network(self, level: int, by_tables: bool) -> Network | None:
        """The integer model of a level."""
        return self.tables.networks[level] if by_tables and self.tables else None

    def layout(self, size: Grid) -> Layout:
        """Where the codes of an image of that size lie. Raises DamagedFileError where they are more than admitted."""
        grids = self.geometry.grids(*size)
        if sum(height * width for height, width in grids) > MOST_CODES:
            raise DamagedFileError(f"an image of {size[0]}x{size[1]} pixels has more than {MOST_CODES} codes")
        return Layout.of(grids, self.symbols)


@dataclass(frozen=True)
class Header:
    """What the first bytes of a file say.

    Attributes:
        size: height and width in pixels.
        by_tables: whether the levels are coded by tables.
        fingerprint: of the tables, or of the model.
        length: bytes of the header.
    """

    size: Grid
    by_tables: bool
    fingerprint: bytes
    length: int


@dataclass(frozen=True)
class Picture:
    """The codes of one image, as far as its file holds them.

    Attributes:
        size: height and width in pixels.
        codes: (H_l, W_l) int32 of each level that is whole, coarse first.
        lengths: bytes of each of these levels, its check included.
        by_tables: whether they are coded by tables.
        header: bytes before them.
        fault: what is wrong after them, in words; empty where nothing is.
    """

    size: Grid
    codes: tuple[Codes, ...]
    lengths: tuple[int, ...]
    by_tables: bool
    header: int
    fault: str


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that another follows."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def read_varint(content: bytes, place: int, most: int = 4) -> tuple[int, int]:
    """(number, place behind it). Raises DamagedFileError: it is cut short, longer than need be or than `most`."""
    number = 0
    for count, byte in enumerate(content[place : place + most]):
        number |= (byte & 127) << (7 * count)
        if byte < 128:
            if not byte and count:
                break
            return number, place + count + 1
    raise DamagedFileError("a number in it is cut short or not as it is written")


def header_bytes(size: Grid, by_tables: bool, fingerprint: bytes) -> bytes:
    """The first bytes of a file."""
    height, width = size
    first = _MARK + _SQUARE * (height == width) + _BY_TABLES * by_tables
    numbers = varint(height - 1) + (b"" if height == width else varint(width - 1))
    return bytes([first]) + fingerprint + numbers


def read_header(content: bytes, name: str = "the file", most_pixels: int = MOST_PIXELS) -> Header:
    """The header of a file.

    Raises:
        DamagedFileError: it is no such file, of a later version, or of a larger image than is admitted.
    """
    if not content or content[0] & 0xF0 != _MARK:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    if content[0] & 0x0C:
        raise DamagedFileError(
            f"{name} is of version {content[0] >> 2 & 3}, and this program reads version 0; or the file is damaged"
        )
    place = 1 + _FINGERPRINT
    try:
        height, place = read_varint(content, place)
        width, place = (height, place) if content[0] & _SQUARE else read_varint(content, place)
        if height == width and not content[0] & _SQUARE:
            raise DamagedFileError("a number in it is cut short or not as it is written")
    except DamagedFileError as error:
        raise DamagedFileError(f"{name} is damaged: {error}") from error
    size = (height + 1, width + 1)
    if size[0] * size[1] > most_pixels:
        raise DamagedFileError(f"{name} says {size[0]}x{size[1]} pixels; at most {most_pixels} are admitted")
    return Header(size, bool(content[0] & _BY_TABLES), content[1 : 1 + _FINGERPRINT], place)


def require_model(codec: Codec, header: Header, name: str) -> None:
    """Raises InputError where a file was made by another model, or by tables that are not those of this one.

    A damaged header looks the same: the first check of a file comes behind level 1, which only its model can read.
    """
    if header.by_tables and codec.tables is None:
        raise InputError(
            f"{name} was made with tables, and {codec.name} has none: put the file of tables beside its weights; "
            "or the file is damaged"
        )
    own = codec.fingerprint(header.by_tables)
    if header.fingerprint != own:
        what = "tables" if header.by_tables else "model"
        raise InputError(
            f"{name} was made by another model: its {what} are {header.fingerprint.hex()}, those of {codec.name} are "
            f"{own.hex()}; or the file is damaged"
        )


def write(codec: Codec, codes: Codes, size: Grid, levels: int | None = None) -> list[list[bytes]]:
    """The parts of the file of each image: its header, then each level with its check.

    Where tables make a file larger than it is without them, it is written without.

    Args:
        codes: (N, all codes), level after level, rows first.
        size: height and width in pixels of all of them.
        levels: how many are written; None is all.
    """
    files = _write(codec, codes, size, levels or len(codec.symbols), codec.tables is not None)
    if codec.tables is None or not files:
        return files
    limit = sum(map(len, _write(codec, codes[:1], size, levels or len(codec.symbols), False)[0]))
    large = [number for number, file in enumerate(files) if sum(map(len, file)) > limit]
    for number, file in zip(large, _write(codec, codes[large], size, levels or len(codec.symbols), False), strict=True):
        if sum(map(len, file)) < sum(map(len, files[number])):
            files[number] = file
    return files


def _write(codec: Codec, codes: Codes, size: Grid, levels: int, by_tables: bool) -> list[list[bytes]]:
    layout = codec.layout(size)
    head = header_bytes(size, by_tables, codec.fingerprint(by_tables))
    files, registers = [[head] for _ in codes], [crc8(head)] * len(codes)
    for level in range(levels):
        streams = encode_level(codes, layout, level, codec.network(level, by_tables))
        for number, stream in enumerate(streams):
            files[number].append(stream + bytes([crc8(stream, registers[number])]))
            registers[number] = 0
    return files


def read(
    codec: Codec, files: Sequence[bytes], levels: int | None = None, names: Sequence[str] | None = None,
    most_pixels: int = MOST_PIXELS,
) -> list[Picture]:  # fmt: skip
    """The codes of files, in order; what is wrong with a file stands in its `fault`.

    Args:
        levels: read no more than so many.
        names: of the files, for messages.

    Raises:
        InputError: a file was made by another model; with its name.
        DamagedFileError: a file has no whole level, is of a later version or too large; with its name.
    """
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    headers = [read_header(one, name, most_pixels) for one, name in zip(files, names, strict=True)]
    together: dict[tuple[Grid, bool], list[int]] = {}
    for number, header in enumerate(headers):
        require_model(codec, header, names[number])
        together.setdefault((header.size, header.by_tables), []).append(number)
    pictures: dict[int, Picture] = {}
    for (size, by_tables), numbers in together.items():
        some = _read(codec, [files[number] for number in numbers], size, by_tables, headers[numbers[0]].length, levels)
        pictures.update(zip(numbers, some, strict=True))
    for number, name in enumerate(names):
        if not pictures[number].codes:
            raise DamagedFileError(f"{name} has no whole level: {pictures[number].fault}")
    return [pictures[number] for number in range(len(files))]


def _read(
    codec: Codec, files: Sequence[bytes], size: Grid, by_tables: bool, head: int, levels: int | None
) -> list[Picture]:
    layout = codec.layout(size)
    content = np.frombuffer(b"".join(files), np.uint8)
    stops = np.cumsum([len(one) for one in files])
    firsts = stops - [len(one) for one in files]
    codes = np.zeros((len(files), layout.begins[-1]), np.int32)
    places = firsts + head
    registers = [crc8(file[:head]) for file in files]
    lengths: list[list[int]] = [[] for _ in files]
    faults = [""] * len(files)
    going = np.arange(len(files))
    for level in range(min(levels or len(codec.symbols), len(codec.symbols))):
        going = np.array([one for one in going if not faults[one] and (places[one] < stops[one] or not level)], int)
        if not len(going):
            break
        some = codes if len(going) == len(codes) else codes[going]  # no copy: memory that is not written to is free
        network = codec.network(level, by_tables)
        ends = decode_level(content, places[going], stops[going], some, layout, level, network)
        if some is not codes:
            codes[going] = some
        for number, end in zip(going.tolist(), ends.tolist(), strict=True):
            if end == NOT_WHOLE or end + _CHECK > stops[number]:
                faults[number] = f"level {level + 1} is cut short or damaged"
            elif crc8(content[places[number] : end + _CHECK], registers[number]):
                faults[number] = f"level {level + 1} is damaged"
            else:
                lengths[number].append(int(end + _CHECK - places[number]))
                places[number], registers[number] = end + _CHECK, 0
    if levels is None or levels >= len(codec.symbols):
        for number in range(len(files)):
            if not faults[number] and len(lengths[number]) == len(codec.symbols) and places[number] != stops[number]:
                faults[number] = f"{counted(int(stops[number] - places[number]), 'byte')} more than its levels take"
    grids = [tuple(int(side) for side in grid) for grid in layout.grids]
    return [
        Picture(
            size,
            tuple(codes[number, layout.part(level)].reshape(grids[level]) for level in range(len(lengths[number]))),
            tuple(lengths[number]), by_tables, head, faults[number],
        )
        for number in range(len(files))
    ]  # fmt: skip
