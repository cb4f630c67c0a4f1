"""Image files: PNG, JPEG and WebP to uint8 pixels, and folders of them to splits.

Shapes: (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hrvqvae.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Pixels = NDArray[np.uint8]


class BrokenImageError(InputError):
    """An image file can't be decoded, or may not be: the message names the file."""


def _open(path: Path, max_pixels: int) -> Image.Image:
    """Decoded, upright, on white where it is transparent; mode L or RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > max_pixels:
                    raise BrokenImageError(
                        f"{path} has {opened.width}x{opened.height} pixels; data.max_pixels admits {max_pixels}"
                    )
                opened.load()
                image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":
                image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                layer = image.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                image = Image.alpha_composite(white, layer).convert("RGB")
            return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    except BrokenImageError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such image") from error
    except Exception as error:  # decoders of damaged files raise whatever they run into
        raise BrokenImageError(f"{path} is not a readable PNG, JPEG or WebP image ({error})") from error


def _channels(image: Image.Image, channels: int, path: Path) -> Image.Image:
    """To greyscale or RGB without losing anything: colours never become grey silently."""
    if channels == 3:
        return image.convert("RGB")
    if image.mode == "RGB":
        red, green, blue = (np.asarray(band) for band in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise InputError(f"{path} has 3 channels (colour); 1 is expected (greyscale)")
        return image.getchannel(0)
    return image


def _pixels(image: Image.Image) -> Pixels:
    array = np.array(image, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def read_image(path: Path, channels: int, max_pixels: int = 64_000_000) -> Pixels:
    """Pixels of an image file at its own size: (C, Y, X) uint8.

    Raises:
        BrokenImageError: not a PNG, JPEG or WebP that can be read, or larger than `max_pixels`.
        InputError: no such file; a colour image where greyscale is expected.
    """
    return _pixels(_channels(_open(path, max_pixels), channels, path))


def read_square(
    path: Path, channels: int, size: int, max_pixels: int, draw: tuple[float, float] = (0.5, 0.5)
) -> Pixels:
    """Pixels of an image file, cropped to a square of its short side and resized: (C, size, size) uint8.

    `draw` in [0, 1]^2 places the crop: (0.5, 0.5) is the centre. Raises as `read_image` does.
    """
    image = _channels(_open(path, max_pixels), channels, path)
    side = min(image.size)
    left, top = (round(place * (length - side)) for place, length in zip(draw, image.size, strict=True))
    box = (left, top, left + side, top + side)
    return _pixels(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


@dataclass(frozen=True)
class Listing:
    """Image files of one split, sorted; labels and class names where class folders are classes."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def _images_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]


def _name(path: Path, folder: Path) -> str:
    """Name below the folder, the same on every machine."""
    return unicodedata.normalize("NFC", path.relative_to(folder).as_posix())


def _is_test(name: str, test_fraction: float) -> bool:
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return draw < test_fraction * 2**64


def split_names(names: Sequence[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """(train, test) by a hash of each name alone: a file added later moves no other. Of two names, one is each."""
    ordered = sorted(names)
    test = [name for name in ordered if _is_test(name, test_fraction)]
    if len(ordered) > 1 and not test:
        test = ordered[-1:]
    if len(ordered) > 1 and len(test) == len(ordered):
        test = ordered[1:]
    chosen = set(test)
    return [name for name in ordered if name not in chosen], test


def list_folder(folder: Path, split: str, *, test_fraction: float, first: int, labels: bool) -> Listing:
    """Image files of a split ("train" or "test") of a folder.

    Folders train/ and test/ (or val/) are the split; else `first` > 0 takes that many names in sorted order for
    training, and 0 divides by a hash of the names. Folders inside are classes where every image lies in one.

    Raises:
        InputError: no folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    given = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if given is not None and (folder / "train").is_dir():
        base = folder / "train" if split == "train" else given
        files = {_name(path, base): path for path in _images_below(base)}
        names = sorted(files)
        known = {_name(path, folder / "train") for path in _images_below(folder / "train")} | set(names)
    else:
        base = folder
        files = {_name(path, base): path for path in _images_below(base)}
        known = set(files)
        ordered = sorted(files)
        train, test = (ordered[:first], ordered[first:]) if first else split_names(ordered, test_fraction)
        names = train if split == "train" else test
    if not known:
        raise InputError(f"{folder} has no PNG, JPEG or WebP image")
    if not names:
        raise InputError(
            f"{folder} has {len(known)} images, none of which is in the {split} split; "
            "add images, or divide them otherwise with --data.split"
        )
    paths = tuple(files[name] for name in names)
    if not labels or not all("/" in name for name in known):
        return Listing(paths, (0,) * len(paths), ())
    classes = tuple(sorted({name.split("/")[0] for name in known}))
    index = {name: position for position, name in enumerate(classes)}
    return Listing(paths, tuple(index[name.split("/")[0]] for name in names), classes)
