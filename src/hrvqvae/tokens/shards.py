"""Shards of codes: Parquet files of one format, written whole or not at all, and read row group by row group.

docs/tokens.md is the page of the format. Shard i holds the images i * S to (i + 1) * S - 1 by their sorted keys.

OUT/_manifest.json        the plan
    part-000000.parquet   the first S images, and so on
    retry-000000.parquet  images that were broken at first and could be read later
    _broken.jsonl         key and error of each image that is in no shard
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hrvqvae import __version__
from hrvqvae.config import Grid
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import write_atomic

FORMAT = "1"
SUFFIX = ".parquet"
MANIFEST = "_manifest.json"  # tools that read a folder of Parquet pass over names that begin so
_PREFIX = "hrvqvae."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder of shards is made of."""

    model: str  # digest of the weights
    image_size: int | None  # height and width that every image is brought to; None keeps each image's own
    keys: int  # how many images there are
    keys_digest: str  # of their keys and labels, in order
    shard_size: int  # images of a shard
    beam: int | None = None  # paths that the search keeps at each level; None keeps as many as in training

    @property
    def parts(self) -> dict[str, range]:
        """The file of each shard, and the places of its images in the order of the keys."""
        starts = range(0, self.keys, self.shard_size)
        places = [range(start, min(self.keys, start + self.shard_size)) for start in starts]
        return {f"part-{number:06d}{SUFFIX}": some for number, some in enumerate(places)}

    @staticmethod
    def of(folder: Path) -> Plan | None:
        """The plan of a folder; None where there is none. Raises DamagedFileError."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            plan = Plan(**json.loads(path.read_text()))
            if plan.keys < 1 or plan.shard_size < 1:
                raise ValueError("it has no images")
            return plan
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(f"{path} is damaged ({error}); begin anew in another folder") from error

    def begin(self, folder: Path) -> None:
        """Write the plan of a new folder, or compare it with the folder's own.

        Raises:
            InputError: the folder was begun otherwise, or holds shards without a plan.
            OSError: the folder can't be written.
        """
        found = Plan.of(folder)
        if found is None:
            if any(folder.glob(f"*{SUFFIX}")):
                raise InputError(f"{folder} holds {SUFFIX} files, but no {MANIFEST}; choose another folder")
            write_atomic(folder / MANIFEST, f"{json.dumps(dataclasses.asdict(self), indent=2)}\n".encode())
            return
        for name, here in dataclasses.asdict(self).items():
            there = getattr(found, name)
            if there != here:
                raise InputError(f"{folder} was begun with {_SAID[name]}: {there}, not {here}; choose another folder")


_SAID = {
    "model": "another model", "image_size": "images of another size", "beam": "another --beam",
    "keys": "other images", "keys_digest": "images of other names or labels", "shard_size": "another --shard-size",
}  # fmt: skip


def metadata(
    model: str, config: Mapping[str, Any], image_size: int | None, classes: Sequence[str], broken: Mapping[str, str]
) -> dict[str, str]:
    """The key-value metadata of a shard, as docs/tokens.md has it; `broken` is key -> why."""
    values = {
        "format": FORMAT, "model": model, "config": json.dumps(config, sort_keys=True),
        "image_size": json.dumps(image_size), "classes": json.dumps(list(classes)), "version": __version__,
        "broken": json.dumps([{"key": key, "error": error} for key, error in broken.items()]),
    }  # fmt: skip
    return {f"{_PREFIX}{name}": value for name, value in values.items()}


def _read_metadata(metadata: Mapping[bytes, bytes] | None, path: Path) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """(model, classes, broken) of a shard. Raises InputError where it is not of this format."""
    plain = ([one.decode(errors="replace") for one in pair] for pair in (metadata or {}).items())
    values = {name.removeprefix(_PREFIX): text for name, text in plain if name.startswith(_PREFIX)}
    if "format" not in values or "model" not in values:
        raise InputError(f"{path} is no shard of codes: its metadata has no {_PREFIX}format and {_PREFIX}model")
    if values["format"] != FORMAT:
        raise InputError(f"{path} is of version {values['format']} of the format; only {FORMAT} is read")
    try:
        broken = {str(one["key"]): str(one["error"]) for one in json.loads(values.get("broken", "[]"))}
        return values["model"], tuple(map(str, json.loads(values.get("classes", "[]")))), broken
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFileError(f"{path} has damaged metadata ({error})") from error


@dataclass(frozen=True)
class Rows:
    """Images of a shard."""

    keys: Sequence[str]
    labels: Sequence[str | int | None]  # a class name or a whole number; None where an image has none
    sizes: Sequence[Grid]  # (height, width) in pixels, as it was coded
    grids: Sequence[Sequence[Grid]]  # of each level, the (H_l, W_l) of each image
    codes: Sequence[Sequence[NDArray[Any]]]  # of each level, the codes of each image, H_l * W_l in raster order

    def __len__(self) -> int:
        return len(self.keys)


def schema(symbols: Sequence[int], label: pa.DataType) -> pa.Schema:
    """The columns of the shards of a model with so many symbols a level, in the smallest type that holds them."""
    columns = [("key", pa.string()), ("label", label), ("height", pa.int32()), ("width", pa.int32())]
    for level, number in enumerate(symbols, start=1):
        codes = pa.list_(pa.from_numpy_dtype(np.min_scalar_type(number - 1)))
        columns += [(f"height_{level}", pa.int32()), (f"width_{level}", pa.int32()), (f"codes_{level}", codes)]
    return pa.schema(columns)


@dataclass(frozen=True)
class Shards:
    """Shards that belong together, in order."""

    paths: tuple[Path, ...]
    model: str  # digest of its weights
    classes: tuple[str, ...]  # of the first
    count: int  # images in all
    broken: Mapping[str, str]  # key -> why, of the images that could not be read

    def rows(self, levels: int) -> Iterator[Rows]:
        """Every row group, with the codes of the first `levels` levels.

        Raises:
            DamagedFileError: a file is damaged, has not the columns of the format, or codes that fill no grid.
        """
        kinds = {"key": pa.string(), "height": pa.int64(), "width": pa.int64()}
        for level in range(1, levels + 1):
            kinds |= {
                f"height_{level}": pa.int64(),
                f"width_{level}": pa.int64(),
                f"codes_{level}": pa.list_(pa.int64()),
            }
        for path in self.paths:
            with _opened(path) as file:
                for number in range(file.num_row_groups):
                    if len(table := file.read_row_group(number, columns=[*kinds, "label"])):
                        yield _rows(table, path, kinds, levels)


def _rows(table: pa.Table, path: Path, kinds: Mapping[str, pa.DataType], levels: int) -> Rows:
    try:
        labels = table.column("label").to_pylist()
        table = table.select([*kinds]).cast(pa.schema(kinds))
    except (KeyError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path} has other columns than docs/tokens.md says ({_line(error)})") from error
    if any(column.null_count for column in table.columns):
        raise DamagedFileError(f"{path} has nulls; only labels may be null")

    def pairs(end: str) -> list[Grid]:
        columns = (table.column(f"{side}{end}").to_pylist() for side in ("height", "width"))
        return list(zip(*columns, strict=True))

    grids, codes = [], []
    for level in range(1, levels + 1):
        column = table.column(f"codes_{level}").combine_chunks()
        if column.values.null_count:
            raise DamagedFileError(f"{path}: codes_{level} has nulls; only labels may be null")
        values = column.values.to_numpy()
        grids.append(pairs(f"_{level}"))
        codes.append([values[start:end] for start, end in pairwise(column.offsets.to_numpy())])
        for place, ((height, width), one) in enumerate(zip(grids[-1], codes[-1], strict=True)):
            if min(height, width) < 1 or len(one) != height * width:
                key = table.column("key")[place].as_py()
                raise DamagedFileError(f"{path}: {key} has {len(one)} codes of level {level} for {height}x{width}")
    return Rows(table.column("key").to_pylist(), labels, pairs(""), grids, codes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # what is damaged raises whatever its reader runs into
        raise DamagedFileError(
            f"{path} is damaged or cut short ({_line(error)}); delete it, and make it anew"
        ) from error


def open_shards(paths: Sequence[Path]) -> Shards:
    """These files as shards that belong together.

    Raises InputError where one is none, of another version of the format, or of another model than the first, and
    DamagedFileError where one is damaged.
    """
    told, count = [], 0
    for path in paths:
        with _opened(path) as file:
            told.append(_read_metadata(file.metadata.metadata, path))
            count += file.metadata.num_rows
        if told[-1][0] != told[0][0]:
            raise InputError(f"{path} and {paths[0].name} are of two models; shards of one model belong together")
    model, classes, _ = told[0]
    return Shards(tuple(paths), model, classes, count, {key: why for *_, broken in told for key, why in broken.items()})


def named_shards(path: Path) -> Shards:
    """The shards of a folder, in the order of their names, or one file.

    Raises as `open_shards`, and InputError where there are none, or `tokenize` has not finished the folder.
    """
    if not path.is_dir():
        return open_shards([path])
    plan = Plan.of(path)
    left = [name for name in plan.parts if not (path / name).is_file()] if plan else []
    if plan and left:
        raise InputError(
            f"{path} lacks {left[0]}, {len(left):,} of {len(plan.parts):,} shards; run the same hrvqvae tokenize again"
        )
    paths = sorted(one for one in path.glob(f"*{SUFFIX}") if not one.name.startswith("."))
    if not paths:
        raise InputError(f"{path} has no shards ({SUFFIX}); make them: hrvqvae tokenize MODEL SOURCE {path}")
    return open_shards(paths)
