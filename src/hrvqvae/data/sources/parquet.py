"""Parquet files with a column of images, as data sets of the Hugging Face hub are kept.

The column holds the bytes of PNG, JPEG and WebP files, or the hub's struct {bytes, path}. A column `label` or `labels`
holds numbers or texts; names of numbers are read from the features that `datasets` keeps in the file. An image is named
by its path where the struct has another one for each, else by its file and row.

A row group is the least that can be read. So each process keeps those that it read last, up to `WINDOW_BYTES`, and an
epoch stays within so many: row groups are drawn in a new order, and the images of those that fit into the window
together in any order. A set that fits as a whole is drawn as a folder is.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import opened_file
from hrvqvae.data.sources import Part, Source, decoded, encoded
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line

WINDOW_BYTES = 256 * 2**20  # of row groups, uncompressed, that are drawn from together and that a process keeps
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")


class Group(NamedTuple):
    """A row group of a file."""

    file: Path
    number: int
    before: int  # rows of the file before it
    rows: int
    bytes: int  # of its images when they are read
    column: str  # of images, down to the bytes


class ParquetSource(Source):
    """The images of Parquet files, row group after row group."""

    def __init__(self, groups: Sequence[Group]) -> None:
        super().__init__(group.rows for group in groups)
        self.groups, self._window = tuple(groups), WINDOW_BYTES
        self._read: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_paths"} | {"_read": OrderedDict()}

    @cached_property
    def _paths(self) -> NDArray[np.bytes_] | None:
        """The paths that the files give their images; None unless each has another one."""
        found = list[str]()
        for path, column in dict.fromkeys((group.file, group.column.removesuffix(".bytes")) for group in self.groups):
            with opened_parquet(path) as file:
                if f"{column}.path" not in {file.schema.column(place).path for place in range(len(file.schema))}:
                    return None
                values = file.read(columns=[f"{column}.path"], use_threads=False).column(0)
                found += [value for chunk in values.chunks for value in chunk.field("path").to_pylist()]
        return None if None in found or len(set(found)) < len(found) else encoded(found)

    def name(self, row: int) -> str:
        if self._paths is not None:
            return decoded(self._paths, row)
        number, within = self.place(row)
        return f"{self.groups[number].file.name}/{self.groups[number].before + within}"

    def where(self, row: int) -> str:
        number, within = self.place(row)
        return f"{self.groups[number].file}: row {self.groups[number].before + within}"

    def open(self, row: int) -> Image.Image:
        number, within = self.place(row)
        if number in self._read:
            self._read.move_to_end(number)
        else:
            group = self.groups[number]
            while self._read and sum(self.groups[one].bytes for one in self._read) + group.bytes > self._window:
                self._read.popitem(last=False)
            self._read[number] = _bytes_of(group)
        content = self._read[number][within].as_py()
        if content is None:
            raise ValueError("the row holds no bytes")
        return opened_file(io.BytesIO(content))

    def order(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        group_of = np.searchsorted(self.first, rows, "right") - 1
        there, counts = np.unique(group_of, return_counts=True)
        sizes = np.array([self.groups[number].bytes for number in there])
        if sizes.sum() <= self._window:
            return super().order(rows, generator)
        drawn = generator.permutation(len(there))
        windows, filled = np.empty(len(there), np.int64), 0
        for place, number in enumerate(drawn):
            full = place > 0 and filled + sizes[number] > self._window
            windows[number] = (windows[drawn[place - 1]] if place else 0) + full
            filled = sizes[number] + (0 if full else filled)
        keys = generator.random(len(rows))
        return np.lexsort((keys, np.repeat(windows, counts)))


@contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """A Parquet file. Raises DamagedFileError where it is damaged, whatever its reader runs into."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except InputError:
        raise
    except Exception as error:
        raise DamagedFileError(f"{path} is damaged, or no Parquet file ({one_line(error)}); make it anew") from error


def _bytes_of(group: Group) -> Any:
    """The column of images of a row group, read by this thread alone: other threads do not outlive a fork."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(group.file, pre_buffer=False) as file:
            table = file.read_row_group(group.number, columns=[group.column], use_threads=False)
    except pyarrow.ArrowException as error:
        raise OSError(f"row group {group.number}: {one_line(error)}") from error
    images = table.column(0).combine_chunks()
    return images.field("bytes") if pyarrow.types.is_struct(images.type) else images


def read(parts: Sequence[Part], labels: bool) -> ParquetSource:
    """The images of Parquet files, of which only the metadata and the labels are read.

    Raises InputError where a file is damaged, has no column of images or labels of another type, or there is no row.
    """
    groups, told, names = list[Group](), list[NDArray[Any] | None](), set[tuple[str, ...]]()
    for part in parts:
        with opened_parquet(part.path) as file:
            some = _groups(file, part.path)
            groups += some
            if labels and some:
                values, named = _labels(file, part.path)
                told.append(values)
                names.add(named)
    if not groups:
        raise InputError(f"{parts[0].path}: there is no row in it")
    source = ParquetSource(groups)
    found = [values for values in told if values is not None]
    if found and len(found) == len(told):
        if len(names) > 1 or len({values.dtype.kind for values in found}) > 1:
            raise InputError(f"{parts[0].path} and others name other classes; take none with --data.labels false")
        source.labels, source.class_names = np.concatenate(found), names.pop()
    return source


def _groups(file: Any, path: Path) -> list[Group]:
    column, found, before = _image_column(file.schema_arrow, path), list[Group](), 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = next(int(one.total_uncompressed_size) for one in chunks if one.path_in_schema == column)
        found += [Group(path, number, before, group.num_rows, size, column)] if group.num_rows else []
        before += group.num_rows
    return found


def _image_column(schema: Any, path: Path) -> str:
    """The column with the bytes of images."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    found = dict[str, str]()
    for field in schema:
        kind = field.type
        if is_bytes(kind):
            found[field.name] = field.name
        elif types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind["bytes"].type):
            found[field.name] = f"{field.name}.bytes"
    if len(found) > 1:
        found = {name: column for name, column in found.items() if name in _IMAGES} or found
    if len(found) != 1:
        wrong = f"columns {', '.join(found)} may be images, name one image" if found else "it has no column of images"
        fields = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(f"{path}: {wrong}; there are {fields}, and images are bytes or the struct {{bytes, path}}")
    return next(iter(found.values()))


def _labels(file: Any, path: Path) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """(labels of a file, their names); no labels where no column is one, or a value is missing."""
    from pyarrow import types

    schema = file.schema_arrow
    column = next((name for name in _LABELS if name in schema.names), None)
    if column is None:
        return None, ()
    values = file.read(columns=[column], use_threads=False).column(0)
    kind = values.type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(
            f"{path}: column {column} has type {kind}, not whole numbers or texts; "
            "take no classes with --data.labels false"
        )
    try:  # names of numbers, as `datasets` keeps them in the metadata
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column].get("names")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        names = None
    return None if values.null_count else np.asarray(values.to_pylist()), tuple(map(str, names or ()))
