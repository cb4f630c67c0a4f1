"""The file of one image, .hrv: a header, then a stream and a check byte per level, coarse first
(docs/format.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES, MOST_PIXELS, EntropyModel
from hrvqvae.compression.levels import NOT_WHOLE, CodeArray, decode_level, encode_level
from hrvqvae.config import Grid
from hrvqvae.utils.compiled import in_parts
from hrvqvae.utils.errors import DamagedFileError

SUFFIX = ".hrv"
# first byte of version 1, and the flags that are added
_FIRST_BYTE = 0xD4
_SQUARE = 2
_BY_TABLES = 1
# x^8 + x^4 + x^3 + x^2 + 1, primitive: detects two flipped bits less than 255 apart
_POLYNOMIAL = 0x11D
_VARINT_BYTES = 4  # at most
_CRC_SEED = 0xFF  # with 0, a tail of zeros would pass the check
_ONE_THREAD_IMAGES = 8  # up to so many images, one thread is as fast


class Header(NamedTuple):
    """The header of a file."""

    size: Grid  # height and width in pixels
    by_tables: bool  # whether networks predict the codes
    fingerprint: bytes  # of the entropy model; without `by_tables`, of the weights
    length: int  # of the header, in bytes


@dataclass(frozen=True)
class ImageCodes:
    """The codes of one image, up to the first damaged or absent level."""

    size: Grid  # height and width in pixels
    codes: tuple[CodeArray, ...]  # (H_l, W_l) int32 of each whole level, coarse first
    lengths: tuple[int, ...] = ()  # bytes of the header, then of each whole level with its check
    fault: str = ""  # what is wrong with the rest; "" for nothing
    name: str = "the file"  # for messages


_CRC_TABLE = list(range(256))
for _ in range(8):
    _CRC_TABLE = [(value << 1) ^ (_POLYNOMIAL if value & 0x80 else 0) for value in _CRC_TABLE]


def crc8(content: bytes) -> int:
    """Return the CRC-8 of bytes, most significant bit first; 0 if the last byte is the CRC-8 of the
    others.
    """
    register = _CRC_SEED
    for byte in content:  # a compiled loop would first take a second to compile
        register = _CRC_TABLE[register ^ byte]
    return register


def _write_varint(value: int) -> bytes:
    """Encode a number in seven bits per byte, lowest first. The high bit is set if another byte
    follows.
    """
    if value < 128:
        return bytes([value])
    return bytes([value & 127 | 128]) + _write_varint(value >> 7)


def _read_varint(content: bytes, offset: int, name: str) -> tuple[int, int]:
    """Return the number at an offset, and the offset behind it. Raises DamagedFileError."""
    value = 0
    for count, byte in enumerate(content[offset : offset + _VARINT_BYTES]):
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, offset + count + 1
    raise DamagedFileError(f"{name} is damaged: the size of the image is cut short")


def read_header(content: bytes, name: str = "the file", max_pixels: int = MOST_PIXELS) -> Header:
    """Return the header of a file. Raises DamagedFileError for another kind or version, or for too
    large an image.
    """
    if not content or not _FIRST_BYTE <= content[0] <= _FIRST_BYTE + _SQUARE + _BY_TABLES:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    height, offset = _read_varint(content, 1 + FINGERPRINT_BYTES, name)
    width = height
    if not content[0] & _SQUARE:
        width, offset = _read_varint(content, offset, name)
    size = (height + 1, width + 1)
    if size[0] * size[1] > max_pixels:
        raise DamagedFileError(
            f"{name} says {size[0]}x{size[1]} pixels; at most {max_pixels} are admitted"
        )
    fingerprint = content[1 : 1 + FINGERPRINT_BYTES]
    return Header(size, bool(content[0] & _BY_TABLES), fingerprint, offset)


def write(
    model: EntropyModel, codes: CodeArray, size: Grid, levels: int | None = None
) -> list[bytes]:
    """Return the content of each image's file, coded without networks if that makes it smaller.

    Args:
        codes: (N, all codes), level after level, each row-major, of images of one size.
        levels: Number of levels to write (default: all).
    """
    levels = levels or len(model.symbols)
    coders = [model, model.bare] if model.networks else [model]

    def write_files(begin: int, end: int) -> list[bytes]:
        files = []
        for row in codes[begin:end]:
            contents = [_write_file(coder, row, size, levels) for coder in coders]
            files.append(min(contents, key=len))
        return files

    parts = in_parts(len(codes), write_files, one_thread_up_to=_ONE_THREAD_IMAGES)
    return list(chain(*parts))


def _write_file(model: EntropyModel, codes: CodeArray, size: Grid, levels: int) -> bytes:
    """Return the content of an image's file, with networks if the model has any."""
    layout = model.layout(size)
    height, width = size
    first_byte = _FIRST_BYTE + _SQUARE * (height == width) + _BY_TABLES * bool(model.networks)
    header = bytes([first_byte]) + model.fingerprint + _write_varint(height - 1)
    if height != width:
        header += _write_varint(width - 1)
    networks = model.networks or [None] * levels
    file = b""
    checked = header  # the first check includes the header
    for level in range(levels):
        checked += encode_level(codes, layout, level, networks[level])
        file += checked + bytes([crc8(checked)])
        checked = b""
    return file


def read(
    model: EntropyModel,
    files: Sequence[bytes],
    levels: int | None = None,
    names: Sequence[str] | None = None,
    max_pixels: int = MOST_PIXELS,
) -> list[ImageCodes]:
    """Return the codes of each file, of at most `levels` levels. A file with damage behind the
    header has a `fault`.

    Raises DamagedFileError if a header is damaged, of another model, kind of file or version, or of
    too large an image.
    """
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    num_levels = min(levels or len(model.symbols), len(model.symbols))

    def read_files(begin: int, end: int) -> list[ImageCodes]:
        return [
            _read_file(model, bytes(files[index]), num_levels, names[index], max_pixels)
            for index in range(begin, end)
        ]

    parts = in_parts(len(files), read_files, one_thread_up_to=_ONE_THREAD_IMAGES)
    return list(chain(*parts))


def _read_file(
    model: EntropyModel, file: bytes, levels: int, name: str, max_pixels: int
) -> ImageCodes:
    """Return the codes of a file, as far as its levels are whole. Raises DamagedFileError."""
    header = read_header(file, name, max_pixels)
    decoder = model if header.by_tables else model.bare
    if header.fingerprint != decoder.fingerprint:
        # A damaged header can't be told from another model's: its check byte lies behind level 1,
        # whose end only the right model finds.
        raise DamagedFileError(
            f"{name} was made by another model ({header.fingerprint.hex()}) than {model.name}"
            f" ({decoder.fingerprint.hex()}), or with another entropy model, or it is damaged"
        )

    layout = model.layout(header.size)
    networks = decoder.networks or [None] * levels
    codes = np.zeros(layout.begins[levels], np.int32)
    content = np.frombuffer(file, np.uint8)
    lengths = [header.length]
    fault = ""
    start = header.length  # of the next level
    for level in range(levels):
        # A file may end behind any level.
        if level > 0 and start == len(file):
            break

        # The check byte follows the level's stream. That of level 1 covers the header, too.
        end = decode_level(content, start, codes, layout, level, networks[level])
        is_whole = end not in (NOT_WHOLE, len(file))
        checked_from = start if level > 0 else 0
        if not is_whole or crc8(file[checked_from : end + 1]) != 0:
            fault = f"level {level + 1} is cut short or damaged"
            break
        lengths.append(end + 1 - start)
        start = end + 1

    num_whole = len(lengths) - 1
    if num_whole == len(model.symbols) and start < len(file):
        fault = "there are bytes behind its last level"
    return ImageCodes(header.size, layout.split(codes, num_whole), tuple(lengths), fault, name)
