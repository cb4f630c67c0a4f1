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
_CAPTION_HEIGHT = 20
_SHOWN_SIZE = 64  # approximate side of the largest image on a sheet, in pixels
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


class SheetRow(NamedTuple):
    """A row of a sheet."""

    caption: str
    images: Sequence[Tensor]


def draw(rows: Sequence[SheetRow], zoom: int = 0) -> Image.Image:
    """Return a picture of the rows, each below its caption. Captions take no space if all are
    empty.

    All images are enlarged by the same whole factor, `zoom`, or one that suits their size.
    """
    pictures = [[to_pil(image) for image in row.images] for row in rows]

    # all cells have the size of the largest picture
    sizes = [picture.size for row in pictures for picture in row]
    largest = max(max(size) for size in sizes)
    factor = zoom or max(1, round(_SHOWN_SIZE / largest))
    cell_width = max(width for width, _ in sizes) * factor + _GAP
    cell_height = max(height for _, height in sizes) * factor + _GAP

    # the size of the sheet
    font = ImageFont.load_default(size=13)
    caption_widths = [int(font.getlength(row.caption)) + 2 * _GAP for row in rows]
    caption_height = _CAPTION_HEIGHT if any(row.caption for row in rows) else 0
    columns = max(map(len, pictures))
    width = max(columns * cell_width + _GAP, *caption_widths)
    row_height = caption_height + cell_height

    # captions and pictures, row by row
    sheet = Image.new("RGB", (width, len(rows) * row_height + _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (row, images) in enumerate(zip(rows, pictures, strict=True)):
        top = _GAP + index * row_height
        pen.text((_GAP, top), row.caption, fill=_INK, font=font)
        for column, picture in enumerate(images):
            enlarged = ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (_GAP + column * cell_width, top + caption_height))
    return sheet


def draw_grid(images: Sequence[Tensor]) -> Image.Image:
    """Return a picture of images in a nearly square grid, without captions."""
    columns = math.ceil(math.sqrt(len(images)))
    return draw([SheetRow("", row) for row in slices(images, columns)])
