"""The file of one image, .hrv: a header, then its levels, coarse first, each with a check. docs/format.md states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import FINGERPRINT, EntropyModel
from hrvqvae.compression.kernels import NOT_WHOLE
from hrvqvae.compression.levels import decode_level, encode_level
from hrvqvae.config import Grid
from hrvqvae.data.batches import same_size
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrv"
MOST_PIXELS = 1 << 26
STARTS = (0, 0xFF)  # of the check's register, by the version of a format; with 0 a tail of zeros looked whole
_MARK, _SQUARE, _BY_TABLES = 0xD0, 2, 1
_CHECK = 1
_POLYNOMIAL = 0x1D  # x^8 + x^4 + x^3 + x^2 + 1, primitive: two flipped bits less than 255 apart are found as well

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Header:
    """The first `length` bytes of a file; `size` is height and width in pixels.

    Where `by_tables`, levels are coded by networks and the fingerprint is that of the entropy model.
    """

    size: Grid
    by_tables: bool
    fingerprint: bytes
    length: int
    version: int


@dataclass(frozen=True)
class ImageCodes:
    """The codes of one image, as far as its file holds them.

    Attributes:
        size: height and width in pixels.
        codes: (H_l, W_l) int32 of each level that is whole, coarse first.
        lengths: bytes of the header, and of each of these levels with its check.
        fault: what is wrong after them, in words; empty where nothing is.
    """

    size: Grid
    codes: tuple[Codes, ...]
    lengths: tuple[int, ...] = ()
    fault: str = ""


def _crc_of(value: int) -> int:
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value & 0x80 else 0)
    return value & 0xFF


_CRC = bytes(map(_crc_of, range(256)))


def crc8(content: bytes | NDArray[np.uint8], register: int) -> int:
    """The CRC-8 of these bytes, the first bit of each first; 0 of bytes that end with their own."""
    for byte in bytes(content):  # a compiled loop would take a second when it is first called
        register = _CRC[register ^ byte]
    return register


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


def _header_bytes(size: Grid, entropy_model: EntropyModel) -> bytes:
    height, width = size
    first = _MARK + 4 * (len(STARTS) - 1) + _SQUARE * (height == width) + _BY_TABLES * bool(entropy_model.networks)
    numbers = varint(height - 1) + (b"" if height == width else varint(width - 1))
    return bytes([first]) + entropy_model.fingerprint + numbers


def read_header(content: bytes, name: str = "the file", max_pixels: int = MOST_PIXELS) -> Header:
    """The header of a file. Raises DamagedFileError: it is none, of a later version, or of too large an image."""
    if not content or content[0] & 0xF0 != _MARK:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    version = content[0] >> 2 & 3
    if version >= len(STARTS):
        raise DamagedFileError(f"{name} is of version {version}, later than this program reads; or the file is damaged")
    place = 1 + FINGERPRINT
    try:
        height, place = read_varint(content, place)
        width, place = (height, place) if content[0] & _SQUARE else read_varint(content, place)
        if height == width and not content[0] & _SQUARE:
            raise DamagedFileError("a number in it is cut short or not as it is written")
    except DamagedFileError as error:
        raise DamagedFileError(f"{name} is damaged: {error}") from error
    size = (height + 1, width + 1)
    if size[0] * size[1] > max_pixels:
        raise DamagedFileError(f"{name} says {size[0]}x{size[1]} pixels; at most {max_pixels} are admitted")
    return Header(size, bool(content[0] & _BY_TABLES), content[1 : 1 + FINGERPRINT], place, version)


def _require_model(entropy_model: EntropyModel, header: Header, name: str) -> None:
    """Raises InputError where a file was made by another model, or by an entropy model that is not this one.

    A damaged header looks the same: the first check of a file comes behind level 1, which only its model can read.
    """
    if header.by_tables and not entropy_model.networks:
        raise InputError(
            f"{name} was made with an entropy model, and {entropy_model.name} has none: put its tables.hrvt beside its "
            "weights; or the file is damaged"
        )
    own = (entropy_model if header.by_tables else entropy_model.bare).fingerprint
    if header.fingerprint != own:
        what = "entropy model is" if header.by_tables else "weights are"
        raise InputError(
            f"{name} was made by another model: its {what} {header.fingerprint.hex()}, of "
            f"{entropy_model.name} {own.hex()}; or the file is damaged"
        )


def write(entropy_model: EntropyModel, codes: Codes, size: Grid, levels: int | None = None) -> list[bytes]:
    """The file of each image. Networks are used where they make it no larger.

    Args:
        codes: (N, all codes), level after level, rows first.
        size: height and width in pixels of all of them.
        levels: how many are written; None is all.
    """
    levels = levels or len(entropy_model.symbols)
    files = _write(entropy_model, codes, size, levels)
    if not entropy_model.networks or not files:
        return files
    limit = len(_write(entropy_model.bare, codes[:1], size, levels)[0])
    large = [number for number, file in enumerate(files) if len(file) > limit]
    for number, file in zip(large, _write(entropy_model.bare, codes[large], size, levels), strict=True):
        files[number] = min(files[number], file, key=len)
    return files


def _write(entropy_model: EntropyModel, codes: Codes, size: Grid, levels: int) -> list[bytes]:
    layout, head = entropy_model.layout(size), _header_bytes(size, entropy_model)
    files = [head] * len(codes)
    for level in range(levels):
        for number, stream in enumerate(encode_level(codes, layout, level, entropy_model.network(level))):
            files[number] += stream + bytes([crc8(stream if level else head + stream, STARTS[-1])])
    return files


def read(
    entropy_model: EntropyModel, files: Sequence[bytes], levels: int | None = None, names: Sequence[str] | None = None,
    max_pixels: int = MOST_PIXELS,
) -> list[ImageCodes]:  # fmt: skip
    """The codes of files, of `levels` at most, in order; what is wrong with a file stands in its `fault`.

    Raises:
        InputError: a file was made by another model; with its name.
        DamagedFileError: a file is none, is of a later version or too large; with its name.
    """
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    headers = [read_header(one, name, max_pixels) for one, name in zip(files, names, strict=True)]
    for header, name in zip(headers, names, strict=True):
        _require_model(entropy_model, header, name)
    found: dict[int, ImageCodes] = {}
    for numbers in same_size([(*header.size, header.by_tables, header.version) for header in headers], MOST_PIXELS):
        header, some = headers[numbers[0]], [files[number] for number in numbers]
        own, start = entropy_model if header.by_tables else entropy_model.bare, STARTS[header.version]
        decoded = read_levels(own, some, header.size, levels, len(entropy_model.symbols), header.length, start)
        found.update(zip(numbers, decoded, strict=True))
    return [found[number] for number in range(len(files))]


def read_levels(
    entropy_model: EntropyModel, files: Sequence[bytes], size: Grid, levels: int | None, stored: int, head: int = 0,
    start: int | None = None,
) -> list[ImageCodes]:  # fmt: skip
    """The codes of images of one size, of `levels` at most; a file has `head` bytes, then `stored` levels at most.

    Each level ends with a check whose register begins at `start`; where that is None there are no checks, and a level
    may have no bytes.
    """
    layout, check = entropy_model.layout(size), 0 if start is None else _CHECK
    content = np.frombuffer(b"".join(files), np.uint8)
    stops = np.cumsum([len(one) for one in files])
    places = stops - [len(one) - head for one in files]
    codes = np.zeros((len(files), layout.begins[-1]), np.int32)
    lengths = [[head] for _ in files]
    faults = [""] * len(files)
    for level in range(min(levels or stored, stored)):
        ends = decode_level(content, places, stops, codes, layout, level, entropy_model.network(level))
        for number, end in enumerate(ends.tolist()):
            if faults[number] or (level and check and places[number] == stops[number]):
                continue
            begin = places[number] - (0 if level else head)  # the first check is of the header as well
            if end == NOT_WHOLE or end + check > stops[number]:
                faults[number] = f"level {level + 1} is cut short or damaged"
            elif start is not None and crc8(content[begin : end + check], start):
                faults[number] = f"level {level + 1} is damaged"
            else:
                lengths[number].append(int(end + check - places[number]))
                places[number] = end + check
    for number, left in enumerate((stops - places).tolist()):
        if left and not faults[number] and len(lengths[number]) > stored:
            faults[number] = f"{counted(left, 'byte')} more than its levels take"
    return [
        ImageCodes(size, layout.maps(row, len(own) - 1), tuple(own), fault)
        for row, own, fault in zip(codes, lengths, faults, strict=True)
    ]
