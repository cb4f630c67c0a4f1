"""ThumbHash (Evan Wallace, github.com/evanw/thumbhash): a blurred preview in some 20 bytes, for opaque images.

A few low frequencies of the cosine transform of lightness and two colour differences, 4 bits each. The Python packages
of it either need an old Pillow or decode wrongly, so it is written here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from benchmarks.files.formats import as_image

Floats = NDArray[np.float64]
_LONGEST, _MOST, _SATURATION = 100, 7, 1.25  # pixels; frequencies along the longer side; what its decoder multiplies by


def _round(value: float) -> int:
    """Halves go up, as in JavaScript."""
    return math.floor(value + 0.5)


def _cosines(count: int, length: int) -> Floats:
    """(count, length): the waves of each frequency."""
    return np.cos(np.pi / length * np.outer(np.arange(count), np.arange(length) + 0.5))


def _triangle(across: int, down: int) -> list[tuple[int, int]]:
    """(down, across) frequencies that are kept, in order, the constant first."""
    return [(y, x) for y in range(down) for x in range(across) if x * down < across * (down - y)]


def _analysed(channel: Floats, across: int, down: int) -> tuple[float, Floats, float]:
    """(constant, the other frequencies as 0 to 1, their largest magnitude)."""
    height, width = channel.shape
    every = _cosines(down, height) @ channel @ _cosines(across, width).T / (height * width)
    constant, *others = [float(every[place]) for place in _triangle(across, down)]
    largest = max(map(abs, others))
    return constant, 0.5 + 0.5 / (largest or 1.0) * np.array(others), largest


def thumbhash(pixels: Images) -> bytes:
    """The hash of an opaque image (C, Y, X) of at most 100x100 pixels."""
    red, green, blue = np.broadcast_to(pixels, (3, *pixels.shape[1:])).astype(np.float64) / 255
    height, width = red.shape
    across, down = (max(1, _round(_MOST * side / max(width, height))) for side in (width, height))
    light, light_parts, light_scale = _analysed((red + green + blue) / 3, max(3, across), max(3, down))
    yellow, yellow_parts, yellow_scale = _analysed((red + green) / 2 - blue, 3, 3)
    ruddy, ruddy_parts, ruddy_scale = _analysed(red - green, 3, 3)
    head = _round(63 * light) | _round(31.5 + 31.5 * yellow) << 6 | _round(31.5 + 31.5 * ruddy) << 12
    head |= _round(31 * light_scale) << 18
    wide = int(width > height)
    more = (down if wide else across) | _round(63 * yellow_scale) << 3 | _round(63 * ruddy_scale) << 9 | wide << 15
    nibbles = [_round(15 * part) for part in np.concatenate([light_parts, yellow_parts, ruddy_parts])]
    nibbles += [0] * (len(nibbles) % 2)
    packed = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return head.to_bytes(3, "little") + more.to_bytes(2, "little") + packed


def preview(file: bytes, shape: Shape) -> Images:
    """The image (C, Y, X) of a hash, its waves drawn at the size that is asked for."""
    channels, height, width = shape
    head, more = int.from_bytes(file[:3], "little"), int.from_bytes(file[3:5], "little")
    short, wide = max(3, more & 7), more >> 15
    across, down = (_MOST, short) if wide else (short, _MOST)
    nibbles = iter(np.array([half for byte in file[5:] for half in (byte & 15, byte >> 4)]) / 7.5 - 1)

    def drawn(constant: float, across: int, down: int, scale: float) -> Floats:
        weights = np.zeros((down, across))
        for place in _triangle(across, down)[1:]:
            weights[place] = 2 * scale * next(nibbles)
        weights[0, 0] = constant
        return _cosines(down, height).T @ weights @ _cosines(across, width)

    light = drawn((head & 63) / 63, across, down, (head >> 18 & 31) / 31)
    yellow = drawn((head >> 6 & 63) / 31.5 - 1, 3, 3, (more >> 3 & 63) / 63 * _SATURATION)
    ruddy = drawn((head >> 12 & 63) / 31.5 - 1, 3, 3, (more >> 9 & 63) / 63 * _SATURATION)
    blue = light - 2 / 3 * yellow
    red = (3 * light - blue + ruddy) / 2
    colours = np.floor(np.stack([red, red - ruddy, blue]).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return colours if channels == 3 else np.asarray(Image.fromarray(colours.transpose(1, 2, 0)).convert("L"))[None]


class ThumbHash(FileCodec):
    """ThumbHash of images reduced to 100 pixels at most."""

    counts = (Count("ThumbHash"),)
    settings = ("standard",)

    def encode(self, images: Images, setting: str) -> list[bytes]:
        files = []
        for pixels in images:
            image = as_image(pixels).convert("RGB")
            image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
            files.append(thumbhash(np.asarray(image).transpose(2, 0, 1)))
        return files

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        return np.stack([preview(file, shape) for file in files])
