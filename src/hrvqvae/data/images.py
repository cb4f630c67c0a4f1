"""Read images of files and of Python objects, and write PNG files.

Pixels are (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.outputs import replace_file

with suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()
Image.init()

# Pillow also opens EPS files, which run Ghostscript, and files whose pixels it can't decode.
_RASTER = "PNG JPEG WEBP GIF TIFF BMP DIB PPM JPEG2000 AVIF HEIF ICO ICNS PCX PSD QOI SGI DDS TGA"
FORMATS = tuple(name for name in _RASTER.split() if name in Image.OPEN)
SUFFIXES = tuple(end for end, name in Image.registered_extensions().items() if name in FORMATS)
MAX_PIXELS = 64_000_000
_MOST_OPTIMIZED = 1_000_000  # pixels of a PNG that is made as small as possible
Pixels = NDArray[np.uint8]
OpenImage = Callable[[], Image.Image]
"""Opens an image without decoding its pixels; may raise any error of the decoder or the file
system.
"""
open_image_file = partial(Image.open, formats=FORMATS)


class BrokenImageError(InputError):
    """An image can't be decoded or is too large; the message names it."""


def decode_image(
    image: Path | OpenImage,
    channels: int | None,
    max_pixels: int = MAX_PIXELS,
    size: Grid | None = None,
    position: tuple[float, float] = (0.5, 0.5),
    name: str = "",
) -> Pixels:
    """Decode an image and return its pixels, upright and in sRGB, 8 bits per channel.

    The first frame of an animation is taken. Transparent parts become white. Colours are converted
    from the image's colour profile to sRGB, and to grey by Pillow's mode "L". A grey image keeps
    its values.

    Args:
        image: The path of a file, or a function that opens an image, which is closed afterwards.
        channels: 1 (greyscale), 3 (RGB), or None: 1 for a greyscale image, else 3.
        max_pixels: A larger image is refused.
        size: Height and width of the result: the largest part of this shape is cut out and resized
            (default: the whole image in its own size).
        position: Where the part is cut out: (0, 0) is left and top, (1, 1) is right and bottom.
        name: Name of the image in messages (default: its path).

    Raises BrokenImageError if the image can't be read, or is larger than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _load(image, channels, max_pixels)
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise any error
        raise BrokenImageError(f"{name or image} is not a readable image ({error})") from error
    if size is not None:
        picture = _crop(picture, size, position)
    array = np.array(picture)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _crop(image: Image.Image, size: Grid, position: tuple[float, float]) -> Image.Image:
    """Cut out the largest part of a shape, and resize it."""
    height, width = size
    columns = min(image.width, max(1, image.height * width // height))
    rows = min(image.height, max(1, image.width * height // width))
    left = round(position[0] * (image.width - columns))
    top = round(position[1] * (image.height - rows))
    box = (left, top, left + columns, top + rows)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _load(source: Path | OpenImage, channels: int | None, max_pixels: int) -> Image.Image:
    """Return the first frame of an image, upright, in mode L (1 channel) or RGB (3)."""
    with open_image_file(source) if isinstance(source, Path) else source() as opened:
        if opened.width * opened.height > max_pixels:
            raise InputError(
                f"it has {opened.width}x{opened.height} pixels; at most {max_pixels} are admitted:"
                " make the image smaller"
            )
        if getattr(opened, "tag_v2", {}).get(254) == 1:  # TIFF's tag NewSubfileType
            raise InputError("its first picture is a thumbnail: convert the raw file to PNG")
        opened.load()
        try:
            image: Image.Image = ImageOps.exif_transpose(opened)
        except Exception:  # Pillow raises any error for a damaged block of EXIF
            image = opened.copy()

    # 16 bits; Pillow opens PGM files of 16 bits in mode I
    if image.mode.startswith("I;16") or (image.mode, opened.format) == ("I", "PPM"):
        values = np.asarray(image) / 257
        image = Image.fromarray(np.rint(values).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"its mode is {image.mode}; images have 8 or 16 bits per channel")
    is_grey = image.mode in ("1", "L", "LA")
    if not is_grey and image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError):  # a damaged profile is ignored
            image = _convert_to_srgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if not is_grey:
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 or (channels is None and is_grey) else "RGB")


def _convert_to_srgb(image: Image.Image) -> Image.Image:
    """Return an image in the colours of sRGB. Raises the errors of a damaged profile."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return image
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != "CMYK":
        image = image.convert(mode)
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode=mode)
    assert converted is not None
    return converted


def open_any(image: Any) -> Image.Image:
    """Open what Python code gives as an image.

    That is a PIL image, a path, encoded bytes, a mapping with "bytes" or "path" as of Hugging Face,
    a tensor (C, Y, X), or an array (Y, X) or (Y, X, C). C is 1, 3 or 4 (with transparency). Tensors
    and arrays are uint8, or float in [0, 1]. Raises InputError for other objects, and any error of
    the decoder.
    """
    if isinstance(image, Image.Image):
        return image.copy()  # which may be closed
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | os.PathLike):
        return open_image_file(image)
    if isinstance(image, bytes):
        return open_image_file(io.BytesIO(image))
    planes = _find_planes(image)
    if planes.dtype.kind == "f" and not (planes.min() >= 0 and planes.max() <= 1):
        raise InputError(
            f"its values are {planes.min():g} to {planes.max():g}; float images are in [0, 1]"
        )
    return to_pil(planes)


def _find_planes(image: Any) -> NDArray[Any]:
    """Return a tensor (C, Y, X), or an array (Y, X) or (Y, X, C), as an array (C, Y, X), uint8 or
    float32. Raises InputError.
    """
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        planes = (image.float() if image.is_floating_point() else image).numpy()
    elif hasattr(image, "__array__"):
        planes = np.asarray(image)
        planes = planes[None] if planes.ndim == 2 else np.moveaxis(planes, -1, 0)
    else:
        kind = type(image).__name__
        raise InputError(f"it is a {kind}; images are paths, bytes, PIL images, arrays or tensors")
    if planes.ndim != 3 or len(planes) not in (1, 3, 4) or 0 in planes.shape:
        raise InputError(
            f"its shape is {tuple(image.shape)}; expected tensors (C, Y, X) or arrays (Y, X, C),"
            " C = 1, 3 or 4"
        )
    if planes.dtype.kind == "f":
        return planes.astype(np.float32)
    if planes.dtype != np.uint8:
        raise InputError(f"its type is {planes.dtype}; images are uint8, or float in [0, 1]")
    return planes


def list_images(images: Any, channels: int, max_pixels: int = MAX_PIXELS) -> list[Tensor]:
    """Return what Python code gives as images as tensors (C, Y, X), of any sizes.

    Tensors are returned as they are. Arrays of floats become float32 tensors. Other images are
    decoded, and converted to `channels` channels.

    Args:
        images: One image as `open_any` takes it, a sequence of images, a tensor (B, C, Y, X), or
            an array (B, Y, X, C).
        channels: 1 (greyscale) or 3 (RGB).
        max_pixels: A larger image is refused.

    Raises InputError.
    """
    if isinstance(images, Tensor | np.ndarray):
        is_single = images.ndim in (2, 3)
    else:
        is_single = not isinstance(images, Sequence) or isinstance(images, str | bytes)

    tensors = []
    for number, image in enumerate([images] if is_single else images, start=1):
        if isinstance(image, Tensor):
            tensors.append(image)
        elif isinstance(image, np.ndarray) and image.dtype.kind == "f":
            tensors.append(torch.from_numpy(_find_planes(image)))
        else:
            name = str(image) if isinstance(image, str | Path) else f"image {number}"
            pixels = decode_image(partial(open_any, image), channels, max_pixels, name=name)
            tensors.append(torch.from_numpy(pixels))
    return tensors


def as_images(images: Any, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return what Python code gives as images as a batch (B, C, Y, X); see `list_images`.

    A tensor (B, C, Y, X) is returned unchecked. Raises InputError as `list_images`, or if the
    images have several sizes or types.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        return images
    tensors = list_images(images, channels, max_pixels)
    kinds = list({(tuple(image.shape), image.dtype) for image in tensors})
    if len(kinds) != 1:
        raise InputError(f"the images of a batch have one size and type; here are {kinds}")
    return torch.stack(tensors)


def read_image(
    path: str | Path, channels: int | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Return the pixels (C, Y, X) uint8 of an image file.

    Args:
        path: The image file.
        channels: 1 (greyscale), 3 (RGB), or None: 1 for a greyscale image, else 3.
        max_pixels: A larger image is refused.

    Raises BrokenImageError if there is no such file, or it can't be decoded or is too large.
    """
    return torch.from_numpy(decode_image(Path(path), channels, max_pixels))


def to_pil(image: Any) -> Image.Image:
    """Convert an array or a tensor (C, Y, X), uint8 or float in [0, 1], to a PIL image.

    C is 1 (greyscale), 3 (RGB) or 4 (RGBA). Raises InputError for another shape or type.
    """
    pixels = _find_planes(torch.as_tensor(image)).transpose(1, 2, 0)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def write_image(image: Image.Image, path: Path) -> None:
    """Write a PNG file and make its folder; replace an existing file.

    A file of at most a megapixel is made as small as possible, in several times the time. The file
    is not flushed to disk, which saves 7 ms. Raises InputError if the path does not end in .png or
    can't be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} must end in .png")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, flush=False) as temporary:
            is_small = image.width * image.height <= _MOST_OPTIMIZED
            image.save(temporary, "PNG", optimize=is_small)
