"""Sheets of images, in rows with captions.

Shapes: an image is (C, Y, X) uint8 or float in [0, 1]; a row may hold images of different sizes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from hrvqvae.data.images import to_pil
from hrvqvae.utils.grouping import slices

_GAP = 4
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


class SheetRow(NamedTuple):
    """A row of a sheet."""

    caption: str
    images: Sequence[Tensor]


def draw(rows: Sequence[SheetRow], zoom: int | None = None) -> Image.Image:
    """Return a picture of the rows, each below its caption. Captions take no space if all are
    empty.

    Each pixel is repeated `zoom` times; None enlarges the largest side to about 64 pixels.
    """
    # A column is as wide as its widest picture, a row as high as its highest.
    pictures = [[to_pil(image) for image in row.images] for row in rows]
    largest = max(max(picture.size) for row in pictures for picture in row)
    factor = zoom or max(1, round(64 / largest))
    columns = max(map(len, pictures))
    widths = [
        max(row[i].width for row in pictures if i < len(row)) * factor for i in range(columns)
    ]
    heights = [max(picture.height for picture in row) * factor for row in pictures]

    # the size of the sheet
    font = ImageFont.load_default(size=13)
    caption_height = 20 if any(row.caption for row in rows) else 0
    width = max(
        sum(widths) + _GAP * (columns + 1),
        *(int(font.getlength(row.caption)) + 2 * _GAP for row in rows),
    )
    height = sum(heights) + len(rows) * (caption_height + _GAP) + _GAP

    # captions and pictures, row by row
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for row, images, row_height in zip(rows, pictures, heights, strict=True):
        pen.text((_GAP, top), row.caption, fill=_INK, font=font)
        left = _GAP
        for picture, column_width in zip(images, widths, strict=False):
            enlarged = ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + caption_height))
            left += column_width + _GAP
        top += caption_height + row_height + _GAP
    return sheet


def draw_grid(images: Sequence[Tensor]) -> Image.Image:
    """Return a picture of images of one size in a nearly square grid, without captions."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = [SheetRow("", row) for row in slices(images, columns)]
    return draw(rows, zoom=max(1, round(64 / min(images[0].shape[-2:]))))
