"""Read PNG, JPEG and WebP files, and write PNG files.

Pixels are (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.outputs import replace_file
from hrvqvae.utils.progress import note

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 64_000_000
Pixels = NDArray[np.uint8]
OpenImage = Callable[[], Image.Image]
"""Opens an image without decoding its pixels; may raise any error of the decoder or the file
system.
"""
open_image_file = partial(Image.open, formats=FORMATS)


class BrokenImageError(InputError):
    """An image can't be decoded or is too large; the message names it."""


class Decoded(NamedTuple):
    """A decoded image, and the losses of its conversion."""

    pixels: Pixels
    lost: str = ""  # such as "colour to greyscale"; empty if nothing was lost


def remove_image_suffix(name: str) -> str:
    """Return the name of an image without .png, .jpg, .jpeg or .webp; return any other name
    unchanged.
    """
    return name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name


def decode_image(
    image: Path | OpenImage,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    size: int | None = None,
    position: tuple[float, float] = (0.5, 0.5),
    name: str = "",
) -> Decoded:
    """Decode an image, turn it upright, and convert it to 8 bits and `channels` channels.

    Colours become Pillow's luminance ("L") for 1 channel. Transparent parts become white, CMYK
    becomes RGB. An animation is reduced to its first frame. `Decoded.lost` lists the losses.

    Args:
        size: crop the largest square and resize it to `size` pixels per side; None keeps the
            image's size.
        position: position of the square, (x, y) in [0, 1]^2: (0.5, 0.5) is the centre.
        name: name of the image in messages (default: its path).

    Raises BrokenImageError if the image is no readable PNG, JPEG or WebP, or is larger than
    `max_pixels`.
    """
    name = name or str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture, lost = _load(image, name, channels, max_pixels)
    except (BrokenImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such image") from error
    except IsADirectoryError as error:
        raise InputError(
            f"{name} is a folder; name the images in it, such as {name}/*.png"
        ) from error
    except InputError as error:  # of an item of a data set
        raise BrokenImageError(f"{name} is not an image ({error})") from error
    except Exception as error:  # decoders of damaged files raise any error
        raise BrokenImageError(
            f"{name} is not a readable PNG, JPEG or WebP image ({error})"
        ) from error
    if size is not None:
        side = min(picture.size)
        left, top = (
            round(share * (length - side))
            for share, length in zip(position, picture.size, strict=True)
        )
        picture = picture.resize(
            (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
    array = np.array(picture, np.uint8)
    return Decoded(
        array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)),
        ", ".join(lost),
    )


def read_image(path: Path, channels: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the pixels (C, Y, X) uint8 of an image file. Raises as `decode_image`."""
    return decode_image(path, channels, max_pixels).pixels


def _load(
    source: Path | OpenImage, name: str, channels: int, max_pixels: int
) -> tuple[Image.Image, list[str]]:
    """Return the first frame of an image, upright, in mode L (1 channel) or RGB (3), and what was
    lost.
    """
    with open_image_file(source) if isinstance(source, Path) else source() as opened:
        if opened.width * opened.height > max_pixels:
            size = f"{opened.width}x{opened.height} pixels"
            raise BrokenImageError(f"{name} has {size}; data.max_pixels admits {max_pixels}")
        lost = ["further frames"] if getattr(opened, "is_animated", False) else []
        if any("16" in str(tile[3]) for tile in getattr(opened, "tile", ())):
            lost.append("16 bits to 8")
        opened.load()
        try:
            image: Image.Image = ImageOps.exif_transpose(opened)
        except Exception:  # Pillow raises any error for a damaged block of EXIF
            image = opened.copy()
            lost.append("orientation")
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32)
        transparent = image.info.get("transparency")
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(values != transparent))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            lost.append("transparency to white")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "CMYK":
        lost.append("CMYK to RGB")
    if channels == 1 and image.mode not in ("L", "1"):
        image = image.convert("RGB")
        pixels = np.asarray(image)
        if (pixels != pixels[..., :1]).any():
            lost.append("colour to greyscale")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode), lost  # `convert` always copies


def note_conversions(lost: Mapping[Path, str] | Mapping[str, str]) -> None:
    """Log a notice about the images that lost something; `lost` has the loss of each image."""
    losing = {name: loss for name, loss in lost.items() if loss}
    if losing:
        kinds = "; ".join(sorted(set(losing.values())))
        note(
            f"images converted: {len(losing)} of {len(lost)} ({kinds}), the first is"
            f" {next(iter(losing))}"
        )


def to_pil(image: Any) -> Image.Image:
    """Convert an array or tensor (C, Y, X), uint8 or float in [0, 1], to a greyscale or RGB
    image.
    """
    pixels = np.asarray(image.cpu() if hasattr(image, "cpu") else image).transpose(1, 2, 0)
    if pixels.dtype != np.uint8:  # by rows, to save memory
        pixels = np.stack(
            [np.rint(row.astype(np.float32).clip(0, 1) * 255).astype(np.uint8) for row in pixels]
        )
    return Image.fromarray(
        pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
    )


def write_image(image: Image.Image, path: Path, *, optimize: bool = True) -> None:
    """Write a PNG file and make its folder; replace an existing file.

    `optimize` makes the file smaller, in several times the time. The file is not flushed to disk,
    which saves 7 ms. Raises InputError if the path does not end in .png or can't be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} must end in .png")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, flush=False) as temporary:
            image.save(temporary, "PNG", optimize=optimize)
