"""The file of one image, .hrv: a header, then a stream and a check byte per part, coarse first
(docs/format.md).

In version 1, a part is a level, and all positions have all levels of the file. In version 2, a part
is a family of levels, and each position may stop at a level of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES, MOST_PIXELS, EntropyModel
from hrvqvae.compression.levels import NOT_WHOLE, CodeArray, PartCoder
from hrvqvae.compression.network import NUM_QUALITIES, find_parts
from hrvqvae.config import Grid, level_names
from hrvqvae.utils.compiled import in_parts
from hrvqvae.utils.errors import DamagedFileError

SUFFIX = ".hrv"
# first byte of version 1, and the flags that are added
_FIRST_BYTE = 0xD4
_SQUARE = 2
_BY_TABLES = 1
# first byte of version 2, to which the quality is added, and the flag
_FIRST_BYTE_2 = 0xE0
_SQUARE_2 = NUM_QUALITIES
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
    quality: int | None = None  # of version 2, in which positions may stop


@dataclass(frozen=True)
class ImageCodes:
    """The codes of one image, up to the first damaged or absent part."""

    size: Grid  # height and width in pixels
    codes: tuple[CodeArray, ...]  # (H_l, W_l) int32 of each whole level, coarse first
    lengths: tuple[int, ...] = ()  # bytes of the header, then of each whole part with its check
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
    flags = content[0] - _FIRST_BYTE if content else -1
    quality = None
    if 0 <= flags <= _SQUARE + _BY_TABLES:
        by_tables = flags & _BY_TABLES
        square = flags & _SQUARE
    elif content and 0 <= content[0] - _FIRST_BYTE_2 < 2 * NUM_QUALITIES:
        by_tables = 1
        square, quality = divmod(content[0] - _FIRST_BYTE_2, NUM_QUALITIES)
    else:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    height, offset = _read_varint(content, 1 + FINGERPRINT_BYTES, name)
    width = height
    if not square:
        width, offset = _read_varint(content, offset, name)
    size = (height + 1, width + 1)
    if size[0] * size[1] > max_pixels:
        raise DamagedFileError(
            f"{name} says {size[0]}x{size[1]} pixels; at most {max_pixels} are admitted"
        )
    fingerprint = content[1 : 1 + FINGERPRINT_BYTES]
    return Header(size, bool(by_tables), fingerprint, offset, quality)


def write(
    model: EntropyModel,
    codes: CodeArray,
    size: Grid,
    levels: int | None = None,
    qualities: Sequence[int] | None = None,
) -> list[bytes]:
    """Return the content of each image's file, coded without networks if that makes it smaller.

    Args:
        codes: (N, all codes), level after level, each row-major, of images of one size.
        levels: Number of levels to write (default: all).
        qualities: The quality of each file (N,), for codes that are -1 where positions have
            stopped; then all levels are written.
    """
    levels = levels or len(model.symbols)
    coders = [model, model.bare] if model.networks and qualities is None else [model]

    def write_files(begin: int, end: int) -> list[bytes]:
        files = []
        for row in range(begin, end):
            quality = None if qualities is None else qualities[row]
            contents = [_write_file(coder, codes[row], size, levels, quality) for coder in coders]
            files.append(min(contents, key=len))
        return files

    parts = in_parts(len(codes), write_files, one_thread_up_to=_ONE_THREAD_IMAGES)
    return list(chain(*parts))


def _make_part_coders(
    model: EntropyModel, size: Grid, levels: int, quality: int | None
) -> Iterator[PartCoder]:
    """Yield the coder of each part of a file that has some of the first levels."""
    absent = [None] * len(model.symbols)
    layout = model.layout(size)
    if quality is None:
        parts = [range(level, level + 1) for level in range(len(model.symbols))]
    else:
        parts = find_parts(model.symbols)
    for part in parts:
        if part.start < levels:
            stops = absent if quality is None else model.stops
            yield PartCoder(layout, part, model.networks or absent, stops, quality or 0)


def _write_file(
    model: EntropyModel, codes: CodeArray, size: Grid, levels: int, quality: int | None
) -> bytes:
    """Return the content of an image's file, with networks if the model has any."""
    height, width = size
    square = height == width
    if quality is None:
        first_byte = _FIRST_BYTE + _SQUARE * square + _BY_TABLES * bool(model.networks)
        fingerprint = model.fingerprint
    else:
        first_byte = _FIRST_BYTE_2 + _SQUARE_2 * square + quality
        fingerprint = model.stop_fingerprint
        # parts after the last level at which a position goes on are left out
        last_code = int(np.flatnonzero(codes >= 0)[-1])
        levels = int(np.searchsorted(model.layout(size).begins, last_code, side="right"))
    header = bytes([first_byte]) + fingerprint + _write_varint(height - 1)
    if not square:
        header += _write_varint(width - 1)
    file = b""
    checked = header  # the first check includes the header
    for part in _make_part_coders(model, size, levels, quality):
        checked += part.encode(codes)
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
    quality = header.quality
    expected = decoder.fingerprint if quality is None else decoder.stop_fingerprint
    if header.fingerprint != expected or (quality is not None and not decoder.stops):
        # A damaged header can't be told from another model's: its check byte lies behind level 1,
        # whose end only the right model finds.
        raise DamagedFileError(
            f"{name} was made by another model ({header.fingerprint.hex()}) than {model.name}"
            f" ({expected.hex()}), or with another entropy model, or it is damaged"
        )

    layout = model.layout(header.size)
    codes = np.zeros(layout.begins[-1], np.int32)
    content = np.frombuffer(file, np.uint8)
    lengths = [header.length]
    fault = ""
    start = header.length  # of the next part
    num_whole = 0  # levels
    for part in _make_part_coders(decoder, header.size, levels, quality):
        # A file may end behind any part.
        if num_whole > 0 and start == len(file):
            break

        # The check byte follows the part's stream. That of the first part covers the header, too.
        end = part.decode(content, start, codes)
        is_whole = end not in (NOT_WHOLE, len(file))
        checked_from = start if num_whole > 0 else 0
        if not is_whole or crc8(file[checked_from : end + 1]) != 0:
            fault = f"{level_names(part.levels)} is cut short or damaged"
            break
        lengths.append(end + 1 - start)
        start = end + 1
        num_whole = part.levels.stop

    if num_whole == len(model.symbols) and start < len(file):
        fault = "there are bytes behind its last level"
    whole_codes = layout.split(codes, min(num_whole, levels))
    return ImageCodes(header.size, whole_codes, tuple(lengths), fault, name)
