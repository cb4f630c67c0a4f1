"""Sheets of images: rows with a caption each, written as PNG.

Shapes: an image is (C, Y, X) uint8 or float in [0, 1]; a row may hold images of different sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic

_GAP, _BACKGROUND, _INK = 4, (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet: its caption and its images."""

    caption: str
    images: Sequence[Tensor]


def to_pil(image: Tensor) -> Image.Image:
    """(C, Y, X), uint8 or float in [0, 1], C = 1 or 3 -> an RGB image."""
    if image.is_floating_point():
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def draw(rows: Sequence[SheetRow], zoom: int | None = None) -> Image.Image:
    """The rows below each other, each under its caption.

    `zoom` repeats pixels, so that small images can be seen; None brings the largest side to about 64 pixels or more.
    """
    pictures = [[to_pil(image) for image in row.images] for row in rows]
    largest = max(max(picture.size) for row in pictures for picture in row)
    factor = zoom or max(1, round(64 / largest))
    columns = max(len(row) for row in pictures)
    widths = [max((row[i].width for row in pictures if i < len(row)), default=0) * factor for i in range(columns)]
    heights = [max(picture.height for picture in row) * factor for row in pictures]
    font = ImageFont.load_default(size=13)
    caption = 20
    width = max(sum(widths) + _GAP * (columns + 1), *(int(font.getlength(row.caption)) + 2 * _GAP for row in rows))
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * (caption + _GAP) + _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for row, images, height in zip(rows, pictures, heights, strict=True):
        pen.text((_GAP, top), row.caption, fill=_INK, font=font)
        left = _GAP
        for picture, column in zip(images, widths, strict=False):
            size = (picture.width * factor, picture.height * factor)
            sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top + caption))
            left += column + _GAP
        top += caption + height + _GAP
    return sheet


def grid(images: Sequence[Tensor], columns: int | None = None) -> Image.Image:
    """Images of one size beside and below each other, without captions; as square as can be by default."""
    across = columns or math.ceil(math.sqrt(len(images)))
    pictures = [to_pil(image) for image in images]
    factor = max(1, round(64 / min(pictures[0].size)))
    width, height = (side * factor + _GAP for side in pictures[0].size)
    sheet = Image.new("RGB", (width * across + _GAP, height * -(-len(pictures) // across) + _GAP), _BACKGROUND)
    for number, picture in enumerate(pictures):
        place = (_GAP + width * (number % across), _GAP + height * (number // across))
        sheet.paste(picture.resize((width - _GAP, height - _GAP), Image.Resampling.NEAREST), place)
    return sheet


def check_name(path: Path) -> None:
    """Raises InputError where a picture can't get that name, before any work is done for it."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} must end in .png")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} can't be written: there is no folder {path.absolute().parent}")


def save(image: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        InputError: the name does not end in .png, the folder does not exist or can't be written.
    """
    check_name(path)
    stream = BytesIO()
    image.save(stream, "PNG", optimize=True)
    try:
        write_atomic(path, stream.getvalue())
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error
