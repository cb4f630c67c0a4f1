"""Arrays in .npy and .npz files: uint8 images (N, Y, X), (N, Y, X, C) or one image (Y, X, C), and
labels (N,) or (N, 1). C is 1, 3, or 4 with transparency.

docs/own-data.md describes the names of the arrays. Arrays are mapped into memory, except those of a
compressed .npz.
"""

import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.sources import SPLIT_NAMES, Shard, Source
from hrvqvae.utils.errors import InputError, one_line
from hrvqvae.utils.progress import note_once

_IMAGES = re.compile(r"(?<![a-z])(images|x)(?![a-z])", re.IGNORECASE)
_LABELS = re.compile(r"(?<![a-z])(labels|y)(?![a-z])", re.IGNORECASE)
_CHANNELS = (1, 3, 4)
_MAX_OPEN = 128
_LOCAL_HEADER = 30  # bytes of a zip member's header, without its name and extra field
# a compressed array of n bytes may inflate to 2**26 + 50 n bytes
_MAX_INFLATED = 2**26
_MAX_INFLATION = 50


class ArraySource(Source):
    """The images of arrays, one array after another."""

    def __init__(self, shards: Sequence[Shard], labels: bool) -> None:
        """Open arrays. Raises InputError if one is damaged, its type or shape does not fit, or no
        image is there.
        """
        self._shards = tuple(shards)
        self._opened = dict[int, NDArray[np.uint8]]()
        counts = [len(self._images(index)) for index in range(len(shards))]
        super().__init__(counts)
        if not len(self):
            raise InputError(f"{shards[0]}: there is no image in it")
        if labels:
            list_once = cache(_list_arrays_beside)
            read = [
                _read_labels(
                    shard, count, list_once(shard.path if shard.key else shard.path.parent)
                )
                for shard, count in zip(shards, counts, strict=True)
            ]
            if not any(values is None for values in read):
                self.labels = np.concatenate(read)  # type: ignore[arg-type]

    def _images(self, index: int) -> NDArray[np.uint8]:
        """Return the images of an array. With 128 arrays, all memory maps are closed, since each
        holds a file open.
        """
        if index not in self._opened:
            if len(self._opened) >= _MAX_OPEN:
                opened = self._opened.items()
                self._opened = {
                    key: read for key, read in opened if not isinstance(read, np.memmap)
                }
            self._opened[index] = _read_images(self._shards[index])
        return self._opened[index]

    def __getstate__(self) -> dict[str, Any]:  # pickle would copy the content of a memory map
        return vars(self) | {"_opened": {}}

    def name(self, row: int) -> str:
        index, within = self.locate(row)
        return f"{self._shards[index].name}/{within}"

    def where(self, row: int) -> str:
        index, within = self.locate(row)
        return f"{self._shards[index]}: image {within}"

    def open(self, row: int) -> Image.Image:
        index, within = self.locate(row)
        pixels = np.ascontiguousarray(self._images(index)[within])
        return Image.fromarray(
            pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        )

    def content(self, row: int, ending: bool) -> bytes:
        index, within = self.locate(row)
        pixels = self._images(index)[within]
        # The middle row, also without `ending`: a size, as of a file, would tell no images apart,
        # because all images of an array have one size.
        return bytes(pixels[len(pixels) // 2].tobytes())


def list_arrays(files: Sequence[Path], base: Path) -> list[Shard]:
    """Return the arrays of images in files, named relative to `base`. Raises InputError if a file
    has none.
    """
    shards = []
    files_of_labels = []
    for file in files:
        name = file.relative_to(base).as_posix()
        if file.suffix.lower() == ".npy":
            if _holds_labels(file):
                files_of_labels.append(file)
            else:
                shards.append(Shard(name, file))
            continue
        keys = _list_keys(file)
        images = keys if len(keys) == 1 else [key for key in keys if _is_name_of_images(key)]
        if not images:
            raise InputError(
                f"{file} holds {', '.join(keys) or 'no array'}; name the images `images` or `x`"
            )
        used = {*images, *_list_label_names(images)}
        if others := [key for key in keys if key not in used and key.lower() not in used]:
            note_once(
                f"{file}: left out {', '.join(others)}; images are named `images` or `x`, their"
                " labels `labels` or `y`"
            )
        shards += [Shard(f"{name}/{key}", file, key) for key in images]
    if not shards:
        raise InputError(f"{files[0]} has a name of labels; give the file of images")

    stems = _list_label_names(shard.path.stem for shard in shards)
    for file in files_of_labels:
        if file.stem.lower() not in stems:
            note_once(f"{file}: left out; the labels of bars.npy are named bars-labels.npy")
    return shards


def _is_name_of_images(key: str) -> bool:
    """Return whether an array in an .npz is named `images` or `x`, alone or with numbers or the
    name of a split.
    """
    words = re.findall("[a-z]+", key.lower())
    return [word for word in words if word not in SPLIT_NAMES] in (["images"], ["x"])


def _holds_labels(file: Path) -> bool:
    """Return whether an .npy has a name of labels. With `y` in its name (`tile_x0_y1`) it may still
    be an array of images, which has 3 or 4 dimensions.
    """
    match = _LABELS.search(file.stem)
    if match is None or match[1].lower() == "labels":
        return match is not None
    with suppress(InputError):  # labels need not be numbers
        return _read_array(Shard("", file)).ndim < 3
    return True


def _list_keys(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [
                name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")
            ]
    except Exception as error:  # readers of damaged files raise any error
        raise InputError(
            f"{path} can't be read ({error}); write it again with numpy.savez"
        ) from error


def _read_array(shard: Shard) -> NDArray[Any]:
    """Return an array of a file, as a memory map if the array is not compressed."""
    try:
        if shard.key:
            return _read_member(shard)
        return np.asanyarray(np.load(shard.path, mmap_mode="r", allow_pickle=False))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{shard} is damaged or holds no numbers ({one_line(error)}); write it again"
        ) from error


def _read_member(shard: Shard) -> NDArray[Any]:
    """Return an array in an .npz, as a memory map unless the array is compressed or empty.

    Its bytes begin after the header of the zip's member (30 bytes, name, extra field), and after
    the header of the .npy.
    """
    with shard.path.open("rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            member = archive.getinfo(f"{shard.key}.npy")
        if member.compress_type == zipfile.ZIP_STORED:
            stream.seek(member.header_offset)
            name_length, extra_length = struct.unpack("<26x2H", stream.read(_LOCAL_HEADER))
            stream.seek(name_length + extra_length, 1)
            is_version_1 = npy.read_magic(stream) == (1, 0)
            read_header = npy.read_array_header_1_0 if is_version_1 else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(stream)
            if not dtype.hasobject and 0 not in shape:
                start = stream.tell()
                return np.memmap(shard.path, dtype, "r", start, shape, "F" if fortran else "C")
        elif member.file_size > _MAX_INFLATED + _MAX_INFLATION * member.compress_size:
            raise InputError(
                f"{shard} has {member.file_size / 1e6:,.0f} MB in"
                f" {member.compress_size / 1e6:,.1f} MB, too much for memory; write it uncompressed"
                " with numpy.savez"
            )
    return np.asarray(np.load(shard.path, allow_pickle=False)[shard.key])


def _read_images(shard: Shard) -> NDArray[np.uint8]:
    images = _read_array(shard)
    if images.dtype != np.uint8:
        raise InputError(
            f"{shard} has type {images.dtype}; images are uint8, 0 (black) to 255 (white)"
        )
    if images.ndim == 3 and images.shape[2] in _CHANNELS:  # one image, not lines of pixels
        images = images[None]
    is_batch = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in _CHANNELS)
    if not is_batch or 0 in images.shape[1:]:
        raise InputError(
            f"{shard} has shape {images.shape}; images are (N, Y, X), (N, Y, X, C), or one image"
            " (Y, X, C), C = 1, 3 or 4"
        )
    return images


def _list_arrays_beside(place: Path) -> dict[str, Shard]:
    """Return the arrays of an .npz, or the .npy files of a folder, by name in lower case."""
    if place.is_dir():
        return {path.stem.lower(): Shard("", path) for path in place.glob("*.npy")}
    return {key.lower(): Shard("", place, key) for key in _list_keys(place)}


def _list_label_names(names: Iterable[str]) -> list[str]:
    """Return the names, in lower case, that the labels of arrays of images may have.

    The labels of x_train are y_train, those of train_images train_labels, and those of bars
    bars-labels or bars_labels.
    """
    labels = []
    for name in names:
        swapped = _IMAGES.sub(
            lambda match: "y" if match[1].lower() == "x" else "labels", name
        ).lower()
        is_named = swapped != name.lower()
        labels += [swapped] if is_named else [f"{swapped}-labels", f"{swapped}_labels"]
    return labels


def _read_labels(shard: Shard, count: int, arrays: Mapping[str, Shard]) -> NDArray[np.int64] | None:
    """Return the labels of an array of `count` images, or None. `arrays` are those in the same
    folder or .npz, by name.
    """
    names = _list_label_names([shard.key or shard.path.stem])
    labels_shard = next((arrays[name] for name in names if name in arrays), None)
    if labels_shard is None:
        return None
    labels = _read_array(labels_shard)
    is_column = labels.ndim > 0 and labels.shape[1:] in ((), (1,))
    if labels.dtype.kind not in "iu" or not is_column:
        raise InputError(
            f"{labels_shard} is {labels.dtype} {labels.shape}; labels are (N,) integers"
        )
    if len(labels) != count:
        raise InputError(
            f"{labels_shard} has {len(labels):,} labels for the {count:,} images of {shard}"
        )
    return labels.reshape(-1).astype(np.int64)
