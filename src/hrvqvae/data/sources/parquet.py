"""Parquet files with a column of images, the form of data sets on the Hugging Face hub
(docs/own-data.md).

An image is named by the path in its row if all these paths differ, else by its file and row. A row
group can only be read as a whole, so each process keeps the last row groups that it read, up to
`WINDOW_BYTES`. An epoch shuffles the row groups and divides them into windows of up to
`WINDOW_BYTES`. It shuffles the images of each window together.
"""

from __future__ import annotations

import hashlib
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

from hrvqvae.data.images import open_image_file
from hrvqvae.data.sources import Shard, Source, decode_name, encode_names
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line

WINDOW_BYTES = (
    256 * 2**20
)  # uncompressed size of the row groups that a process keeps, and shuffles together
_MAX_GROUP_BYTES = 2**31  # pyarrow's arrays of bytes hold less
# The preferred names first.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


class Group(NamedTuple):
    """A row group of a file."""

    file: Path
    name: str  # path relative to the folder
    position: int  # index of the group in the file
    first_row: int  # index of the group's first row in the file
    rows: int
    bytes: int  # uncompressed size of the group
    column: str  # path of the column with the bytes of images


class ParquetSource(Source):
    """The images of Parquet files, row group after row group."""

    def __init__(self, shards: Sequence[Shard], labels: bool) -> None:
        """Open the images of Parquet files; read only the metadata and the labels.

        Raises InputError if a file is damaged, has no column of images or unusable labels, or if no
        file has a row.
        """
        groups = list[Group]()
        labels_of_files = list[NDArray[Any] | None]()
        class_lists = set[tuple[str, ...]]()
        for shard in shards:
            with open_parquet(shard.path) as file:
                rows = file.metadata.num_rows
                file_size = shard.path.stat().st_size
                if rows > file_size:
                    raise InputError(
                        f"{shard.path} has {rows:,} rows in {file_size:,} bytes, which are no"
                        " images"
                    )
                column = _find_image_column(file.schema_arrow, shard.path)
                first_row = 0
                for index in range(file.num_row_groups):
                    group = file.metadata.row_group(
                        index
                    )  # with damaged statistics, `group.column` crashes
                    if group.num_rows:
                        size = group.total_byte_size
                        if size >= _MAX_GROUP_BYTES:
                            fault = (
                                f"row group {index} holds {size:,} bytes, {_MAX_GROUP_BYTES:,} or"
                                " more"
                            )
                            raise InputError(
                                f"{shard.path}: {fault}; write it again with row_group_size=1000"
                            )
                        groups.append(
                            Group(
                                shard.path,
                                shard.name,
                                index,
                                first_row,
                                group.num_rows,
                                size,
                                column,
                            )
                        )
                    first_row += group.num_rows
                if labels and rows:
                    values, class_names = _read_labels(file, shard.path)
                    labels_of_files.append(values)
                    class_lists.add(class_names)
        if not groups:
            raise InputError(f"{shards[0].path}: there is no row in it")
        super().__init__(group.rows for group in groups)
        self.groups = tuple(groups)
        self._max_bytes = WINDOW_BYTES
        self._cache: OrderedDict[int, Any] = OrderedDict()
        complete = [values for values in labels_of_files if values is not None]
        if complete and len(complete) == len(labels_of_files):  # every file has all its labels
            if len(class_lists) > 1 or len({values.dtype.kind for values in complete}) > 1:
                raise InputError(
                    f"{shards[0].path} and others name different classes; use --data.labels false"
                )
            self.labels = np.concatenate(complete)
            self.class_names = class_lists.pop()

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # a worker process reads the paths and row groups anew
        return {name: value for name, value in vars(self).items() if name != "_paths"} | {
            "_cache": OrderedDict()
        }

    @cached_property
    def _paths(self) -> NDArray[np.bytes_] | None:
        """The path that each row gives its image; None if a path is missing or no text, or two
        paths are equal.
        """
        paths = list[str]()
        for file, column in dict.fromkeys(
            (group.file, group.column.removesuffix(".bytes")) for group in self.groups
        ):
            with open_parquet(file) as reader:
                if f"{column}.path" not in {
                    reader.schema.column(index).path for index in range(len(reader.schema))
                }:
                    return None
                values = reader.read(columns=[f"{column}.path"], use_threads=False).column(0)
                paths += [
                    value for chunk in values.chunks for value in chunk.field("path").to_pylist()
                ]
        named = all(isinstance(path, str) for path in paths) and len(set(paths)) == len(paths)
        return encode_names(paths) if named else None

    def name(self, row: int) -> str:
        if self._paths is not None:
            return decode_name(self._paths, row)
        index, offset = self.locate(row)
        return f"{self.groups[index].name}/{self.groups[index].first_row + offset}"

    def where(self, row: int) -> str:
        index, offset = self.locate(row)
        return f"{self.groups[index].file}: row {self.groups[index].first_row + offset}"

    def open(self, row: int) -> Image.Image:
        index, offset = self.locate(row)
        if index in self._cache:
            self._cache.move_to_end(index)
        else:
            group = self.groups[index]
            while (
                self._cache
                and sum(self.groups[kept].bytes for kept in self._cache) + group.bytes
                > self._max_bytes
            ):
                self._cache.popitem(last=False)
            self._cache[index] = _read_group(group)
        encoded = self._cache[index][offset].as_py()
        if encoded is None:
            raise ValueError("the row holds no bytes")
        return open_image_file(io.BytesIO(encoded))

    def content(self, row: int, ending: bool) -> bytes:
        return self._footers

    @cached_property
    def _footers(self) -> bytes:
        """A digest of the footers of all files, which hold the sizes and offsets of the columns of
        each row group.
        """
        state = hashlib.blake2b(digest_size=16)
        for path in dict.fromkeys(group.file for group in self.groups):
            with path.open("rb") as stream:
                stream.seek(-8, io.SEEK_END)
                length = int.from_bytes(stream.read(4), "little")
                stream.seek(-8 - length, io.SEEK_END)
                state.update(stream.read(length))
        return state.digest()

    def order(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        group_of_row = np.searchsorted(self.first_rows, rows, "right") - 1
        present, counts = np.unique(group_of_row, return_counts=True)
        sizes = np.array([self.groups[index].bytes for index in present])
        if sizes.sum() <= self._max_bytes:
            return super().order(rows, rng)
        windows = np.empty(len(present), np.int64)  # the window of each row group
        window = 0
        filled = 0
        for index in rng.permutation(len(present)):
            if filled and filled + sizes[index] > self._max_bytes:
                window = window + 1
                filled = 0
            windows[index] = window
            filled += sizes[index]
        return np.lexsort(
            (rng.random(len(rows)), np.repeat(windows, counts))
        )  # `rows` are in ascending order


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[Any]:
    """Open a Parquet file with options of pyarrow. Until it closes, all errors but InputError are
    DamagedFileError.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, **options) as file:
            yield file
    except InputError:
        raise
    except Exception as error:
        raise DamagedFileError(
            f"{path} is damaged, or no Parquet file ({one_line(error)}); write it again"
        ) from error


def _read_group(group: Group) -> Any:
    """Return the images of a row group. Only this thread reads: pyarrow's threads do not survive a
    fork.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(group.file, pre_buffer=False) as file:
            table = file.read_row_group(group.position, columns=[group.column], use_threads=False)
    except pyarrow.ArrowException as error:
        raise OSError(f"row group {group.position}: {one_line(error)}") from error
    images = table.column(0).combine_chunks()
    return images.field("bytes") if pyarrow.types.is_struct(images.type) else images


def _find_image_column(schema: Any, path: Path) -> str:
    """Return the column with the bytes of images. Raises InputError if there is no such column, or
    several.
    """
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(
            types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        )

    columns = dict[str, str]()
    for field in schema:
        kind = field.type
        if is_bytes(kind):
            columns[field.name] = field.name
        elif (
            types.is_struct(kind)
            and kind.get_field_index("bytes") >= 0
            and is_bytes(kind["bytes"].type)
        ):
            columns[field.name] = f"{field.name}.bytes"
    if len(columns) > 1:
        columns = {
            name: column for name, column in columns.items() if name in IMAGE_COLUMNS
        } or columns
    if len(columns) != 1:
        fault = (
            f"columns {', '.join(columns)} may be images, name one image"
            if columns
            else "no column holds images"
        )
        fields = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{path}: {fault}; there are {fields}, and images are bytes or the struct {{bytes,"
            " path}"
        )
    return next(iter(columns.values()))


def _read_labels(file: Any, path: Path) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Return the labels of a file and the names of its classes; the labels are None if any label is
    missing.
    """
    import pyarrow.parquet
    from pyarrow import types

    schema = file.schema_arrow
    column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if column is None:
        return None, ()
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        fault = f"column {column} has type {kind}, no numbers or texts"
        raise InputError(f"{path}: {fault}; leave it out, or train with --data.labels false")
    try:  # the library `datasets` keeps the class names in this metadata
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column].get(
            "names"
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        names = None
    with pyarrow.parquet.ParquetFile(
        path, read_dictionary=[column]
    ) as reader:  # hold equal texts only once
        values = reader.read(columns=[column], use_threads=False).column(0)
    labels: NDArray[Any] | None = None
    if not values.null_count and types.is_integer(kind):
        labels = values.to_numpy()
        if labels.max(initial=0) >= 2**63:
            raise InputError(
                f"{path}: column {column} has labels of 2^63 or more; use --data.labels false"
            )
    elif not values.null_count:
        texts = values.unify_dictionaries().combine_chunks()
        labels = np.array(texts.dictionary.to_pylist(), object)[texts.indices.to_numpy()]
    return labels, tuple(map(str, names or ())) if types.is_integer(kind) else ()
