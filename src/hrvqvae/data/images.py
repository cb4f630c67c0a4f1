"""Image files: PNG, JPEG and WebP to uint8 pixels, and folders of them to splits.

Shapes: (C, Y, X) uint8, C = 1 (greyscale) or 3 (RGB).
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hrvqvae.data.splits import HELD_OUT, TRAIN, WORDS, given_split, split_names
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Pixels = NDArray[np.uint8]
Open = Callable[[], Image.Image]
"""Opens an image, whose pixels need not be read yet; raises whatever its decoder or its file runs into."""


class BrokenImageError(InputError):
    """An image file can't be decoded, or may not be: the message names the file."""


class NoImageError(InputError):
    """A folder has no image file in it."""


class Decoded(NamedTuple):
    """An image as a model sees it.

    Attributes:
        pixels: (C, Y, X) uint8.
        lost: what the file holds and the pixels do not, such as "colour to greyscale"; empty where nothing is lost
            (a palette, a bilevel image, grey written as RGB).
    """

    pixels: Pixels
    lost: str = ""


def opened_file(file: Path | BinaryIO) -> Image.Image:
    """A PNG, JPEG or WebP image, opened and not yet decoded. Raises what Pillow and the file system raise."""
    return Image.open(file, formats=FORMATS)


def _upright(opens: Open, name: str, max_pixels: int) -> Image.Image:
    with opens() as opened:
        if opened.width * opened.height > max_pixels:
            raise BrokenImageError(
                f"{name} has {opened.width}x{opened.height} pixels; data.max_pixels admits {max_pixels}"
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


def _read(opens: Open, name: str, channels: int, max_pixels: int) -> tuple[Image.Image, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _converted(_upright(opens, name, max_pixels), channels)
    except BrokenImageError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such image") from error
    except Exception as error:  # decoders of damaged files raise whatever they run into
        raise BrokenImageError(f"{name} is not a readable PNG, JPEG or WebP image ({error})") from error


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
    return whole(lambda: opened_file(path), str(path), channels, max_pixels)


def whole(opens: Open, name: str, channels: int, max_pixels: int) -> Decoded:
    """An image that `opens` opens, as `decode_image` gives a file; messages name it `name`."""
    image, lost = _read(opens, name, channels, max_pixels)
    return Decoded(_pixels(image), lost)


def decode_square(
    path: Path, channels: int, size: int, max_pixels: int, place: tuple[float, float] = (0.5, 0.5)
) -> Decoded:
    """An image file, cropped to a square of its short side and resized to (C, size, size); else as `decode_image`.

    `place` in [0, 1]^2 is where the crop lies, (x, y): (0.5, 0.5) is the centre.
    """
    return square(lambda: opened_file(path), str(path), channels, size, max_pixels, place)


def square(
    opens: Open, name: str, channels: int, size: int, max_pixels: int, place: tuple[float, float] = (0.5, 0.5)
) -> Decoded:
    """As `decode_square`, of an image that lies anywhere; errors call it `name`."""
    image, lost = _read(opens, name, channels, max_pixels)
    side = min(image.size)
    left, top = (round(share * (length - side)) for share, length in zip(place, image.size, strict=True))
    box = (left, top, left + side, top + side)
    return Decoded(_pixels(image.resize((size, size), Image.Resampling.LANCZOS, box=box)), lost)


def read_image(path: Path, channels: int, max_pixels: int = 64_000_000) -> Pixels:
    """The pixels that `decode_image` gives: (C, Y, X) uint8. Raises as it does."""
    return decode_image(path, channels, max_pixels).pixels


def conversions(lost: Mapping[Path, str] | Mapping[str, str], count: int) -> str:
    """A line about the converted ones of `count` images; `lost` is path or name -> what was lost, and may be empty."""
    losing = {name: what for name, what in lost.items() if what}
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


def _below(start: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """The files whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): path for name, path in files.items() if name.startswith(start)}


def _given_split(folder: Path, below: Collection[str]) -> tuple[str, str] | None:
    """(folder of the train split, of the test split) among the folders with images; None where there is no split.

    Raises:
        InputError: there is one of the two alone.
    """
    given = given_split(below)
    if given is None and below and set(below) <= set(WORDS):
        names = " and ".join(f"{name}/" for name in sorted(below))
        missing = "no train/" if TRAIN not in below else f"none of {', '.join(f'{name}/' for name in HELD_OUT)}"
        raise InputError(
            f"{folder} has {names}, but {missing}: add what is missing, or name {folder / min(below)} as the folder, "
            "whose images are then divided"
        )
    return given


def folder_parts(folder: Path, labels: bool) -> dict[str, dict[str, Path]]:
    """Image files of a folder by the split that is given: name of its folder -> name below that -> file.

    The training split comes first. Without a given split all are under the empty name.

    Raises:
        NoImageError: no image in it.
        InputError: no folder, half of a given split, or only one of the two lies in class folders (with `labels`).
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    files = {_name(path, folder): path for path in _images_below(folder)}
    if not files:
        raise NoImageError(f"{folder} has no PNG, JPEG or WebP image")
    given = _given_split(folder, {name.split("/")[0] for name in files if "/" in name})
    if given is None:
        return {"": files}
    parts = {word: _below(f"{word}/", files) for word in given}
    flat = [word for word, part in parts.items() if not _in_classes(part)]
    if labels and len(flat) == 1:
        in_classes = next(word for word in given if word not in flat)
        raise InputError(
            f"{folder}: the images in {in_classes}/ lie in class folders, those in {flat[0]}/ do not; "
            "sort them alike, or take no classes with --data.labels false"
        )
    return parts


def nothing_in(split: str, where: str, count: int) -> str:
    """The error where a split has none of so many images."""
    return (
        f"{where} has {counted(count, 'image')}, none in the {split} split; "
        "add images, or divide them otherwise with --data.split"
    )


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
    given = folder_parts(folder, labels)
    if "" in given:
        files = given[""]
        ordered = sorted(files)
        divided = (ordered[:first], ordered[first:]) if first else split_names(ordered, test_fraction)
        parts = [{name: files[name] for name in names} for names in divided]
    else:
        parts = list(given.values())
    chosen = parts[0 if split == "train" else 1]
    if not chosen:
        raise InputError(nothing_in(split, str(folder), sum(len(part) for part in parts)))
    return listing(chosen, [name for part in parts for name in part], labels)


def listing(chosen: Mapping[str, Path], known: Collection[str], labels: bool) -> Listing:
    """Those of a folder's images by name, sorted; their folders are classes where all that are known lie in one."""
    names = sorted(chosen)
    paths = tuple(chosen[name] for name in names)
    if not labels or not _in_classes(known):
        return Listing(paths, (0,) * len(paths), ())
    classes = tuple(sorted({name.split("/")[0] for name in known}))
    index = {name: position for position, name in enumerate(classes)}
    return Listing(paths, tuple(index[name.split("/")[0]] for name in names), classes)
