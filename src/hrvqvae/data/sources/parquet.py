"""Parquet files with a column of images, the form of data sets on the Hugging Face hub
(docs/own-data.md).

An image is named by the path in its row if all these paths differ, else by its file and row. A row
group can only be read as a whole, so each process keeps the last row groups that it read, up to
`WINDOW_BYTES`. An epoch shuffles the row groups and divides them into windows of up to
`WINDOW_BYTES`. It shuffles the images of each window together.
"""

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import open_image_file
from hrvqvae.data.sources import Shard, Source, decode_name, encode_names
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line
from hrvqvae.utils.quantities import counted

# uncompressed size of the row groups that a process keeps, and of those that are shuffled together
WINDOW_BYTES = 256 * 2**20
_MAX_GROUP_BYTES = 2**31  # pyarrow's arrays of bytes hold less than this
# The preferred names first.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


class Group(NamedTuple):
    """A row group of a file."""

    shard: Shard
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
        labels_of_files = list[tuple[Any, tuple[str, ...]]]()
        unlabelled = 0
        for shard in shards:
            with open_parquet(shard.path) as file:
                groups += _list_groups(file, shard)
                if labels and file.metadata.num_rows:
                    values, names, missing = _read_labels(file, shard.path)
                    labels_of_files.append((values, names))
                    unlabelled += missing
        if not groups:
            raise InputError(f"{shards[0].path}: there is no row in it")
        super().__init__(group.rows for group in groups)
        self.groups = tuple(groups)
        self._max_bytes = WINDOW_BYTES
        self._cache: OrderedDict[int, Any] = OrderedDict()
        if 0 < unlabelled < len(self):
            self.unlabelled = f"{counted(unlabelled, 'image')} without a label"
        elif labels_of_files and not unlabelled:
            if len({(values.dtype.kind, names) for values, names in labels_of_files}) > 1:
                raise InputError(
                    f"{shards[0].path} and others name different classes; use --data.labels false"
                )
            self.labels = np.concatenate([values for values, _ in labels_of_files])
            self.class_names = labels_of_files[0][1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what a worker process reads anew: the paths and row groups."""
        state = vars(self) | {"_cache": OrderedDict()}
        state.pop("_paths", None)
        return state

    @cached_property
    def _paths(self) -> NDArray[np.bytes_] | None:
        """The path that each row gives its image; None if a path is missing or no text, or two
        paths are equal.
        """
        paths = list[str]()
        files = {group.shard.path: group.column for group in self.groups}
        for file, image_column in files.items():
            column = f"{image_column.removesuffix('.bytes')}.path"
            with open_parquet(file) as reader:
                schema = reader.schema
                if column not in {schema.column(index).path for index in range(len(schema))}:
                    return None
                # pyarrow returns the struct with this field alone
                for chunk in reader.read(columns=[column], use_threads=False).column(0).chunks:
                    paths += chunk.field("path").to_pylist()
        named = all(isinstance(path, str) for path in paths) and len(set(paths)) == len(paths)
        return encode_names(paths) if named else None

    def name(self, row: int) -> str:
        if self._paths is not None:
            return decode_name(self._paths, row)
        index, offset = self.locate(row)
        group = self.groups[index]
        return f"{group.shard.name}/{group.first_row + offset}"

    def where(self, row: int) -> str:
        index, offset = self.locate(row)
        group = self.groups[index]
        return f"{group.shard}: row {group.first_row + offset}"

    def open(self, row: int) -> Image.Image:
        index, offset = self.locate(row)
        if index in self._cache:
            self._cache.move_to_end(index)
        else:
            group = self.groups[index]
            room = self._max_bytes - group.bytes  # for the other groups
            while self._cache and sum(self.groups[kept].bytes for kept in self._cache) > room:
                self._cache.popitem(last=False)
            self._cache[index] = _read_group(group)
        encoded = self._cache[index][offset].as_py()
        if encoded is None:
            raise ValueError("the row holds no bytes")
        return open_image_file(io.BytesIO(encoded))

    def content(self, row: int, ending: bool) -> bytes:
        """Return a digest of all footers, for every image alike: the size of an image is in its row
        group, which would have to be read.
        """
        return self._footers

    @cached_property
    def _footers(self) -> bytes:
        """A digest of the footers of all files, which hold the sizes and offsets of the columns of
        each row group.
        """
        state = hashlib.blake2b(digest_size=16)
        for path in dict.fromkeys(group.shard.path for group in self.groups):
            with path.open("rb") as stream:
                stream.seek(-8, io.SEEK_END)
                length = int.from_bytes(stream.read(4), "little")
                stream.seek(-8 - length, io.SEEK_END)
                state.update(stream.read(length))
        return state.digest()

    def order(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        group_of_row = np.searchsorted(self.first_rows, rows, "right") - 1
        present, place_of_row = np.unique(group_of_row, return_inverse=True)
        sizes = np.array([self.groups[index].bytes for index in present])
        if sizes.sum() <= self._max_bytes:
            return super().order(rows, rng)
        windows = np.empty(len(present), np.int64)  # the window of each row group
        window = 0
        filled = 0
        for place in rng.permutation(len(present)):
            if filled and filled + sizes[place] > self._max_bytes:
                window += 1
                filled = 0
            windows[place] = window
            filled += sizes[place]
        # window by window, and at random within a window
        return np.lexsort((rng.random(len(rows)), windows[place_of_row]))


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[Any]:
    """Open a Parquet file with options of pyarrow. Errors in the body of the `with` are raised as
    DamagedFileError, except InputError and its kinds.
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
        with pyarrow.parquet.ParquetFile(group.shard.path, pre_buffer=False) as file:
            table = file.read_row_group(group.position, columns=[group.column], use_threads=False)
    except pyarrow.ArrowException as error:
        raise OSError(f"row group {group.position}: {one_line(error)}") from error
    images = table.column(0).combine_chunks()
    return images.field("bytes") if pyarrow.types.is_struct(images.type) else images


def _list_groups(file: Any, shard: Shard) -> Iterator[Group]:
    """Yield the row groups of an open file that have rows. Raises InputError if these are no
    images, or too large.
    """
    path = shard.path
    rows = file.metadata.num_rows
    file_size = path.stat().st_size
    if rows > file_size:  # a damaged or forged count, which would fill the memory
        raise InputError(f"{path} has {rows:,} rows in {file_size:,} bytes, which are no images")
    column = _find_image_column(file.schema_arrow, path)
    first_row = 0
    for index in range(file.num_row_groups):
        # The size of the whole group: asking the metadata of one column (`metadata.column`) crashes
        # if its statistics are damaged.
        metadata = file.metadata.row_group(index)
        size = metadata.total_byte_size
        if metadata.num_rows:
            if size >= _MAX_GROUP_BYTES:
                raise InputError(
                    f"{path}: row group {index} holds {size:,} bytes, {_MAX_GROUP_BYTES:,} or more;"
                    " write it again with row_group_size=1000"
                )
            yield Group(shard, index, first_row, metadata.num_rows, size, column)
        first_row += metadata.num_rows


def _find_image_column(schema: Any, path: Path) -> str:
    """Return the column with the bytes of images. Raises InputError if there is no such column, or
    several.
    """
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return any(
            test(kind) for test in (types.is_binary, types.is_large_binary, types.is_binary_view)
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
    preferred = [name for name in columns if name in IMAGE_COLUMNS]
    if len(columns) > 1 and len(preferred) == 1:
        return columns[preferred[0]]
    if len(columns) != 1:
        fault = "no column holds images"
        if columns:
            fault = f"columns {', '.join(preferred or columns)} may be images, name one image"
        fields = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{path}: {fault}; there are {fields}, and images are bytes or the struct {{bytes,"
            " path}"
        )
    return next(iter(columns.values()))


def _read_labels(file: Any, path: Path) -> tuple[NDArray[Any], tuple[str, ...], int]:
    """Return the labels of a file, the names of its classes, and the number of rows without a
    label. If there are such rows, labels and names are empty.
    """
    from pyarrow import types

    schema = file.schema_arrow
    column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    nothing = np.empty(0)
    if column is None:
        return nothing, (), file.metadata.num_rows
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(
            f"{path}: column {column} has type {kind}, no numbers or texts; leave it out, or train"
            " with --data.labels false"
        )
    # `read_dictionary`: equal texts are held once; numbers are read as they are.
    with open_parquet(path, read_dictionary=[column]) as reader:
        values = reader.read(columns=[column], use_threads=False).column(0)
    if values.null_count:
        return nothing, (), values.null_count
    if not types.is_integer(kind):
        texts = values.unify_dictionaries().combine_chunks()
        return np.array(texts.dictionary.to_pylist(), object)[texts.indices.to_numpy()], (), 0

    names: Any = ()
    # The library `datasets` keeps the class names in this metadata.
    with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column].get("names") or ()
    labels = values.to_numpy()
    if labels.max(initial=0) >= 2**63:  # more than int64 holds
        raise InputError(
            f"{path}: column {column} has labels of 2^63 or more; use --data.labels false"
        )
    return labels, tuple(map(str, names)), 0
