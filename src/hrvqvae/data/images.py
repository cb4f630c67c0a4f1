"""Read images of files and of Python objects, and write PNG files.

Pixels are (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from hrvqvae.config import Grid
from hrvqvae.utils.errors import InputError, explain_write_errors, require
from hrvqvae.utils.outputs import replace_file
from hrvqvae.utils.progress import note

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


class Decoded(NamedTuple):
    """A decoded image, and the losses of its conversion."""

    pixels: Pixels
    lost: str = ""  # such as "colour to greyscale"; empty if nothing was lost


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
    *,
    keep_open: bool = False,
) -> Decoded:
    """Decode an image, turn it upright, and convert it to 8 bits and `channels` channels.

    Colours of another profile are converted to sRGB, except greys. For 1 channel they become
    Pillow's luminance ("L"). Transparent parts become white, CMYK becomes RGB. An animation is
    reduced to its first frame. `Decoded.lost` lists the losses.

    Args:
        channels: 1 (greyscale), 3 (RGB), or None: 1 for a greyscale image, else 3.
        size: height and width; the largest part of this shape is cropped and resized. None keeps
            the image's size.
        position: position of the part, (x, y) in [0, 1]^2: (0.5, 0.5) is the centre.
        name: name of the image in messages (default: its path).
        keep_open: do not close the opened image.

    Raises BrokenImageError if the image is no readable PNG, JPEG or WebP, or is larger than
    `max_pixels`, and InputError if there is no such file.
    """
    name = name or str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture, lost = _load(image, name, channels, max_pixels, keep_open)
    except (BrokenImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such image") from error
    except InputError as error:  # of `open_any` or `_round_to_8_bits`
        raise BrokenImageError(f"{name} is not an image ({error})") from error
    except Exception as error:  # decoders of damaged files raise any error
        raise BrokenImageError(
            f"{name} is not a readable PNG, JPEG or WebP image ({error})"
        ) from error
    if size is not None:
        height, width = size
        columns = min(picture.width, max(1, picture.height * width // height))
        rows = min(picture.height, max(1, picture.width * height // width))
        left = round(position[0] * (picture.width - columns))
        top = round(position[1] * (picture.height - rows))
        box = (left, top, left + columns, top + rows)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    array = np.array(picture, np.uint8)
    array = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return Decoded(array, ", ".join(lost))


def _load(
    source: Path | OpenImage, name: str, channels: int | None, max_pixels: int, keep_open: bool
) -> tuple[Image.Image, list[str]]:
    """Return the first frame of an image, upright, in mode L (1 channel) or RGB (3), and what was
    lost.
    """
    opened = open_image_file(source) if isinstance(source, Path) else source()
    with nullcontext() if keep_open else opened:
        if opened.width * opened.height > max_pixels:
            size = f"{opened.width}x{opened.height} pixels"
            raise BrokenImageError(
                f"{name} has {size}; at most {max_pixels} are admitted: make the image smaller"
            )
        lost = ["further frames"] if getattr(opened, "is_animated", False) else []
        # A tile ends with the mode in the file, such as "RGB;16B", whose low bytes Pillow drops.
        has_16_bits = any("16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
        if has_16_bits:
            lost.append("16 bits to 8")
        opened.load()
        try:
            image: Image.Image = ImageOps.exif_transpose(opened)
        except Exception:  # Pillow raises any error for a damaged block of EXIF
            image = opened.copy()
            lost.append("orientation")

    if image.mode[0] in "IF":  # I, I;16, F
        image = _round_to_8_bits(image, has_16_bits, lost)
    if image.mode not in ("1", "L", "LA") and image.info.get("icc_profile"):
        image = _convert_to_srgb(image, lost)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            lost.append("transparency to white")
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    if image.mode == "CMYK":
        lost.append("CMYK to RGB")

    is_grey = image.mode in ("L", "1")
    if channels == 1 and not is_grey:
        image = image.convert("RGB")
        pixels = np.asarray(image)
        if (pixels != pixels[..., :1]).any():
            lost.append("colour to greyscale")
    mode = "L" if channels == 1 or (channels is None and is_grey) else "RGB"
    return image if image.mode == mode else image.convert(mode), lost  # `convert` always copies


def _round_to_8_bits(image: Image.Image, has_16_bits: bool, lost: list[str]) -> Image.Image:
    """Convert an image of whole numbers or floats to mode L, or LA if a value is transparent.

    Whole numbers have 8 bits if all are below 256, unless the mode or the file says 16; floats may
    also be in [0, 1]. Raises InputError if values are negative, or of more than 16 bits.
    """
    values = np.asarray(image, np.float32)
    low = float(values.min())
    high = float(values.max())
    if not (low >= 0 and high <= 65_535):
        raise InputError(f"its values are {low:g} to {high:g}; images have 8 or 16 bits")
    scale = 1.0
    if has_16_bits or image.mode.startswith("I;16") or high > 255:
        scale = 257.0
        if not has_16_bits:
            lost.append("16 bits to 8")
    elif image.mode == "F" and high <= 1:
        scale = 1 / 255
    grey = Image.fromarray(np.rint(values / scale).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(values != transparent))
    return grey


def _convert_to_srgb(image: Image.Image, lost: list[str]) -> Image.Image:
    """Return a colour image in the colours of sRGB, as its profile says; a damaged profile is
    ignored.
    """
    profile = image.info["icc_profile"]
    if image.mode != "CMYK":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    try:
        transform = _find_transform(profile, image.mode)
        if transform is not None:
            image = transform.apply(image)
            lost.append("colour profile to sRGB")
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError):
        lost.append("damaged colour profile ignored")
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
        return image
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | os.PathLike):
        return open_image_file(image)
    if isinstance(image, bytes | bytearray):
        return open_image_file(io.BytesIO(image))
    pixels = _find_planes(image)
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"its values are {pixels.min():g} to {pixels.max():g}; float images are in [0, 1]"
        )
    return to_pil(pixels)


def _find_planes(image: Any) -> NDArray[Any]:
    """Return an array or a tensor as (C, Y, X), uint8 or float. Raises InputError."""
    if not hasattr(image, "__array__"):
        kind = type(image).__name__
        raise InputError(f"it is a {kind}; images are paths, bytes, PIL images, arrays or tensors")
    pixels = _to_array(image)
    if not isinstance(image, Tensor):
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4):
            pixels = pixels.transpose(2, 0, 1)
    _check_planes(pixels)
    return pixels


def _check_planes(pixels: NDArray[Any]) -> None:
    """Raise InputError unless pixels are (C, Y, X), uint8 or float."""
    if pixels.ndim != 3 or len(pixels) not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(
            f"its shape is {pixels.shape}; expected tensors (C, Y, X) or arrays (Y, X, C), C = 1, 3"
            " or 4"
        )
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise InputError(f"its type is {pixels.dtype}; images are uint8, or float in [0, 1]")


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
    array as float32 with its channels. Others are converted to `channels` as files are, with a note
    if they lose something. Raises InputError.
    """
    if isinstance(images, Tensor | np.ndarray):
        # An array (N,) holds N objects, such as paths.
        is_single = images.ndim in (2, 3)
    else:
        is_single = not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray)
    converted = []
    lost = dict[str, str]()
    for index, image in enumerate([images] if is_single else images, 1):
        if isinstance(image, Tensor):
            converted.append(image)
        elif isinstance(image, np.ndarray) and image.dtype.kind == "f":
            converted.append(torch.from_numpy(_find_planes(image).astype(np.float32)))
        else:
            name = str(image) if isinstance(image, str | Path) else f"image {index}"
            is_given = isinstance(image, Image.Image)
            pixels, lost[name] = decode_image(
                partial(open_any, image), channels, max_pixels, name=name, keep_open=is_given
            )
            converted.append(torch.from_numpy(pixels))
    note_conversions(lost)
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
    return torch.from_numpy(decode_image(Path(path), channels, max_pixels).pixels)


def to_pil(image: Any) -> Image.Image:
    """Convert an array or a tensor (C, Y, X), uint8 or float in [0, 1], to a PIL image.

    C is 1 (greyscale), 3 (RGB) or 4 (RGBA). Raises InputError for another shape or type.
    """
    array = _to_array(image)
    _check_planes(array)
    pixels = array.transpose(1, 2, 0)
    if pixels.dtype != np.uint8:  # by rows, to save memory
        pixels = np.stack(
            [np.rint(row.astype(np.float32).clip(0, 1) * 255).astype(np.uint8) for row in pixels]
        )
    return Image.fromarray(
        pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
    )


def note_conversions(lost: Mapping[Any, str]) -> None:
    """Log a notice about the images that lost something; `lost` has the loss of each image."""
    losing = {name: loss for name, loss in lost.items() if loss}
    if losing:
        kinds = "; ".join(sorted(set(losing.values())))
        note(
            f"images converted: {len(losing)} of {len(lost)} ({kinds}), the first is"
            f" {next(iter(losing))}"
        )


def write_image(image: Image.Image, path: Path, *, optimize: bool = True) -> None:
    """Write a PNG file and make its folder; replace an existing file.

    `optimize` makes the file smaller, in several times the time; an image above a megapixel is
    written without it. The file is not flushed to disk, which saves 7 ms. Raises InputError if the
    path does not end in .png or can't be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} must end in .png")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, flush=False) as temporary:
            is_small = image.width * image.height <= _MOST_OPTIMIZED
            image.save(temporary, "PNG", optimize=optimize and is_small)
