"""What the page admits: the size of an upload, of an image and of a request. Images are decoded here alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.data.images import FORMATS, decode_image
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True)
class Limits:
    """The most that the page admits.

    Attributes:
        upload_bytes: of a file that is uploaded, and of any other request.
        pixels: of an image, by its header; a larger one is not decoded.
        coded_pixels: of an image that a model gets; a larger one is reduced to it.
        images: that are drawn at once.
    """

    upload_bytes: int = 16 << 20
    pixels: int = 1 << 24
    coded_pixels: int = 1 << 18
    images: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"the limit {name} is {value}; it must be at least 1")

    def check_count(self, count: int) -> None:
        """Raises InputError where so many images may not be drawn at once."""
        if not 1 <= count <= self.images:
            raise InputError(f"{count} images are asked for; 1 to {self.images} can be drawn at once")


@dataclass(frozen=True)
class Picture:
    """An image that was taken in.

    Attributes:
        own: (C, Y, X) uint8, at its own size or as large as is admitted.
        square: (C, size, size) uint8, cropped and resized to what the model was trained on.
        note: what was changed of it, in words; may be empty.
    """

    own: Tensor
    square: Tensor
    note: str


def check_file(path: Path, limits: Limits) -> None:
    """Look at a file's size and header, and decode nothing.

    Raises:
        InputError: it is too large, has too many pixels, or is no PNG, JPEG or WebP.
    """
    length = path.stat().st_size
    if length > limits.upload_bytes:
        raise InputError(f"{path.name} has {length:,} bytes; at most {limits.upload_bytes:,} are admitted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                pixels = opened.width * opened.height
    except Image.DecompressionBombError:
        pixels = limits.pixels + 1
    except Exception as error:  # Pillow raises whatever it runs into
        raise InputError(f"{path.name} is not a PNG, JPEG or WebP image") from error
    if pixels > limits.pixels:
        raise InputError(f"{path.name} has too many pixels; at most {limits.pixels:,} are admitted: make it smaller")


def take(path: Path, channels: int, size: int, limits: Limits) -> Picture:
    """Read an image file, after its header has been looked at.

    Args:
        channels: of the model's images; others are converted.
        size: of the square images that the model was trained on.

    Raises:
        InputError: as `check_file`, or the file can't be decoded.
    """
    check_file(path, limits)
    try:
        decoded = decode_image(path, channels, limits.pixels)
        square = torch.from_numpy(decode_image(path, channels, limits.pixels, size).pixels)
    except InputError as error:
        raise InputError(f"{path.name} can't be decoded: it is damaged or cut short") from error
    own, reduced = _reduced(torch.from_numpy(decoded.pixels), limits.coded_pixels)
    return Picture(own, square, "; ".join(note for note in (decoded.lost, reduced) if note))


def _reduced(image: Tensor, pixels: int) -> tuple[Tensor, str]:
    """(C, Y, X) uint8 with at most so many pixels, and what was done in words."""
    height, width = image.shape[-2:]
    if height * width <= pixels:
        return image, ""
    share = (pixels / (height * width)) ** 0.5
    rows = min(pixels, max(1, int(height * share)))
    size = (rows, max(1, min(int(width * share), pixels // rows)))
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8), f"{width}x{height} pixels reduced to {size[1]}x{size[0]}"
