"""The file of one image, .hrv: a header, then a stream and a check byte per level, coarse first
(docs/format.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES, MOST_PIXELS, EntropyModel
from hrvqvae.compression.levels import NOT_WHOLE, count_required_bytes, decode_level, encode_level
from hrvqvae.config import Grid
from hrvqvae.data.batches import group_by_size
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrv"
TOGETHER = 1 << 22  # pixels of the images that are decoded at once
# first byte of version 1, and the flags that are added
_FIRST_BYTE = 0xD4
_SQUARE = 2
_BY_TABLES = 1
_POLYNOMIAL = (
    0x1D  # x^8 + x^4 + x^3 + x^2 + 1, primitive: detects two flipped bits less than 255 apart
)
_CRC_SEED = 0xFF  # with 0, a tail of zeros would pass the check

CodeArray = NDArray[np.int32]


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


_CRC_TABLE = list(range(256))
for _ in range(8):
    _CRC_TABLE = [
        (value << 1) & 0xFF ^ (_POLYNOMIAL if value & 0x80 else 0) for value in _CRC_TABLE
    ]


def crc8(content: bytes | NDArray[np.uint8]) -> int:
    """Return the CRC-8 of bytes, most significant bit first; 0 if the last byte is the CRC-8 of the
    others.
    """
    register = _CRC_SEED
    for byte in bytes(content):  # a compiled loop would first take a second to compile
        register = _CRC_TABLE[register ^ byte]
    return register


def varint(value: int) -> bytes:
    """Encode a number in seven bits per byte, lowest first. The high bit is set if another byte
    follows.
    """
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def read_varint(content: bytes, offset: int, max_bytes: int = 4) -> tuple[int, int]:
    """Return the number at an offset, and the next offset. Raises DamagedFileError unless `varint`
    wrote the number.
    """
    value = 0
    for count, byte in enumerate(content[offset : offset + max_bytes]):
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            if not byte and count:
                break
            return value, offset + count + 1
    raise DamagedFileError("a number in it is cut short or not in its shortest form")


def read_header(content: bytes, name: str = "the file", max_pixels: int = MOST_PIXELS) -> Header:
    """Return the header of a file. Raises DamagedFileError for another kind or version, or for too
    large an image.
    """
    if not content or not _FIRST_BYTE <= content[0] <= 0xDF:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    if content[0] > _FIRST_BYTE + 3:
        version = 1 + (content[0] - _FIRST_BYTE) // 4
        raise DamagedFileError(
            f"{name} is of version {version}, later than this program reads; or the file is damaged"
        )
    offset = 1 + FINGERPRINT_BYTES
    try:
        height, offset = read_varint(content, offset)
        width, offset = (height, offset) if content[0] & _SQUARE else read_varint(content, offset)
        if height == width and not content[0] & _SQUARE:
            raise DamagedFileError("its width is stored, although it equals the height")
    except DamagedFileError as error:
        raise DamagedFileError(f"{name} is damaged: {error}") from error
    size = (height + 1, width + 1)
    if size[0] * size[1] > max_pixels:
        raise DamagedFileError(
            f"{name} says {size[0]}x{size[1]} pixels; at most {max_pixels} are admitted"
        )
    return Header(size, bool(content[0] & _BY_TABLES), content[1 : 1 + FINGERPRINT_BYTES], offset)


def _require_model(model: EntropyModel, header: Header, name: str) -> None:
    """Raise InputError if a file was made by another model or another entropy model, or its header
    is damaged.
    """
    # The header's check byte follows level 1, and only the right model finds where level 1 ends.
    if header.by_tables and not model.networks:
        raise InputError(
            f"{name} was made with an entropy model, and {model.name} has none: put its tables.hrvt"
            " beside its weights; or the file is damaged"
        )
    expected = (model if header.by_tables else model.bare).fingerprint
    if header.fingerprint != expected:
        subject = "entropy model is" if header.by_tables else "weights are"
        raise InputError(
            f"{name} was made by another model: its {subject} {header.fingerprint.hex()}, of"
            f" {model.name} {expected.hex()}; or the file is damaged"
        )


def write(
    model: EntropyModel, codes: CodeArray, size: Grid, levels: int | None = None
) -> list[bytes]:
    """Return the content of each image's file.

    A file is coded without networks if that makes it smaller, or if a reader would refuse the file
    as too short for its codes.

    Args:
        codes: (N, all codes), level after level, each row-major, of images of one size.
        levels: Number of levels to write (default: all).
    """
    levels = levels or len(model.symbols)
    layout = model.layout(size)
    files = _encode_files(model, codes, size, levels)
    if not model.networks or not files:
        return files
    # of one image: in others, the end of each level may be a byte shorter
    bare_length = len(_encode_files(model.bare, codes[:1], size, levels)[0])
    required = max(
        count_required_bytes(layout, level, model.network(level)) for level in range(levels)
    )
    questionable = [
        index
        for index, file in enumerate(files)
        if not required <= len(file) <= bare_length - levels
    ]
    for index, bare in zip(
        questionable, _encode_files(model.bare, codes[questionable], size, levels), strict=True
    ):
        files[index] = min(
            files[index], bare, key=lambda file: (len(file) < required, len(file))
        )  # refused last
    return files


def _encode_files(model: EntropyModel, codes: CodeArray, size: Grid, levels: int) -> list[bytes]:
    layout, (height, width) = model.layout(size), size
    header = (
        bytes([_FIRST_BYTE + _SQUARE * (height == width) + _BY_TABLES * bool(model.networks)])
        + model.fingerprint
    )
    header += varint(height - 1) + (b"" if height == width else varint(width - 1))
    files = [header] * len(codes)
    for level in range(levels):
        for index, stream in enumerate(encode_level(codes, layout, level, model.network(level))):
            files[index] += stream + bytes([crc8(stream if level else header + stream)])
    return files


def read(
    model: EntropyModel,
    files: Sequence[bytes],
    levels: int | None = None,
    names: Sequence[str] | None = None,
    max_pixels: int = MOST_PIXELS,
) -> list[ImageCodes]:
    """Return the codes of each file, of at most `levels` levels. A file with damage behind the
    header has a `fault`.

    Raises:
        InputError: A file was made by another model.
        DamagedFileError: A header is damaged, of another kind of file or version, or of too large
            an image.
    """
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    headers = [read_header(file, name, max_pixels) for file, name in zip(files, names, strict=True)]
    for header, name in zip(headers, names, strict=True):
        _require_model(model, header, name)
    images: dict[int, ImageCodes] = {}
    for group in group_by_size([(*header.size, header.by_tables) for header in headers], TOGETHER):
        header = headers[group[0]]
        decoder = model if headers[group[0]].by_tables else model.bare
        contents = [files[index] for index in group]
        decoded = read_levels(
            decoder, contents, header.size, levels, len(model.symbols), header.length
        )
        images.update(zip(group, decoded, strict=True))
    return [images[index] for index in range(len(files))]


def read_levels(
    model: EntropyModel,
    contents: Sequence[bytes],
    size: Grid,
    levels: int | None,
    stored: int,
    header: int | None = None,
) -> list[ImageCodes]:
    """Return the codes of images of one size, as far as they are whole.

    Args:
        contents: The bytes of each image: a header, then levels.
        levels: Number of levels to read at most (default: all).
        stored: Number of levels that `contents` hold at most.
        header: Bytes of the header. None for a record of an archive, which has no header and no
            check bytes, and whose levels may be empty.
    """
    layout = model.layout(size)
    content = np.frombuffer(b"".join(contents), np.uint8)
    header_bytes, check_bytes = (0, 0) if header is None else (header, 1)
    sizes = np.array([len(file) for file in contents])
    stops = np.cumsum(sizes)
    offsets = stops - sizes + header_bytes
    num_levels = min(levels or stored, stored)
    codes = np.zeros((len(contents), layout.begins[num_levels]), np.int32)
    lengths = [[header_bytes] for _ in contents]
    faults = [""] * len(contents)
    for level in range(num_levels):
        admitted = sizes >= count_required_bytes(layout, level, model.network(level))
        limits = np.where(admitted, stops, offsets - 1)  # a negative length: nothing is decoded
        ends = decode_level(content, offsets, limits, codes, layout, level, model.network(level))
        for index, end in enumerate(ends.tolist()):
            if faults[index] or (level and check_bytes and offsets[index] == stops[index]):
                continue  # a file may end after any level
            begin = offsets[index] - (
                0 if level else header_bytes
            )  # the first check includes the header
            if not admitted[index]:
                faults[index] = (
                    f"level {level + 1} has more codes than {counted(len(contents[index]), 'byte')}"
                    " admit"
                )
            elif end == NOT_WHOLE or end + check_bytes > stops[index]:
                faults[index] = f"level {level + 1} is cut short or damaged"
            elif check_bytes and crc8(content[begin : end + check_bytes]):
                faults[index] = f"level {level + 1} is damaged"
            else:
                lengths[index].append(int(end + check_bytes - offsets[index]))
                offsets[index] = end + check_bytes
    for index, rest in enumerate((stops - offsets).tolist()):
        if rest and not faults[index] and len(lengths[index]) > stored:
            faults[index] = f"{counted(rest, 'byte')} more than its levels take"
    return [
        ImageCodes(size, layout.split(row, len(row_lengths) - 1), tuple(row_lengths), fault)
        for row, row_lengths, fault in zip(codes, lengths, faults, strict=True)
    ]
