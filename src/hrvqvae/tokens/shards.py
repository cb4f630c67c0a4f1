"""Read shards of codes, which are Parquet files, and decode them to PNG files.

docs/tokens.md describes the format. Shard i of shards of S images holds the images i * S to
(i + 1) * S - 1, in the order of `tokenize.KeyedImages`. A folder OUT of shards has these files:

OUT/_manifest.json        the plan
    part-000000.parquet   the first S images; further shards follow
    retry-000000.parquet  images that were broken at first and could be read later
    _broken.jsonl         key and error of each image that is in no shard
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.checkpoints.folder import shipped_runs
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Grid
from hrvqvae.data.images import remove_image_suffix, to_pil, write_image
from hrvqvae.data.sources.parquet import open_parquet
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.outputs import Outputs, write_atomic
from hrvqvae.utils.progress import task

FORMAT = "1"
SUFFIX = ".parquet"
# readers of folders of Parquet files skip names with a leading underscore
MANIFEST = "_manifest.json"
PREFIX = "hrvqvae."  # of the names of metadata
_MAX_PIXELS = 1 << 18  # of images that are decoded together
# A small file can unpack to billions of values (run lengths, dictionaries). So the values of a row
# group, and the bytes of its texts, are at most MOST_VALUES plus _VALUES_PER_BYTE for each byte of
# the file.
MOST_VALUES = 1 << 26
_VALUES_PER_BYTE = 64
_MOST_ROWS = 1 << 20  # of a file, plus one for each byte: each row has a key of its own


def level_columns(level: int, grid: Sequence[Any], codes: object) -> dict[str, Any]:
    """Return values, or types, of the columns of a level by name; `grid` has a height and width."""
    height, width = grid
    number = level + 1
    return {f"height_{number}": height, f"width_{number}": width, f"codes_{number}": codes}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The model, images and options of a folder of shards, by their names in the manifest."""

    model: str  # digest of the weights
    # `data.size`, that every image is resized to; None keeps the size of each image
    image_size: int | str | None
    keys: int  # number of images
    keys_digest: str  # digest of all keys and labels, in order
    shard_size: int  # images per shard
    # paths that the search keeps at each level; None keeps as many as in training
    beam: int | None = None
    effort: int = 0  # of the search with the decoder

    def shards(self) -> Iterator[tuple[str, range]]:
        """Yield the file name of each shard, and the indices of its images."""
        for index, start in enumerate(range(0, self.keys, self.shard_size)):
            yield f"part-{index:06d}{SUFFIX}", range(self.keys)[start : start + self.shard_size]

    @staticmethod
    def read(folder: Path) -> Plan | None:
        """Return the plan of a folder, or None without a manifest. Raises DamagedFileError for a
        damaged manifest.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            plan = Plan(**json.loads(path.read_text()))
            if any(type(value) is not int or value < 1 for value in (plan.keys, plan.shard_size)):
                raise ValueError("its numbers of images are wrong")
            return plan
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(
                f"{path} is damaged ({error}); begin anew in another folder"
            ) from error

    def write_or_compare(self, folder: Path) -> None:
        """Write the plan to a new folder; raise InputError if the folder has another plan, or
        shards without a plan.
        """
        existing = Plan.read(folder)
        if existing is None:
            if any(folder.glob(f"*{SUFFIX}")):
                raise InputError(
                    f"{folder} holds {SUFFIX} files, but no {MANIFEST}; choose another folder"
                )
            write_atomic(folder / MANIFEST, f"{json.dumps(vars(self), indent=2)}\n".encode())
            return
        titles = {"keys": "number of images", "keys_digest": "digest of names and labels"}
        for name, value in vars(self).items():
            if (old := getattr(existing, name)) != value:
                title = titles.get(name, name)
                raise InputError(
                    f"{folder} was begun with another {title}: {old}, not {value}; choose another"
                    " folder"
                )


@dataclass(frozen=True)
class Rows:
    """Rows of a shard, one per image."""

    keys: Sequence[str]
    # a class name or a whole number; None for an image without a label
    labels: Sequence[str | int | None]
    sizes: Sequence[Grid]  # (height, width) in pixels, as encoded
    codes: Sequence[Sequence[NDArray[Any]]]  # codes[level][image]: (H_l, W_l)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Shards:
    """Shards of one model, in order."""

    paths: tuple[Path, ...]
    model_digest: str  # of the weights
    classes: tuple[str, ...]  # class names, from the metadata of the first shard
    count: int  # number of images in all shards
    broken: Mapping[str, str]  # error of each image that could not be read, by key
    content_digests: Mapping[Path, str]  # digest of the images of each shard
    versions: frozenset[str]  # of hrvqvae, which wrote the shards


def read_rows(paths: Sequence[Path], num_levels: int) -> Iterator[Rows]:
    """Yield the rows of each row group of shards, with the codes of the first `num_levels` levels.

    Raises DamagedFileError if a file is damaged or lacks columns, or if a number of codes differs
    from its grid.
    """
    types = {"key": pa.string(), "height": pa.int64(), "width": pa.int64()}
    for level in range(num_levels):
        types |= level_columns(level, (pa.int64(), pa.int64()), pa.list_(pa.int64()))
    for path, values in zip(paths, _count_values(paths), strict=True):
        limit = MOST_VALUES + _VALUES_PER_BYTE * path.stat().st_size
        if values is None:
            raise DamagedFileError(f"{path} is damaged, or no Parquet file; write it again")
        if values > limit:
            raise DamagedFileError(
                f"{path}: a row group has {values:,} values, too many for its size"
            )

        # Texts are read as dictionaries, so that many rows of one long text take no memory.
        with open_parquet(path) as file:
            texts = [name for name in ("key", "label") if name in file.schema.names]
        with open_parquet(path, read_dictionary=texts) as file:
            if file.metadata.num_rows > _MOST_ROWS + path.stat().st_size:
                raise DamagedFileError(f"{path} has too many rows for its size")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[*types, "label"])
                if sum(map(_count_text_bytes, table.columns)) > limit:
                    raise DamagedFileError(f"{path}: its texts are too long for its size")
                if len(table):
                    yield _parse_rows(table, path, types, num_levels)


def read_keys(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the keys of all images of shards. Raises as `read_rows`."""
    return (key for rows in read_rows(paths, 0) for key in rows.keys)


# A program for a process of its own: with a damaged footer, pyarrow's `column` can end the process.
# It prints the number of values in the largest row group of each file.
_COUNT_VALUES = """
import json, sys, pyarrow.parquet
for path in json.load(sys.stdin):
    metadata = pyarrow.parquet.read_metadata(path)
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    counts = (
        sum(group.column(index).num_values for index in range(group.num_columns))
        for group in groups
    )
    print(max(counts, default=0), flush=True)
"""


def _count_values(paths: Sequence[Path]) -> list[int | None]:
    """Return the number of values in the largest row group of each file; None for the first damaged
    file and all that follow.
    """
    if not paths:
        return []
    counted = subprocess.run(
        [sys.executable, "-P", "-c", _COUNT_VALUES],  # -P: no modules of the current folder
        input=json.dumps([*map(str, paths)]),
        capture_output=True,
        text=True,
        check=False,
    )
    values = [int(line) for line in counted.stdout.split()]
    return [*values, *[None] * (len(paths) - len(values))]


def _count_text_bytes(column: pa.ChunkedArray) -> int:
    """Return the number of bytes of the texts of a column that is read as a dictionary; 0 for other
    columns.
    """
    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(values).as_py() or 0 for values in lengths)


def _parse_rows(
    table: pa.Table, path: Path, types: Mapping[str, pa.DataType], num_levels: int
) -> Rows:
    try:
        labels = table.column("label").to_pylist()
        if not all(label is None or isinstance(label, str | int) for label in labels):
            raise KeyError("label")
        table = table.select([*types]).cast(pa.schema(types))
    except (KeyError, pa.ArrowException) as error:
        raise DamagedFileError(
            f"{path} has other columns than docs/tokens.md says ({one_line(error)})"
        ) from error

    # Only labels may be null.
    columns = {name: table.column(name).combine_chunks() for name in types}
    lists = [columns.pop(f"codes_{level}") for level in range(1, num_levels + 1)]
    if any(
        column.null_count
        for column in (*columns.values(), *lists, *(column.values for column in lists))
    ):
        raise DamagedFileError(f"{path} has nulls; only labels may be null")

    # Cut the codes of each level into the grids of its images.
    values = {name: column.to_pylist() for name, column in columns.items()}
    codes = list[list[NDArray[Any]]]()
    for level, column in enumerate(lists, start=1):
        codes.append([])
        level_codes = column.values.to_numpy()
        grids = zip(values["key"], values[f"height_{level}"], values[f"width_{level}"], strict=True)
        for (key, height, width), (start, end) in zip(
            grids, pairwise(column.offsets.to_numpy()), strict=True
        ):
            if min(height, width) < 1 or end - start != height * width:
                raise DamagedFileError(
                    f"{path}: {key} has {end - start} codes of level {level} for {height}x{width}"
                )
            codes[-1].append(level_codes[start:end].reshape(height, width))
    return Rows(
        values["key"], labels, list(zip(values["height"], values["width"], strict=True)), codes
    )


def open_shards(paths: Sequence[Path]) -> Shards:
    """Open files as shards of one model. Raises InputError if a file is no shard, or the versions
    or models differ.
    """
    shards = [_open_shard(path) for path in paths]
    first = shards[0]
    broken = dict[str, str]()
    for shard in shards:
        if shard.model_digest != first.model_digest:
            raise InputError(
                f"{shard.paths[0]} and {paths[0].name} are of two models; name shards of one model"
            )
        broken |= shard.broken
    count = sum(shard.count for shard in shards)
    digests = {path: shard.content_digests[path] for path, shard in zip(paths, shards, strict=True)}
    versions = frozenset[str]().union(*(shard.versions for shard in shards))
    return Shards(tuple(paths), first.model_digest, first.classes, count, broken, digests, versions)


def _open_shard(path: Path) -> Shards:
    with open_parquet(path) as file:
        metadata = file.metadata.metadata or {}
        count = file.metadata.num_rows
    texts = ([item.decode(errors="replace") for item in pair] for pair in metadata.items())
    values = {name.removeprefix(PREFIX): text for name, text in texts if name.startswith(PREFIX)}
    if not {"format", "model"} <= values.keys():
        raise InputError(
            f"{path} is no shard of codes: its metadata has no {PREFIX}format and {PREFIX}model"
        )
    if values["format"] != FORMAT:
        raise InputError(
            f"{path} is of version {values['format']} of the format; only {FORMAT} is read"
        )

    # images that could not be read, and the names of the classes
    try:
        images = json.loads(values.get("broken", "[]"))
        broken = {str(image["key"]): str(image["error"]) for image in images}
        classes = tuple(map(str, json.loads(values.get("classes", "[]"))))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFileError(f"{path} has damaged metadata ({error})") from error
    content = {path: values.get("content", "")}
    versions = frozenset([values.get("version", "")])
    return Shards((path,), values["model"], classes, count, broken, content, versions)


def find_shards(path: Path) -> Shards:
    """Open the shards of a folder, which `tokenize` must have finished, or a single file. Raises as
    `open_shards`.
    """
    if path.is_file():
        return open_shards([path])
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file")
    plan = Plan.read(path)
    files = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    names = {file.name for file in files}
    # a damaged plan may name billions of shards: stop at the first that is absent
    for name, _ in plan.shards() if plan else ():
        if name not in names:
            raise InputError(f"{path} lacks {name}; run the same hrvqvae tokenize again")
    if not files:
        raise InputError(
            f"{path} has no shards ({SUFFIX}); make them: hrvqvae tokenize MODEL SOURCE"
            f" {shlex.quote(str(path))}"
        )
    return open_shards(files)


def detokenize(
    shards: Path,
    out: Path,
    *,
    model: str | None,
    levels: int | None,
    device: str,
    force: bool,
) -> int:
    """Decode each row of a folder of shards, or of a shard, to a file `out/KEY.png`; return the
    number of files.

    Args:
        model: the model that encoded the shards; None finds the model in the package.
        levels: number of levels to decode, coarse first; None decodes all.

    Raises:
        InputError: the model did not encode the shards, `levels` is out of range, or a file exists
            or can't be written.
        DamagedFileError: a shard is damaged.
    """
    opened = find_shards(shards)
    autoencoder = _load_model(opened.model_digest, shards, model, device)
    num_levels = autoencoder.check_levels(levels)
    outputs = Outputs(out, force=force)
    count = 0
    # all names are reserved before the first file is written; texts take less memory than paths
    keys = map(remove_image_suffix, read_keys(opened.paths))
    files = [str(outputs.reserve(key, ".png")) for key in keys]
    with task("detokenize", opened.count) as advance:
        for rows in read_rows(opened.paths, num_levels):
            for index, image in _decode_rows(autoencoder, rows, num_levels, shards):
                write_image(to_pil(image), Path(files[count + index]), optimize=False)
                advance(1)
            count += len(rows.keys)
    return count


def _load_model(digest: str, path: Path, model: str | None, device: str) -> Autoencoder:
    """Load the weights with a digest: those of `model` (default: of any model of the package), or
    earlier weights that its run has kept.
    """
    for run in map(Run, shipped_runs() if model is None else [model]):
        for state in (run, *run.earlier_states()):
            if state.weights_digest == digest:
                return state.load(device)[0]
    if model is None:
        raise InputError(
            f"{path} was made by no model inside the package ({digest[:12]}): name it with"
            " --model RUN"
        )
    raise InputError(
        f"{path} was made by another model ({digest[:12]}) than {model}"
        f" ({Run(model).weights_digest[:12]})"
    )


@torch.inference_mode()
def _decode_rows(
    model: Autoencoder, rows: Rows, num_levels: int, path: Path
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index and image (C, Y, X) of every row; rows with equal sizes and grids are decoded
    together.
    """
    device = next(model.parameters()).device
    sizes = [
        (*size, *(grid.shape for grid in codes))
        for size, *codes in zip(rows.sizes, *rows.codes, strict=True)
    ]
    for group in group_by_size(sizes, _MAX_PIXELS):
        stacked = (
            np.stack([level[index] for index in group]).astype(np.int64) for level in rows.codes
        )
        codes = tuple(torch.from_numpy(level).to(device) for level in stacked)
        try:
            images = model.decode(codes, num_levels, rows.sizes[group[0]]).cpu()
        except InputError as error:
            raise DamagedFileError(
                f"{path}: the codes of {rows.keys[group[0]]} fit no image ({error})"
            ) from error
        yield from zip(group, images, strict=True)
