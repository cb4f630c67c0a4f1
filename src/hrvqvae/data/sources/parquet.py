"""Parquet files with a column of images, as data sets of the Hugging Face hub are kept.

The column holds the bytes of PNG, JPEG and WebP files, or the hub's struct {bytes, path}. A column `label` or `labels`
holds numbers or texts; names of numbers are read from the features that `datasets` keeps in the file. An image is named
by its path where the struct has another one for each, else by its file and row.

A row group is the least that can be read, and it may hold a hundred images or a hundred thousand. So each process keeps
the row groups that it read last, up to `WINDOW_BYTES`, and the order of an epoch stays within so many: the row
groups are drawn in a new order, those that fit into the window together are taken together, and their images are drawn
in any order. It is a function of (seed, epoch) as every order is. A set that fits as a whole is drawn as a folder is.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import opened_file
from hrvqvae.data.sources.base import Part, Source, file_parts
from hrvqvae.utils.errors import InputError

WINDOW_BYTES = 256 * 2**20  # of row groups, uncompressed, that are drawn from together and that a process keeps
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")

parts = file_parts


class Group(NamedTuple):
    """A row group.

    Attributes:
        file: the file that it is in.
        number: among those of the file.
        before: rows of the file before it.
        rows: its rows.
        bytes: what its images take when they are read.
    """

    file: Path
    number: int
    before: int
    rows: int
    bytes: int


class ParquetSource(Source):
    """The images of Parquet files, row after row.

    Args:
        groups: the row groups, in order.
        columns: of each file, the name of its column of images, down to the bytes.
        window: bytes of row groups that are kept.
    """

    def __init__(self, groups: Sequence[Group], columns: dict[Path, str], window: int | None = None) -> None:
        self.groups, self._columns = tuple(groups), columns
        self._window = WINDOW_BYTES if window is None else window
        self._first = np.cumsum([0, *(group.rows for group in groups)])
        self._read: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_paths"} | {"_read": OrderedDict()}

    def __len__(self) -> int:
        return int(self._first[-1])

    def _place(self, row: int) -> tuple[int, int]:
        """(row group, row in it)."""
        group = int(np.searchsorted(self._first, row, "right")) - 1
        return group, row - int(self._first[group])

    @cached_property
    def _paths(self) -> Any:
        """The paths that the files give their images, as one array; None where they are not a name for each."""
        import pyarrow
        import pyarrow.parquet

        chunks = list[Any]()
        for file, column in self._columns.items():
            path = f"{column.removesuffix('.bytes')}.path"
            with pyarrow.parquet.ParquetFile(file) as opened:
                if path not in {opened.schema.column(place).path for place in range(len(opened.schema))}:
                    return None
                table = opened.read(columns=[path], use_threads=False)
            chunks += [chunk.field("path").cast(pyarrow.large_string()) for chunk in table.column(0).chunks]
        paths = pyarrow.chunked_array(chunks, pyarrow.large_string()).combine_chunks()
        paths = pyarrow.concat_arrays(paths.chunks) if isinstance(paths, pyarrow.ChunkedArray) else paths
        return None if paths.null_count or len(paths.unique()) < len(paths) else paths

    def name(self, row: int) -> str:
        if self._paths is not None:
            return str(self._paths[row].as_py())
        group, within = self._place(row)
        return f"{self.groups[group].file.name}/{self.groups[group].before + within}"

    def where(self, row: int) -> str:
        group, within = self._place(row)
        return f"{self.groups[group].file}: row {self.groups[group].before + within}"

    def open(self, row: int) -> Image.Image:
        group, within = self._place(row)
        content = self._group(group)[within].as_py()
        if content is None:
            raise ValueError("the row holds no bytes")
        return opened_file(io.BytesIO(content))

    def _group(self, number: int) -> Any:
        """The column of images of a row group: an array of bytes, from those that are kept if it is among them."""
        if number in self._read:
            self._read.move_to_end(number)
            return self._read[number]
        group = self.groups[number]
        while self._read and sum(self.groups[one].bytes for one in self._read) + group.bytes > self._window:
            self._read.popitem(last=False)
        self._read[number] = _bytes_of(group, self._columns[group.file])
        return self._read[number]

    def order(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        group_of = np.searchsorted(self._first, rows, "right") - 1
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


def _bytes_of(group: Group, column: str) -> Any:
    """The column of images of a row group, read by this thread alone: other threads do not outlive a fork."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(group.file, pre_buffer=False) as file:
            table = file.read_row_group(group.number, columns=[column], use_threads=False)
    except pyarrow.ArrowException as error:
        raise OSError(f"row group {group.number}: {_line(error)}") from error
    images = table.column(0).combine_chunks()
    images = images.chunk(0) if isinstance(images, pyarrow.ChunkedArray) else images
    return images.field("bytes") if pyarrow.types.is_struct(images.type) else images


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _image_column(schema: Any, path: Path) -> str:
    """The column with the bytes of images. Raises InputError where there is none, or no telling which."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    found = {field.name: field.name for field in schema if is_bytes(field.type)}
    for field in schema:
        if (
            types.is_struct(field.type)
            and field.type.get_field_index("bytes") >= 0
            and is_bytes(field.type["bytes"].type)
        ):
            found[field.name] = f"{field.name}.bytes"
    if len(found) > 1:
        found = {name: column for name, column in found.items() if name in _IMAGES} or found
    if len(found) != 1:
        wrong = f"columns {', '.join(found)} may be images" if found else "it has no column of images"
        raise InputError(
            f"{path}: {wrong}; there are {', '.join(f'{field.name} ({field.type})' for field in schema)}. One column "
            "must hold bytes of image files, as such or as the struct {bytes, path}; of several, name one image"
        )
    return str(next(iter(found.values())))


def _label_names(schema: Any, column: str) -> tuple[str, ...]:
    """Names of a column's numbers, as `datasets` keeps them in the metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column].get("names") or ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


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
            f"{path}: column {column} has type {kind}; labels are whole numbers or texts. "
            "Take no classes with --data.labels false"
        )
    if values.null_count:
        return None, ()
    return np.asarray(values.to_pylist()), _label_names(schema, column)


def read(parts: Sequence[Part], labels: bool) -> ParquetSource:
    """The images of Parquet files. Only their descriptions and their labels are read.

    Raises:
        InputError: a file is damaged, has no column of images or labels that are none, or there is no row in any.
    """
    import pyarrow
    import pyarrow.parquet

    groups, columns, told, names = list[Group](), dict[Path, str](), list[Any](), set[tuple[str, ...]]()
    for part in parts:
        try:
            with pyarrow.parquet.ParquetFile(part.path) as file:
                columns[part.path] = _image_column(file.schema_arrow, part.path)
                before = 0
                for number in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(number)
                    if group.num_rows:
                        size = _size(group, columns[part.path])
                        groups.append(Group(part.path, number, before, group.num_rows, size))
                    before += group.num_rows
                if labels and before:
                    some, named = _labels(file, part.path)
                    told.append(some)
                    names.add(named)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{part.path} is damaged, or no Parquet file ({_line(error)})") from error
    if not groups:
        raise InputError(f"{parts[0].path}: there is no row in it")
    source = ParquetSource(groups, columns)
    if told and not any(some is None for some in told):
        if len(names) > 1 or len({some.dtype.kind for some in told}) > 1:
            raise InputError(f"{parts[0].path} and others name other classes; take none with --data.labels false")
        source.labels, source.class_names = np.concatenate(told), names.pop()
    return source


def _size(group: Any, column: str) -> int:
    """Bytes of a column in a row group, uncompressed."""
    found = (group.column(place) for place in range(group.num_columns))
    return next(int(chunk.total_uncompressed_size) for chunk in found if chunk.path_in_schema == column)
