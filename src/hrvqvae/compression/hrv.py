"""The file of one image, .hrv: a header, then its levels, coarse first, each with a check. docs/format.md states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import FINGERPRINT, EntropyModel
from hrvqvae.compression.kernels import NOT_WHOLE
from hrvqvae.compression.levels import decode_level, encode_level, least_bytes
from hrvqvae.config import Grid
from hrvqvae.data.batches import group_by_size
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrv"
MOST_PIXELS = 1 << 26
TOGETHER = 1 << 22  # pixels of images that are decoded at once
_MARK, _SQUARE, _BY_TABLES = 0xD4, 2, 1  # with version 1
_POLYNOMIAL = 0x1D  # x^8 + x^4 + x^3 + x^2 + 1, primitive: two flipped bits less than 255 apart are found as well
_REGISTER = 0xFF  # of a check at first; with 0 a tail of zeros would look whole

Codes = NDArray[np.int32]


class Header(NamedTuple):
    """The header of a file."""

    size: Grid  # height and width in pixels
    by_tables: bool  # whether the levels are coded by networks
    fingerprint: bytes  # of the entropy model if they are, else of the weights
    length: int  # of the header in bytes


@dataclass(frozen=True)
class ImageCodes:
    """The codes of one image, as far as its file holds them."""

    size: Grid  # height and width in pixels
    codes: tuple[Codes, ...]  # (H_l, W_l) int32 of each whole level, coarse first
    lengths: tuple[int, ...] = ()  # bytes of the header, and of each of these levels with its check
    fault: str = ""  # what is wrong after them


def _crc_of(value: int) -> int:
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value & 0x80 else 0)
    return value & 0xFF


_CRC = bytes(map(_crc_of, range(256)))


def crc8(content: bytes | NDArray[np.uint8]) -> int:
    """Return the CRC-8 of bytes, the first bit of each first; 0 for bytes that end with their own."""
    register = _REGISTER
    for byte in bytes(content):  # a compiled loop would take a second when it is first called
        register = _CRC[register ^ byte]
    return register


def varint(value: int) -> bytes:
    """Return a number as seven bits per byte, the lowest first; the highest bit says that another byte follows."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def read_varint(content: bytes, place: int, most: int = 4) -> tuple[int, int]:
    """Return a number and the place behind it. Raises DamagedFileError if it is not as `varint` writes it."""
    value = 0
    for count, byte in enumerate(content[place : place + most]):
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            if not byte and count:
                break
            return value, place + count + 1
    raise DamagedFileError("a number in it is cut short or not as it is written")


def read_header(content: bytes, name: str = "the file", max_pixels: int = MOST_PIXELS) -> Header:
    """Return the header of a file. Raises DamagedFileError for another kind or version, and for too large an image."""
    if not content or not _MARK <= content[0] <= 0xDF:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    if content[0] > _MARK + 3:
        version = content[0] - _MARK + 4 >> 2
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
    return Header(size, bool(content[0] & _BY_TABLES), content[1 : 1 + FINGERPRINT], place)


def _require_model(model: EntropyModel, header: Header, name: str) -> None:
    """Raise InputError if a file was made by another model or another entropy model.

    A damaged header looks the same: the first check of a file comes behind level 1, which only its model can read.
    """
    if header.by_tables and not model.networks:
        raise InputError(
            f"{name} was made with an entropy model, and {model.name} has none: put its tables.hrvt beside its "
            "weights; or the file is damaged"
        )
    expected = (model if header.by_tables else model.bare).fingerprint
    if header.fingerprint != expected:
        what = "entropy model is" if header.by_tables else "weights are"
        raise InputError(
            f"{name} was made by another model: its {what} {header.fingerprint.hex()}, of {model.name} "
            f"{expected.hex()}; or the file is damaged"
        )


def write(model: EntropyModel, codes: Codes, size: Grid, levels: int | None = None) -> list[bytes]:
    """Return the file of each image. Networks are used if they make it no larger, and no reader refuses it as a bomb.

    Args:
        model: The entropy model.
        codes: (N, all codes), level after level, rows first.
        size: Height and width in pixels of all images.
        levels: How many levels are written; None is all.
    """
    levels, layout = levels or len(model.symbols), model.layout(size)
    files = _write(model, codes, size, levels)
    if not model.networks or not files:
        return files
    most = len(_write(model.bare, codes[:1], size, levels)[0])
    least = max(least_bytes(layout, level, model.network(level)) for level in range(levels))
    others = [index for index, file in enumerate(files) if not least <= len(file) <= most]
    for index, file in zip(others, _write(model.bare, codes[others], size, levels), strict=True):
        files[index] = min(files[index], file, key=lambda file: (len(file) < least, len(file)))
    return files


def _write(model: EntropyModel, codes: Codes, size: Grid, levels: int) -> list[bytes]:
    layout, (height, width) = model.layout(size), size
    head = bytes([_MARK + _SQUARE * (height == width) + _BY_TABLES * bool(model.networks)]) + model.fingerprint
    head += varint(height - 1) + (b"" if height == width else varint(width - 1))
    files = [head] * len(codes)
    for level in range(levels):
        for index, stream in enumerate(encode_level(codes, layout, level, model.network(level))):
            files[index] += stream + bytes([crc8(stream if level else head + stream)])
    return files


def read(
    model: EntropyModel, files: Sequence[bytes], levels: int | None = None, names: Sequence[str] | None = None,
    max_pixels: int = MOST_PIXELS,
) -> list[ImageCodes]:  # fmt: skip
    """Return the codes of files, of `levels` at most, in order; `fault` says what is wrong with a file.

    Raises:
        InputError: A file was made by another model; with its name.
        DamagedFileError: A file is none, is of another version or too large; with its name.
    """
    names = names or [f"file {place}" for place in range(1, len(files) + 1)]
    headers = [read_header(file, name, max_pixels) for file, name in zip(files, names, strict=True)]
    for header, name in zip(headers, names, strict=True):
        _require_model(model, header, name)
    images: dict[int, ImageCodes] = {}
    for group in group_by_size([(*header.size, header.by_tables) for header in headers], TOGETHER):
        header, coder = headers[group[0]], model if headers[group[0]].by_tables else model.bare
        contents = [files[index] for index in group]
        decoded = read_levels(coder, contents, header.size, levels, len(model.symbols), header.length)
        images.update(zip(group, decoded, strict=True))
    return [images[index] for index in range(len(files))]


def read_levels(
    model: EntropyModel, contents: Sequence[bytes], size: Grid, levels: int | None, stored: int,
    header: int | None = None,
) -> list[ImageCodes]:  # fmt: skip
    """Return the codes of images of one size.

    Args:
        model: The entropy model.
        contents: The bytes of each image: a header, then levels.
        size: Height and width in pixels.
        levels: How many levels are read at most.
        stored: How many levels there are at most.
        header: Bytes of the header. None: there is none, no level has a check, and a level may have no bytes.
    """
    layout, head, check = model.layout(size), header or 0, 0 if header is None else 1
    content = np.frombuffer(b"".join(contents), np.uint8)
    sizes = np.array([len(file) for file in contents])
    stops = np.cumsum(sizes)
    places = stops - sizes + head
    codes = np.zeros((len(contents), layout.begins[-1]), np.int32)
    lengths = [[head] for _ in contents]
    faults = [""] * len(contents)
    for level in range(min(levels or stored, stored)):
        admitted = sizes >= least_bytes(layout, level, model.network(level))
        limits = np.where(admitted, stops, places - 1)  # less than no bytes hold no codes
        ends = decode_level(content, places, limits, codes, layout, level, model.network(level))
        for index, end in enumerate(ends.tolist()):
            if faults[index] or (level and check and places[index] == stops[index]):
                continue
            begin = places[index] - (0 if level else head)  # the first check is of the header as well
            if not admitted[index]:
                faults[index] = f"level {level + 1} has more codes than {counted(len(contents[index]), 'byte')} admit"
            elif end == NOT_WHOLE or end + check > stops[index]:
                faults[index] = f"level {level + 1} is cut short or damaged"
            elif check and crc8(content[begin : end + check]):
                faults[index] = f"level {level + 1} is damaged"
            else:
                lengths[index].append(int(end + check - places[index]))
                places[index] = end + check
    for index, left in enumerate((stops - places).tolist()):
        if left and not faults[index] and len(lengths[index]) > stored:
            faults[index] = f"{counted(left, 'byte')} more than its levels take"
    return [
        ImageCodes(size, layout.maps(row, len(used) - 1), tuple(used), fault)
        for row, used, fault in zip(codes, lengths, faults, strict=True)
    ]
