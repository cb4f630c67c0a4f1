"""Read shards of codes, which are Parquet files, and decode them to PNG files.

docs/tokens.md describes the format. Shard i holds the images i * S to (i + 1) * S - 1 by their sorted keys.

OUT/_manifest.json        the plan
    part-000000.parquet   the first S images, and so on
    retry-000000.parquet  images that were broken at first and could be read later
    _broken.jsonl         key and error of each image that is in no shard
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae import __version__
from hrvqvae.checkpoints.folder import list_models
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Grid
from hrvqvae.data.batches import group_by_size
from hrvqvae.data.images import to_pil, without_suffix, write_image
from hrvqvae.data.sources.parquet import opened_parquet
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line
from hrvqvae.utils.outputs import Outputs, write_atomic
from hrvqvae.utils.progress import task

FORMAT = "1"
SUFFIX = ".parquet"
MANIFEST = "_manifest.json"  # tools that read a folder of Parquet pass over names that begin so
_PREFIX = "hrvqvae."
_PIXELS = 1 << 18  # most pixels of the images that are decoded together


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The model, images and options of a folder of shards."""

    model: str  # digest of the weights
    image_size: int | None  # height and width that every image is brought to; None keeps each image's own
    keys: int  # how many images there are
    keys_digest: str  # of their keys and labels, in order
    shard_size: int  # images of a shard
    beam: int | None = None  # paths that the search keeps at each level; None keeps as many as in training

    @property
    def parts(self) -> dict[str, range]:
        """The indices of each shard's images by its file name, in the order of the keys."""
        starts = range(0, self.keys, self.shard_size)
        ranges = [range(start, min(self.keys, start + self.shard_size)) for start in starts]
        return {f"part-{number:06d}{SUFFIX}": indices for number, indices in enumerate(ranges)}

    @staticmethod
    def read(folder: Path) -> Plan | None:
        """Read the plan of a folder; return None if there is none. Raises DamagedFileError."""
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

    def write_or_compare(self, folder: Path) -> None:
        """Write the plan to a new folder, or compare it with the plan there.

        Raises:
            InputError: the folder was begun otherwise, or holds shards without a plan.
            OSError: the folder can't be written.
        """
        existing = Plan.read(folder)
        if existing is None:
            if any(folder.glob(f"*{SUFFIX}")):
                raise InputError(f"{folder} holds {SUFFIX} files, but no {MANIFEST}; choose another folder")
            write_atomic(folder / MANIFEST, f"{json.dumps(dataclasses.asdict(self), indent=2)}\n".encode())
            return
        for name, here in dataclasses.asdict(self).items():
            there = getattr(existing, name)
            if there != here:
                name = _NAMES.get(name, name)
                raise InputError(f"{folder} was begun with another {name}: {there}, not {here}; choose another folder")


_NAMES = {"keys": "number of images", "keys_digest": "digest of names and labels"}


def make_metadata(
    model: str, config: Mapping[str, Any], image_size: int | None, classes: Sequence[str], broken: Mapping[str, str],
    content: str,
) -> dict[str, str]:  # fmt: skip
    """Return the key-value metadata of a shard (docs/tokens.md); `broken` has the error of each key."""
    values = {
        "format": FORMAT, "model": model, "config": json.dumps(config, sort_keys=True),
        "image_size": json.dumps(image_size), "classes": json.dumps(list(classes)), "version": __version__,
        "content": content,
        "broken": json.dumps([{"key": key, "error": error} for key, error in broken.items()]),
    }  # fmt: skip
    return {f"{_PREFIX}{name}": value for name, value in values.items()}


class _Metadata(NamedTuple):
    """The metadata of a shard."""

    model: str
    content: str
    classes: tuple[str, ...]
    broken: dict[str, str]


def _read_metadata(metadata: Mapping[bytes, bytes] | None, path: Path) -> _Metadata:
    """Read the metadata of a shard. Raises InputError for a file of another format."""
    texts = ([item.decode(errors="replace") for item in pair] for pair in (metadata or {}).items())
    values = {name.removeprefix(_PREFIX): text for name, text in texts if name.startswith(_PREFIX)}
    if "format" not in values or "model" not in values:
        raise InputError(f"{path} is no shard of codes: its metadata has no {_PREFIX}format and {_PREFIX}model")
    if values["format"] != FORMAT:
        raise InputError(f"{path} is of version {values['format']} of the format; only {FORMAT} is read")
    try:
        broken = {str(image["key"]): str(image["error"]) for image in json.loads(values.get("broken", "[]"))}
        classes = tuple(map(str, json.loads(values.get("classes", "[]"))))
        return _Metadata(values["model"], values.get("content", ""), classes, broken)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFileError(f"{path} has damaged metadata ({error})") from error


@dataclass(frozen=True)
class Rows:
    """Images of a shard."""

    keys: Sequence[str]
    labels: Sequence[str | int | None]  # a class name or a whole number; None where an image has none
    sizes: Sequence[Grid]  # (height, width) in pixels, as it was coded
    codes: Sequence[Sequence[NDArray[Any]]]  # of each level, the codes (H_l, W_l) of each image

    def __len__(self) -> int:
        return len(self.keys)


def make_schema(symbols: Sequence[int], label: pa.DataType) -> pa.Schema:
    """Return the columns of shards for the number of symbols per level, with codes in the smallest type."""
    columns = [("key", pa.string()), ("label", label), ("height", pa.int32()), ("width", pa.int32())]
    for level, count in enumerate(symbols, start=1):
        codes = pa.list_(pa.from_numpy_dtype(np.min_scalar_type(count - 1)))
        columns += [(f"height_{level}", pa.int32()), (f"width_{level}", pa.int32()), (f"codes_{level}", codes)]
    return pa.schema(columns)


@dataclass(frozen=True)
class Shards:
    """Shards that belong together, in order."""

    paths: tuple[Path, ...]
    model: str  # digest of its weights
    classes: tuple[str, ...]  # of the first
    count: int  # images in all
    broken: Mapping[str, str]  # the error of each image that could not be read, by its key
    contents: tuple[str, ...]  # of each file, the digest of its images

    def rows(self, levels: int) -> Iterator[Rows]:
        """Yield every row group, with the codes of the first `levels` levels.

        Raises:
            DamagedFileError: a file is damaged, has not the columns of the format, or codes that fill no grid.
        """
        kinds = {"key": pa.string(), "height": pa.int64(), "width": pa.int64()}
        for level in range(1, levels + 1):
            kinds |= {f"height_{level}": pa.int64(), f"width_{level}": pa.int64()}
            kinds[f"codes_{level}"] = pa.list_(pa.int64())
        for path in self.paths:
            with opened_parquet(path) as file:
                for number in range(file.num_row_groups):
                    if len(table := file.read_row_group(number, columns=[*kinds, "label"])):
                        yield _rows(table, path, kinds, levels)


def _rows(table: pa.Table, path: Path, kinds: Mapping[str, pa.DataType], levels: int) -> Rows:
    try:
        labels = table.column("label").to_pylist()
        table = table.select([*kinds]).cast(pa.schema(kinds))
    except (KeyError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path} has other columns than docs/tokens.md says ({one_line(error)})") from error
    columns = {name: table.column(name).combine_chunks() for name in kinds}
    lists = [columns.pop(f"codes_{level}") for level in range(1, levels + 1)]
    if any(column.null_count for column in (*columns.values(), *lists, *(column.values for column in lists))):
        raise DamagedFileError(f"{path} has nulls; only labels may be null")
    plain, codes = {name: column.to_pylist() for name, column in columns.items()}, []
    for level, column in enumerate(lists, start=1):
        values, grids_of_codes = column.values.to_numpy(), list[NDArray[Any]]()
        grids = zip(plain["key"], plain[f"height_{level}"], plain[f"width_{level}"], strict=True)
        for (key, height, width), (start, end) in zip(grids, pairwise(column.offsets.to_numpy()), strict=True):
            if min(height, width) < 1 or end - start != height * width:
                raise DamagedFileError(f"{path}: {key} has {end - start} codes of level {level} for {height}x{width}")
            grids_of_codes.append(values[start:end].reshape(height, width))
        codes.append(grids_of_codes)
    return Rows(plain["key"], labels, list(zip(plain["height"], plain["width"], strict=True)), codes)


def open_shards(paths: Sequence[Path]) -> Shards:
    """Open files as shards of one model.

    Raises:
        InputError: a file is no shard, of another version of the format, or of another model than the first.
        DamagedFileError: a file is damaged.
    """
    read, count = list[_Metadata](), 0
    for path in paths:
        with opened_parquet(path) as file:
            read.append(_read_metadata(file.metadata.metadata, path))
            count += file.metadata.num_rows
        if read[-1].model != read[0].model:
            raise InputError(f"{path} and {paths[0].name} are of two models; shards of one model belong together")
    broken = {key: error for metadata in read for key, error in metadata.broken.items()}
    contents = tuple(metadata.content for metadata in read)
    return Shards(tuple(paths), read[0].model, read[0].classes, count, broken, contents)


def find_shards(path: Path) -> Shards:
    """Open the shards of a folder in the order of their names, or a single file.

    Raises as `open_shards`, and InputError if there are none or `tokenize` has not finished the folder.
    """
    if path.is_file():
        return open_shards([path])
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file")
    plan = Plan.read(path)
    left = [name for name in plan.parts if not (path / name).is_file()] if plan else []
    if plan and left:
        raise InputError(
            f"{path} lacks {left[0]}, {len(left):,} of {len(plan.parts):,} shards; run the same hrvqvae tokenize again"
        )
    paths = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not paths:
        raise InputError(f"{path} has no shards ({SUFFIX}); make them: hrvqvae tokenize MODEL SOURCE {path}")
    return open_shards(paths)


# Back to images


def detokenize(
    shards: Path, out: Path, *, model: str | None = None, levels: int | None = None, device: str = "cpu",
    force: bool = False,
) -> int:  # fmt: skip
    """Decode each row of shards to a PNG file, and return the number of files.

    Args:
        shards: a folder of shards, or one shard.
        out: the folder of the images; the key of an image is its path there (`Outputs.reserve`).
        model: the model that encoded the shards; None finds it in the package.
        levels: number of levels to decode, coarse first; None decodes all.
        force: overwrite existing files.

    Raises:
        InputError: shards of another model, levels out of range, or a file that is there or can't be written.
        DamagedFileError: a shard is damaged.
    """
    opened = find_shards(shards)
    painter = _load_model(opened, shards, model, device)
    used = painter.check_levels(levels)
    outputs, count = Outputs(out, force=force), 0
    with task("detokenize", opened.count) as advance:
        for rows in opened.rows(used):
            paths = [outputs.reserve(without_suffix(key), ".png") for key in rows.keys]
            for place, image in _decode_rows(painter, rows, used, str(shards)):
                write_image(to_pil(image), paths[place], optimize=False)
                count += 1
                advance(1)
    return count


def _load_model(opened: Shards, path: Path, named: str | None, device: str) -> Autoencoder:
    """Load the named model, or the model of the package that encoded the shards."""
    wanted = opened.model
    for name in [named] if named is not None else list_models():
        run = Run(name)
        found = run.weights_digest
        if found == wanted:
            return run.load(device)[0]
        if named is not None:
            raise InputError(f"{path} was made by another model ({wanted[:12]}) than {named} ({found[:12]})")
    raise InputError(f"{path} was made by no model inside the package ({wanted[:12]}): name it with --model RUN")


@torch.inference_mode()
def _decode_rows(model: Autoencoder, rows: Rows, levels: int, whose: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the index and image (C, Y, X) of every row; rows of equal size and grids are decoded together."""
    device = next(model.parameters()).device
    sizes = [(*size, *(grid.shape for grid in codes)) for size, *codes in zip(rows.sizes, *rows.codes, strict=True)]
    for group in group_by_size(sizes, _PIXELS):
        stacked = (np.stack([level[index] for index in group]).astype(np.int64) for level in rows.codes)
        codes = tuple(torch.from_numpy(level).to(device) for level in stacked)
        try:
            images = model.decode(codes, levels, rows.sizes[group[0]]).cpu()
        except InputError as error:
            raise DamagedFileError(f"{whose}: the codes of {rows.keys[group[0]]} fit no image ({error})") from error
        yield from zip(group, images, strict=True)
