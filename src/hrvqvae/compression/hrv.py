"""The file of one image, .hrv: a header, then a stream and a check byte per level, coarse first
(docs/format.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES, MOST_PIXELS, EntropyModel
from hrvqvae.compression.levels import (
    NOT_WHOLE,
    Layout,
    count_required_bytes,
    decode_level,
    encode_level,
)
from hrvqvae.config import Grid
from hrvqvae.utils.errors import DamagedFileError
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrv"
BATCH_PIXELS = 1 << 22  # pixels of the images that are decoded at once
# first byte of version 1, and the flags that are added
_FIRST_BYTE = 0xD4
_SQUARE = 2
_BY_TABLES = 1
# x^8 + x^4 + x^3 + x^2 + 1, primitive: detects two flipped bits less than 255 apart
_POLYNOMIAL = 0x11D
_VARINT_BYTES = 4  # at most
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
    _CRC_TABLE = [(value << 1) ^ (_POLYNOMIAL if value & 0x80 else 0) for value in _CRC_TABLE]


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


def read_varint(content: bytes, offset: int) -> tuple[int, int]:
    """Return the number at an offset, and the next offset. Raises DamagedFileError unless `varint`
    wrote the number.
    """
    value = 0
    for count, byte in enumerate(content[offset : offset + _VARINT_BYTES]):
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
    # 0xD4 to 0xDF: the first bytes of versions 1 to 3
    if not content or not _FIRST_BYTE <= content[0] <= 0xDF:
        raise DamagedFileError(f"{name} is not a file of codes (.hrv), or it is damaged")
    if content[0] > _FIRST_BYTE + 3:
        version = 1 + (content[0] - _FIRST_BYTE) // 4
        raise DamagedFileError(
            f"{name} is of version {version}, later than this program reads; or the file is damaged"
        )
    is_square = content[0] & _SQUARE
    try:
        height, offset = read_varint(content, 1 + FINGERPRINT_BYTES)
        width = height
        if not is_square:
            width, offset = read_varint(content, offset)
            if width == height:
                raise DamagedFileError("its width is stored, although it equals the height")
    except DamagedFileError as error:
        raise DamagedFileError(f"{name} is damaged: {error}") from error
    size = (height + 1, width + 1)
    if size[0] * size[1] > max_pixels:
        raise DamagedFileError(
            f"{name} says {size[0]}x{size[1]} pixels; at most {max_pixels} are admitted"
        )
    fingerprint = bytes(content[1 : 1 + FINGERPRINT_BYTES])
    return Header(size, bool(content[0] & _BY_TABLES), fingerprint, offset)


def _require_model(model: EntropyModel, header: Header, name: str) -> None:
    """Raise DamagedFileError if another model or entropy model made a file."""
    # Damage to a header can't be told from another model: the header's check byte follows level 1,
    # and only the right model finds where level 1 ends.
    if header.by_tables and not model.networks:
        raise DamagedFileError(
            f"{name} was made with an entropy model, and {model.name} has none: put its tables.hrvt"
            " beside its weights; or the file is damaged"
        )
    expected = (model if header.by_tables else model.bare).fingerprint
    if header.fingerprint != expected:
        subject = "entropy model is" if header.by_tables else "weights are"
        raise DamagedFileError(
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
    files = _encode_files(model, codes, size, layout, levels)
    if not model.networks:
        return files
    bare_files = _encode_files(model.bare, codes, size, layout, levels)
    required = max(
        count_required_bytes(layout, level, model.network(level)) for level in range(levels)
    )
    return [
        file if required <= len(file) <= len(bare_file) else bare_file
        for file, bare_file in zip(files, bare_files, strict=True)
    ]


def _encode_files(
    model: EntropyModel, codes: CodeArray, size: Grid, layout: Layout, levels: int
) -> list[bytes]:
    """Return the content of each image's file, with networks if the model has any."""
    height, width = size
    first_byte = _FIRST_BYTE + _SQUARE * (height == width) + _BY_TABLES * bool(model.networks)
    header = bytes([first_byte]) + model.fingerprint + varint(height - 1)
    if height != width:
        header += varint(width - 1)
    files = [b""] * len(codes)
    for level in range(levels):
        streams = encode_level(codes, layout, level, model.network(level))
        for index, stream in enumerate(streams):
            checked = stream if level else header + stream
            files[index] += checked + bytes([crc8(checked)])
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

    Raises DamagedFileError if a header is damaged, of another model, kind of file or version, or of
    too large an image.
    """
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    headers = [read_header(file, name, max_pixels) for file, name in zip(files, names, strict=True)]
    for header, name in zip(headers, names, strict=True):
        _require_model(model, header, name)
    images: dict[int, ImageCodes] = {}
    kinds = [(*header.size, header.by_tables) for header in headers]
    for group in group_by_size(kinds, BATCH_PIXELS):
        header = headers[group[0]]
        decoder = model if header.by_tables else model.bare
        decoded = read_levels(decoder, [files[index] for index in group], header, levels)
        images.update(zip(group, decoded, strict=True))
    return [images[index] for index in range(len(files))]


def read_levels(
    model: EntropyModel, files: Sequence[bytes], header: Header, levels: int | None
) -> list[ImageCodes]:
    """Return the codes of files with headers of equal size and length, as far as they are whole."""
    layout = model.layout(header.size)
    stored = len(model.symbols)
    num_levels = min(levels or stored, stored)
    codes = np.zeros((len(files), layout.begins[num_levels]), np.int32)
    lengths = [[header.length] for _ in files]
    faults = [""] * len(files)

    # offsets in the content of all files; the check of the first level includes the header
    content = np.frombuffer(b"".join(files), np.uint8)
    sizes = np.array([len(file) for file in files])
    stops = np.cumsum(sizes)
    check_starts = stops - sizes
    starts = check_starts + header.length
    for level in range(num_levels):
        network = model.network(level)
        admitted = sizes >= count_required_bytes(layout, level, network)
        limits = np.where(admitted, stops, starts - 1)  # a negative length: nothing is decoded
        ends = decode_level(content, starts, limits, codes, layout, level, network)
        for index, end in enumerate(ends.tolist()):
            if faults[index] or (level and starts[index] == stops[index]):
                continue  # a file may end after any level
            name = f"level {level + 1}"
            if not admitted[index]:
                file_bytes = counted(len(files[index]), "byte")
                faults[index] = f"{name} has more codes than {file_bytes} admit"
            elif end == NOT_WHOLE or end == stops[index]:  # or without a check byte
                faults[index] = f"{name} is cut short or damaged"
            elif crc8(content[check_starts[index] : end + 1]):
                faults[index] = f"{name} is damaged"
            else:
                lengths[index].append(int(end + 1 - starts[index]))
                starts[index] = end + 1
                check_starts[index] = end + 1

    images = []
    for row, row_lengths, fault, rest in zip(codes, lengths, faults, stops - starts, strict=True):
        num_whole = len(row_lengths) - 1
        if rest and num_whole == stored:
            fault = f"{counted(int(rest), 'byte')} more than its levels take"
        image_codes = layout.split(row, num_whole)
        images.append(ImageCodes(header.size, image_codes, tuple(row_lengths), fault))
    return images
