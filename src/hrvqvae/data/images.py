"""Image files: PNG, JPEG and WebP to uint8 pixels, and folders of them to splits.

Shapes: (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hrvqvae.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
HELD_OUT = ("test", "val", "validation")  # names of the folder of a given test split, in order
Pixels = NDArray[np.uint8]


class BrokenImageError(InputError):
    """An image file can't be decoded, or may not be: the message names the file."""


class Decoded(NamedTuple):
    """An image as a model sees it.

    Attributes:
        pixels: (C, Y, X) uint8.
        lost: what the file holds and the pixels do not, such as "colour to greyscale"; empty where nothing is lost
            (a palette, a bilevel image, grey written as RGB).
    """

    pixels: Pixels
    lost: str = ""


def _upright(path: Path, max_pixels: int) -> Image.Image:
    with Image.open(path, formats=FORMATS) as opened:
        if opened.width * opened.height > max_pixels:
            raise BrokenImageError(
                f"{path} has {opened.width}x{opened.height} pixels; data.max_pixels admits {max_pixels}"
            )
        opened.load()
        return ImageOps.exif_transpose(opened)


def _converted(image: Image.Image, channels: int) -> tuple[Image.Image, str]:
    """In mode L (1 channel) or RGB (3), with what is lost on the way."""
    lost = []
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
        lost.append("16 bits to 8")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            lost.append("transparency to white")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "CMYK":
        lost.append("CMYK to RGB")
    if channels == 3:
        return image.convert("RGB"), ", ".join(lost)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
        red, green, blue = (np.asarray(band) for band in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            lost.append("colour to greyscale")
    return image.convert("L"), ", ".join(lost)


def _open(path: Path, channels: int, max_pixels: int) -> tuple[Image.Image, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _converted(_upright(path, max_pixels), channels)
    except BrokenImageError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such image") from error
    except Exception as error:  # decoders of damaged files raise whatever they run into
        raise BrokenImageError(f"{path} is not a readable PNG, JPEG or WebP image ({error})") from error


def _pixels(image: Image.Image) -> Pixels:
    array = np.array(image, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode_image(path: Path, channels: int, max_pixels: int = 64_000_000) -> Decoded:
    """An image file at its own size, upright, converted to the channels that a model has.

    Every file is converted, and whoever decodes tells what was lost: colours become grey by Pillow's luminance
    ("L"), transparent parts lie on white, CMYK becomes RGB, 16 bits become 8.

    Raises:
        BrokenImageError: not a PNG, JPEG or WebP that can be read, or larger than `max_pixels`.
        InputError: no such file.
    """
    image, lost = _open(path, channels, max_pixels)
    return Decoded(_pixels(image), lost)


def decode_square(
    path: Path, channels: int, size: int, max_pixels: int, place: tuple[float, float] = (0.5, 0.5)
) -> Decoded:
    """An image file, cropped to a square of its short side and resized to (C, size, size); else as `decode_image`.

    `place` in [0, 1]^2 is where the crop lies, (x, y): (0.5, 0.5) is the centre.
    """
    image, lost = _open(path, channels, max_pixels)
    side = min(image.size)
    left, top = (round(share * (length - side)) for share, length in zip(place, image.size, strict=True))
    box = (left, top, left + side, top + side)
    return Decoded(_pixels(image.resize((size, size), Image.Resampling.LANCZOS, box=box)), lost)


def read_image(path: Path, channels: int, max_pixels: int = 64_000_000) -> Pixels:
    """The pixels that `decode_image` gives: (C, Y, X) uint8. Raises as it does."""
    return decode_image(path, channels, max_pixels).pixels


def conversions(lost: Mapping[Path, str], count: int) -> str:
    """A line about the converted ones of `count` images; `lost` is path -> what was lost, and may be empty."""
    losing = {path: what for path, what in lost.items() if what}
    if not losing:
        return ""
    kinds = "; ".join(sorted(set(losing.values())))
    return f"images converted: {len(losing)} of {count} ({kinds}), the first is {next(iter(losing))}"


@dataclass(frozen=True)
class Listing:
    """Image files of one split, sorted; labels and class names where class folders are classes."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def _images_below(folder: Path) -> list[Path]:
    """Image files at any depth. Links to folders directly inside are followed, as data sets are often put together."""
    inside = [path for child in folder.iterdir() for path in (child.rglob("*") if child.is_dir() else (child,))]
    return [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]


def _in_classes(names: Iterable[str]) -> bool:
    """Whether every image lies in a folder."""
    return all("/" in name for name in names)


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


def _below(start: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """The files whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): path for name, path in files.items() if name.startswith(start)}


def _given_split(folder: Path, below: Collection[str]) -> tuple[str, str] | None:
    """(folder of the train split, of the test split) among the folders with images; None where there is no split.

    Raises:
        InputError: there is one of the two alone.
    """
    held_out = next((name for name in HELD_OUT if name in below), None)
    if "train" in below and held_out is not None:
        return "train", held_out
    if below and set(below) <= {"train", *HELD_OUT}:
        names = " and ".join(f"{name}/" for name in sorted(below))
        missing = "no train/" if held_out else f"none of {', '.join(f'{name}/' for name in HELD_OUT)}"
        raise InputError(
            f"{folder} has {names}, but {missing}: add what is missing, or name {folder / min(below)} as the folder, "
            "whose images are then divided"
        )
    return None


def list_folder(folder: Path, split: str, *, test_fraction: float, first: int, labels: bool) -> Listing:
    """Image files of a split ("train" or "test") of a folder.

    How the folder is divided:

    1. `train/` beside `test/`, `val/` or `validation/` is a given split. Where several of the three are there, the
       first in this order is the test split. Images elsewhere in the folder are in neither split.
    2. Without a given split, `first` > 0 takes that many names in sorted order for training, the rest for test.
    3. Else a hash of each name decides, the same on every machine: `test_fraction` of them are for test.

    `train/` alone, or `test/`, `val/` and `validation/` without `train/`, is an error; beside other folders of images
    it is a class like them ("train" is one in CIFAR100). Folders are classes where every image of both splits lies in
    one; where only one of two given splits is so, that is an error.

    Raises:
        InputError: no folder, no image in it or in the split, or half of a given split.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    files = {_name(path, folder): path for path in _images_below(folder)}
    if not files:
        raise InputError(f"{folder} has no PNG, JPEG or WebP image")
    given = _given_split(folder, {name.split("/")[0] for name in files if "/" in name})
    if given:
        parts = [_below(f"{part}/", files) for part in given]
        if labels and _in_classes(parts[0]) != _in_classes(parts[1]):
            flat, in_classes = given if _in_classes(parts[1]) else given[::-1]
            raise InputError(
                f"{folder}: the images in {in_classes}/ lie in class folders, those in {flat}/ do not; "
                "sort them alike, or take no classes with --data.labels false"
            )
    else:
        ordered = sorted(files)
        divided = (ordered[:first], ordered[first:]) if first else split_names(ordered, test_fraction)
        parts = [{name: files[name] for name in names} for names in divided]
    chosen = parts[0 if split == "train" else 1]
    if not chosen:
        raise InputError(
            f"{folder} has {len(files)} images, none of which is in the {split} split; "
            "add images, or divide them otherwise with --data.split"
        )
    names = sorted(chosen)
    paths = tuple(chosen[name] for name in names)
    known = [name for part in parts for name in part]
    if not labels or not _in_classes(known):
        return Listing(paths, (0,) * len(paths), ())
    classes = tuple(sorted({name.split("/")[0] for name in known}))
    index = {name: position for position, name in enumerate(classes)}
    return Listing(paths, tuple(index[name.split("/")[0]] for name in names), classes)
