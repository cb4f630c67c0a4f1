"""Read images of files and of Python objects, and write PNG files.

Pixels are (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.utils.errors import InputError, explain_write_errors, require
from hrvqvae.utils.outputs import replace_file

try:
    import pillow_heif
except ImportError:
    _HEIF = False
else:
    pillow_heif.register_heif_opener()
    _HEIF = True

FORMATS = ("PNG", "JPEG", "WEBP", *["HEIF"] * _HEIF)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", *[".heic", ".heif"] * _HEIF)
# suffixes of images that are not read
OTHER_SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff"} - {*SUFFIXES}
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


def remove_image_suffix(name: str) -> str:
    """Return a name without .png, .jpg, .jpeg or .webp; return any other name unchanged."""
    return name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name


def decode_image(
    image: Path | OpenImage,
    channels: int | None,
    max_pixels: int = MAX_PIXELS,
    size: Grid | None = None,
    position: tuple[float, float] = (0.5, 0.5),
    name: str = "",
) -> Pixels:
    """Decode an image, turn it upright, and convert it to 8 bits and `channels` channels.

    Colours of another profile are converted to sRGB, except greys. For 1 channel they become
    Pillow's luminance ("L"). Transparent parts become white, CMYK becomes RGB. An animation is
    reduced to its first frame.

    Args:
        image: path, or a function that opens an image; it is closed afterwards.
        channels: 1 (greyscale), 3 (RGB), or None: 1 for a greyscale image, else 3.
        size: height and width; the largest part of this shape is cropped and resized. None keeps
            the image's size.
        position: position of the part, (x, y) in [0, 1]^2: (0.5, 0.5) is the centre.
        name: name of the image in messages (default: its path).

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
        height, width = size
        columns = min(picture.width, max(1, picture.height * width // height))
        rows = min(picture.height, max(1, picture.width * height // width))
        left = round(position[0] * (picture.width - columns))
        top = round(position[1] * (picture.height - rows))
        box = (left, top, left + columns, top + rows)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    array = np.array(picture, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _load(source: Path | OpenImage, channels: int | None, max_pixels: int) -> Image.Image:
    """Return the first frame of an image, upright, in mode L (1 channel) or RGB (3)."""
    with open_image_file(source) if isinstance(source, Path) else source() as opened:
        if opened.width * opened.height > max_pixels:
            raise InputError(
                f"it has {opened.width}x{opened.height} pixels; at most {max_pixels} are admitted:"
                " make the image smaller"
            )
        opened.load()
        try:
            image: Image.Image = ImageOps.exif_transpose(opened)
        except Exception:  # Pillow raises any error for a damaged block of EXIF
            image = opened.copy()

    if image.mode[0] in "IF":  # I, I;16, F
        image = _round_to_8_bits(image)
    is_grey = image.mode in ("1", "L", "LA")
    if not is_grey and image.info.get("icc_profile"):
        image = _convert_to_srgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if not is_grey:
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 or (channels is None and is_grey) else "RGB")


def _round_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert an image of whole numbers or floats to mode L.

    Whole numbers have 8 bits if all are below 256, unless the mode says 16; floats may also be in
    [0, 1]. Raises InputError if values are negative, or of more than 16 bits.
    """
    values = np.asarray(image, np.float32)
    low = float(values.min())
    high = float(values.max())
    if not (low >= 0 and high <= 65_535):
        raise InputError(f"its values are {low:g} to {high:g}; images have 8 or 16 bits")
    scale = 1.0
    if image.mode.startswith("I;16") or high > 255:
        scale = 257.0
    elif image.mode == "F" and high <= 1:
        scale = 1 / 255
    return Image.fromarray(np.rint(values / scale).astype(np.uint8))


def _convert_to_srgb(image: Image.Image) -> Image.Image:
    """Return a colour image in the colours of sRGB, as its profile says; a damaged profile is
    ignored.
    """
    profile = image.info["icc_profile"]
    if image.mode != "CMYK":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    with suppress(ImageCms.PyCMSError, OSError, ValueError, ImportError):
        transform = _find_transform(profile, image.mode)
        return transform.apply(image) if transform else image
    return image


@lru_cache(maxsize=16)
def _find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of images of a mode to sRGB; None if the profile is sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(source):
        return None
    to_mode = "RGBA" if mode == "RGBA" else "RGB"
    target = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, to_mode)
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    return transform


def open_any(image: Any) -> Image.Image:
    """Open what Python code gives as an image.

    That is a PIL image, a path, encoded bytes, a mapping with "bytes" or "path" as of Hugging Face,
    an array or a tensor. A tensor is (C, Y, X). An array is (Y, X), (Y, X, C), or (C, Y, X) if its
    last dimension can't be channels. C is 1, 3 or 4 (with transparency). Both are uint8 or float in
    [0, 1]. Raises InputError for other objects, and any error of the decoder.
    """
    if isinstance(image, Image.Image):
        return image.copy()  # which may be closed
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | os.PathLike):
        return open_image_file(image)
    if isinstance(image, bytes | bytearray):
        return open_image_file(io.BytesIO(image))
    planes = _find_planes(image)
    if planes.dtype.kind == "f" and not (planes.min() >= 0 and planes.max() <= 1):
        raise InputError(
            f"its values are {planes.min():g} to {planes.max():g}; float images are in [0, 1]"
        )
    return to_pil(planes)


def _find_planes(image: Any) -> NDArray[Any]:
    """Return an array (Y, X, C) or a tensor (C, Y, X) as (C, Y, X). Raises InputError."""
    if not hasattr(image, "__array__"):
        kind = type(image).__name__
        raise InputError(f"it is a {kind}; images are paths, bytes, PIL images, arrays or tensors")
    planes = _to_array(image)
    if not isinstance(image, Tensor):
        planes = planes[..., None] if planes.ndim == 2 else planes
        if planes.ndim == 3 and planes.shape[2] in (1, 3, 4):
            planes = planes.transpose(2, 0, 1)
    _check_planes(planes)
    return planes


def _check_planes(planes: NDArray[Any]) -> None:
    """Raise InputError unless an array is (C, Y, X), uint8 or float."""
    if planes.ndim != 3 or len(planes) not in (1, 3, 4) or 0 in planes.shape:
        raise InputError(
            f"its shape is {planes.shape}; expected tensors (C, Y, X) or arrays (Y, X, C), C = 1, 3"
            " or 4"
        )
    if planes.dtype != np.uint8 and planes.dtype.kind != "f":
        raise InputError(f"its type is {planes.dtype}; images are uint8, or float in [0, 1]")


def _to_array(image: Any) -> NDArray[Any]:
    """Return a tensor or an array as an array, a float tensor as float32."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    return np.asarray(image)


def list_images(images: Any, channels: int, max_pixels: int = MAX_PIXELS) -> list[Tensor]:
    """Convert what Python code gives as images to tensors (C, Y, X), of any sizes.

    `images` is a tensor or an array of one image or of several, another image as `open_any` takes
    it, or a sequence of these; arrays are (B, Y, X, C). A tensor is returned unchecked, a float
    array as float32 with its channels. Others are converted to `channels` as files are. Raises
    InputError.
    """
    if isinstance(images, Tensor | np.ndarray):
        # An array (N,) holds N objects, such as paths.
        is_single = images.ndim in (2, 3)
    else:
        is_single = not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray)
    converted = []
    for index, image in enumerate([images] if is_single else images, 1):
        if isinstance(image, Tensor):
            converted.append(image)
        elif isinstance(image, np.ndarray) and image.dtype.kind == "f":
            converted.append(torch.from_numpy(_find_planes(image).astype(np.float32)))
        else:
            name = str(image) if isinstance(image, str | Path) else f"image {index}"
            pixels = decode_image(partial(open_any, image), channels, max_pixels, name=name)
            converted.append(torch.from_numpy(pixels))
    return converted


def as_images(images: Any, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Convert what Python code gives as images to a batch (B, C, Y, X); see `list_images`.

    A tensor (B, C, Y, X) is returned unchecked. Raises InputError as `list_images`, or if the
    images have several sizes or types.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        return images
    listed = list_images(images, channels, max_pixels)
    if not listed:
        raise InputError("there is no image")
    kinds = list({(tuple(image.shape), image.dtype) for image in listed})
    if len(kinds) > 1:
        raise InputError(
            f"the images of a batch have one size and type; here are {kinds[0]} and {kinds[1]}:"
            " give them in several calls"
        )
    return torch.stack(listed)


def read_image(
    path: str | Path, channels: int | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Return the pixels (C, Y, X) uint8 of an image file: PNG, JPEG or WebP.

    Args:
        path: the image file.
        channels: 1 (greyscale), 3 (RGB), or None: 1 for a greyscale image, else 3.
        max_pixels: larger images are refused.

    Raises BrokenImageError if the image can't be decoded or is too large, and InputError if there
    is no such file or `channels` is not valid.
    """
    require(channels in (1, 3, None), "channels", channels, "1, 3 or None")
    return torch.from_numpy(decode_image(Path(path), channels, max_pixels))


def to_pil(image: Any) -> Image.Image:
    """Convert an array or a tensor (C, Y, X), uint8 or float in [0, 1], to a PIL image.

    C is 1 (greyscale), 3 (RGB) or 4 (RGBA). Raises InputError for another shape or type.
    """
    array = _to_array(image)
    _check_planes(array)
    pixels = array.transpose(1, 2, 0)
    if pixels.dtype.kind == "f":  # by rows, to save memory
        pixels = np.stack(
            [np.rint(row.astype(np.float32).clip(0, 1) * 255).astype(np.uint8) for row in pixels]
        )
    return Image.fromarray(
        pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
    )


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
