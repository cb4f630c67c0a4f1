"""Shards of codes: Parquet files of one format, written whole or not at all, and read row group by row group.

docs/tokens.md is the page of the format; others may write such files too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hrvqvae.config import Grid
from hrvqvae.tokens.plan import SUFFIX, require_finished
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import writing

FORMAT = "1"
ROWS = 1_000  # of a row group
_PREFIX = "hrvqvae."
_KINDS = (pa.uint8(), pa.uint16(), pa.uint32())
Codes = NDArray[Any]


@dataclass(frozen=True)
class About:
    """What a shard says of itself in its metadata.

    Attributes:
        model: the digest of the model's weights.
        config: of the model, as plain values; empty where another tool left it out.
        image_size: height and width that every image was brought to; None where each kept its own.
        classes: names of the labels, in order; empty where they are not said.
        version: of the package that wrote it; empty where another tool did.
        broken: (key, why) of the images of this shard that could not be read.
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    classes: tuple[str, ...] = ()
    version: str = ""
    broken: tuple[tuple[str, str], ...] = ()

    def metadata(self) -> dict[str, str]:
        """The file's key-value metadata."""
        broken = [{"key": key, "error": error} for key, error in self.broken]
        values = {
            "format": FORMAT, "model": self.model, "config": json.dumps(self.config, sort_keys=True),
            "image_size": json.dumps(self.image_size), "classes": json.dumps(list(self.classes)),
            "version": self.version, "broken": json.dumps(broken),
        }  # fmt: skip
        return {f"{_PREFIX}{name}": value for name, value in values.items()}

    @staticmethod
    def of(metadata: Mapping[bytes, bytes] | None, path: Path) -> About:
        """What the metadata of a file says. Raises InputError where it is not of this format."""
        plain = {
            name.decode(errors="replace"): value.decode(errors="replace") for name, value in (metadata or {}).items()
        }
        values = {name.removeprefix(_PREFIX): value for name, value in plain.items() if name.startswith(_PREFIX)}
        if "format" not in values or "model" not in values:
            raise InputError(
                f"{path} is no shard of codes: its metadata has no {_PREFIX}format and {_PREFIX}model (docs/tokens.md)"
            )
        if values["format"] != FORMAT:
            raise InputError(
                f"{path} is of version {values['format']} of the format; this package reads version {FORMAT}"
            )
        try:
            broken = [(str(one["key"]), str(one["error"])) for one in json.loads(values.get("broken", "[]"))]
            size = json.loads(values.get("image_size", "null"))
            return About(
                values["model"], json.loads(values.get("config", "{}")), None if size is None else int(size),
                tuple(map(str, json.loads(values.get("classes", "[]")))), values.get("version", ""), tuple(broken),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFileError(f"{path} has damaged metadata ({error})") from error


@dataclass(frozen=True)
class Rows:
    """Images of a shard.

    Attributes:
        keys: of each.
        labels: of each, a class name or a whole number; None where it has none.
        sizes: (height, width) of each, in pixels, as it was coded.
        grids: of each level, the (H_l, W_l) of each image.
        codes: of each level, the codes of each image, H_l * W_l in raster order.
    """

    keys: Sequence[str]
    labels: Sequence[str | int | None]
    sizes: Sequence[Grid]
    grids: Sequence[Sequence[Grid]]
    codes: Sequence[Sequence[Codes]]

    def __len__(self) -> int:
        return len(self.keys)


def kinds_of(symbols: Sequence[int]) -> list[pa.DataType]:
    """The smallest type that holds the symbols of each level."""
    return [next(kind for kind in _KINDS if number <= 1 << kind.bit_width) for number in symbols]


def schema(symbols: Sequence[int], label: pa.DataType) -> pa.Schema:
    """The columns of the shards of a model with so many symbols a level."""
    columns = [("key", pa.string()), ("label", label), ("height", pa.int32()), ("width", pa.int32())]
    for level, kind in enumerate(kinds_of(symbols), start=1):
        columns += [(f"height_{level}", pa.int32()), (f"width_{level}", pa.int32()), (f"codes_{level}", pa.list_(kind))]
    return pa.schema(columns)


def _table(rows: Rows, columns: pa.Schema) -> pa.Table:
    heights, widths = zip(*rows.sizes, strict=True)
    arrays = [pa.array(one, columns.field(at).type) for at, one in enumerate((rows.keys, rows.labels, heights, widths))]
    for grids, codes in zip(rows.grids, rows.codes, strict=True):
        heights, widths = zip(*grids, strict=True)
        kind = columns.field(len(arrays) + 2).type
        offsets = np.cumsum([0, *(len(one) for one in codes)], dtype=np.int32)
        values = pa.array(np.concatenate(codes).astype(kind.value_type.to_pandas_dtype(), copy=False))
        arrays += [pa.array(heights, pa.int32()), pa.array(widths, pa.int32())]
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), values, kind))
    return pa.Table.from_arrays(arrays, schema=columns)


class ShardWriter:
    """Takes rows; what the file says of itself is given at its end."""

    def __init__(self, writer: pq.ParquetWriter, columns: pa.Schema) -> None:
        self._writer, self._columns = writer, columns

    def write(self, rows: Rows) -> None:
        """Append a row group."""
        self._writer.write_table(_table(rows, self._columns), row_group_size=len(rows))

    def tell(self, about: About) -> None:
        """What the file says of itself."""
        self._writer.add_key_value_metadata(about.metadata())


@contextmanager
def new_shard(path: Path, columns: pa.Schema) -> Iterator[ShardWriter]:
    """Write a shard, whole or not at all. Raises OSError where the disk is full or can't be written."""
    with (
        writing(path) as temporary,
        pq.ParquetWriter(temporary, columns, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield ShardWriter(writer, columns)


@dataclass(frozen=True)
class Shards:
    """Shards that belong together, in order.

    Attributes:
        paths: of the files.
        about: of the first; the model is that of all of them.
        count: images in all.
    """

    paths: tuple[Path, ...]
    about: About
    count: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, where the shards say them."""
        return self.about.classes

    def rows(self, levels: int) -> Iterator[Rows]:
        """Every row group, with the codes of the first `levels` levels.

        Raises:
            DamagedFileError: a file is damaged, has not the columns of the format, or codes that fill no grid.
        """
        for path in self.paths:
            with _opened(path) as file:
                for number in range(file.num_row_groups):
                    with _damage(path):
                        table = file.read_row_group(number, columns=_names(levels))
                    if len(table):
                        yield _rows(table, path, levels)


def _names(levels: int) -> list[str]:
    names = ["key", "label", "height", "width"]
    for level in range(1, levels + 1):
        names += [f"height_{level}", f"width_{level}", f"codes_{level}"]
    return names


def _rows(table: pa.Table, path: Path, levels: int) -> Rows:
    missing = [name for name in _names(levels) if name not in table.column_names]
    if missing:
        raise DamagedFileError(f"{path} has no column {missing[0]}; docs/tokens.md says which there are")
    holes = [name for name in table.column_names if name != "label" and table.column(name).null_count]
    if holes:
        raise DamagedFileError(f"{path}: the column {holes[0]} has nulls; only labels may be null")

    def pairs(first: str, second: str) -> list[Grid]:
        return list(zip(table.column(first).to_pylist(), table.column(second).to_pylist(), strict=True))

    grids, codes = [], []
    for level in range(1, levels + 1):
        grids.append(pairs(f"height_{level}", f"width_{level}"))
        column = table.column(f"codes_{level}").combine_chunks()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise DamagedFileError(f"{path}: codes_{level} is {column.type}; it must be a list of whole numbers")
        if not pa.types.is_integer(column.type.value_type) or column.values.null_count:
            raise DamagedFileError(f"{path}: codes_{level} holds something else than whole numbers")
        offsets = column.offsets.to_numpy()
        values = column.values.to_numpy()
        codes.append([values[start:end] for start, end in pairwise(offsets)])
        for place, ((height, width), one) in enumerate(zip(grids[-1], codes[-1], strict=True)):
            if min(height, width) < 1 or len(one) != height * width:
                key = table.column("key")[place].as_py()
                raise DamagedFileError(f"{path}: {key} has {len(one)} codes of level {level} for {height}x{width}")
    labels = table.column("label").to_pylist()
    return Rows(table.column("key").to_pylist(), labels, pairs("height", "width"), grids, codes)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:100]
        raise DamagedFileError(f"{path} is damaged or cut short ({text}); make it anew, or get it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    with _damage(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


def read_about(path: Path) -> tuple[About, int]:
    """What a shard says of itself, and how many images it holds. Raises InputError where it is none, or damaged."""
    with _opened(path) as file:
        return About.of(file.metadata.metadata, path), file.metadata.num_rows


def open_shards(path: Path) -> Shards:
    """The shards of a folder, in the order of their names, or one file.

    Raises:
        InputError: there are none, they are of several models, of another version of the format, or a folder that
            `tokenize` has begun is not finished.
        DamagedFileError: one is damaged or cut short.
    """
    if path.is_dir():
        require_finished(path)
        paths = sorted(one for one in path.glob(f"*{SUFFIX}") if not one.name.startswith("."))
        if not paths:
            raise InputError(f"{path} has no shards ({SUFFIX}); make them: hrvqvae tokenize MODEL SOURCE {path}")
    else:
        paths = [path]
    told = [read_about(one) for one in paths]
    for one, (about, _) in zip(paths, told, strict=True):
        if about.model != told[0][0].model:
            raise InputError(
                f"{one} is of the model {about.model[:12]}, {paths[0].name} of {told[0][0].model[:12]}; "
                "shards of one model belong together"
            )
    return Shards(tuple(paths), told[0][0], sum(count for _, count in told))
