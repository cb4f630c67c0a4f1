"""Arrays in .npy and .npz files: uint8 images (N, Y, X) or (N, Y, X, C), and labels (N,) or (N, 1) if there are any.

In an .npz the arrays are named `images` or `x`, labels `labels` or `y`, with a word for the split where it holds both:
`x_train`, `val_labels`. The only array of a file may have any name. Labels of `digits.npy` are in `digits-labels.npy`
beside it, those of `train-images.npy` in `train-labels.npy`. Images stay on disk, mapped into memory, except those of a
compressed .npz.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.sources import Part, Source
from hrvqvae.utils.errors import InputError, one_line

_IMAGES = re.compile(r"(?<![a-z])(images|x)(?![a-z])", re.IGNORECASE)
_LABELS = re.compile(r"(?<![a-z])(labels|y)(?![a-z])", re.IGNORECASE)
_LABELS_OF = {"images": "labels", "x": "y"}
_LOCAL_HEADER = 30  # bytes of a zip member's header, without its name and extra field


class ArraySource(Source):
    """The images of arrays, one array after another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        super().__init__(map(len, self._arrays))

    @cached_property
    def _arrays(self) -> list[NDArray[np.uint8]]:
        return [_images(part) for part in self._parts]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}  # pickled, a map is its content

    def name(self, row: int) -> str:
        number, within = self.place(row)
        return f"{self._parts[number].name}/{within}"

    def where(self, row: int) -> str:
        number, within = self.place(row)
        return f"{_named(self._parts[number])}: image {within}"

    def open(self, row: int) -> Image.Image:
        number, within = self.place(row)
        pixels = np.ascontiguousarray(self._arrays[number][within])
        return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def parts(files: Sequence[Path], base: Path) -> list[Part]:
    """The arrays of images in these files, with names below `base`. Raises InputError where there are none."""
    found = list[Part]()
    for file in files:
        name = file.relative_to(base).as_posix()
        if file.suffix.lower() == ".npy":
            found += [] if _LABELS.search(file.stem) else [Part(name, file)]
            continue
        keys = _keys(file)
        images = [key for key in keys if _IMAGES.search(key)] or (keys if len(keys) == 1 else [])
        if not images:
            raise InputError(
                f"{file} holds {', '.join(keys) or 'no array'}; name the images `images` or `x`, labels `labels` or `y`"
            )
        found += [Part(f"{name}/{key}", file, key) for key in images]
    if not found:
        raise InputError(f"{files[0]} is named as labels are; name the array of images")
    return found


def read(parts: Sequence[Part], labels: bool) -> ArraySource:
    """The images of arrays. Raises InputError where one is damaged, or has another type, shape or number of labels."""
    source = ArraySource(parts)
    if labels:
        told = [_labels(part) for part in parts]
        some = [one for one in told if one is not None]
        if some and len(some) == len(told):
            source.labels = np.concatenate(some)
    return source


def _named(part: Part) -> str:
    return f"{part.path}: {part.key}" if part.key else str(part.path)


def _keys(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except Exception as error:  # what is damaged raises whatever it runs into
        raise InputError(f"{path} can't be read ({error}); write it again with numpy.savez") from error


def _array(part: Part) -> NDArray[Any]:
    """An array of a file, mapped where it can be."""
    try:
        if not part.key:
            found: NDArray[Any] = np.load(part.path, mmap_mode="r", allow_pickle=False)
            return found
        mapped = _mapped_member(part)
        return np.asarray(np.load(part.path, allow_pickle=False)[part.key]) if mapped is None else mapped
    except Exception as error:  # of damaged files, whatever their readers run into
        raise InputError(
            f"{_named(part)} is damaged or holds no numbers ({one_line(error)}); write it again"
        ) from error


def _mapped_member(part: Part) -> NDArray[Any] | None:
    """An array of an .npz, read when it is looked at; None where it is compressed or empty."""
    with part.path.open("rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            member = archive.getinfo(f"{part.key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        stream.seek(member.header_offset)
        name, extra = struct.unpack("<26x2H", stream.read(_LOCAL_HEADER))
        stream.seek(name + extra, 1)
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, kind = header(stream)
        if kind.hasobject or 0 in shape:
            return None
        return np.memmap(part.path, kind, "r", stream.tell(), shape, "F" if fortran else "C")


def _images(part: Part) -> NDArray[np.uint8]:
    found = _array(part)
    if found.dtype != np.uint8:
        raise InputError(f"{_named(part)} has type {found.dtype}; images are uint8, 0 (black) to 255 (white)")
    if found.ndim not in (3, 4) or (found.ndim == 4 and found.shape[3] not in (1, 3)) or 0 in found.shape[1:]:
        raise InputError(
            f"{_named(part)} has shape {found.shape}; images are (N, Y, X) or (N, Y, X, C) with 1 or 3 channels, "
            "which transpose(0, 2, 3, 1) puts last"
        )
    return found


def _labels(part: Part) -> NDArray[np.int64] | None:
    """The labels that belong to an array of images; None where there are none."""
    own = part.key or part.path.stem
    swapped = _IMAGES.sub(lambda found: _LABELS_OF[found[1].lower()], own).lower()
    names = (swapped,) if swapped != own.lower() else (f"{swapped}-labels", f"{swapped}_labels")
    if part.key:
        others = {key.lower(): Part("", part.path, key) for key in _keys(part.path)}
    else:
        others = {other.stem.lower(): Part("", other) for other in part.path.parent.glob("*.npy")}
    place = next((others[name] for name in names if name in others), None)
    if place is None:
        return None
    found = _array(place)
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2) or found.shape[1:] not in ((), (1,)):
        raise InputError(
            f"{_named(place)} has shape {found.shape} and type {found.dtype}; labels are (N,) whole numbers"
        )
    count = len(_images(part))
    if len(found) != count:
        raise InputError(f"{_named(place)} has {len(found):,} labels for the {count:,} images of {_named(part)}")
    return found.reshape(-1).astype(np.int64)
