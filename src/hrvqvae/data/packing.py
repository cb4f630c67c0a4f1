"""Folders of images to shards: WebDataset tars, or Parquet as the hub has it. The files go in as they are.

A shard that is there is compared byte for byte: a packing that was killed goes on, and no other file is written over.
"""

from __future__ import annotations

import filecmp
import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hrvqvae.data.image_sets import runs
from hrvqvae.data.sources.files import FolderSource, folder_sources
from hrvqvae.data.sources.tars import CLASS_NAMES
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import TEMPORARY, replace_file
from hrvqvae.utils.quantities import counted

_MB = 10**6
_GROUP_BYTES = 16 * _MB  # of the images of a row group, the least of a Parquet file that can be read
FORMATS = ("tar", "parquet")


@dataclass(frozen=True)
class Packed:
    """The shards of a folder."""

    images: int
    shards: tuple[Path, ...]
    classes: tuple[str, ...]  # names, empty where there are none


@dataclass(frozen=True)
class _Item:
    """An image that is packed."""

    name: str  # in the shard
    path: Path
    size: int  # in bytes
    label: int | None


def pack(
    folder: Path, out: Path, format: str = "tar", shard_bytes: int = 512 * _MB, say: Callable[[str], None] = print
) -> Packed:
    """Pack the images of a folder into shards OUT-000000.tar, OUT-000001.tar and so on.

    A folder with `train/` beside `test/`, `val/` or `validation/` becomes OUT-train-000000.tar and OUT-test-000000.tar
    (val, validation). Folders become labels where every image lies in one; classnames.txt beside the shards names them.

    Args:
        format: "tar" or "parquet".
        shard_bytes: of the images of a shard at most; a larger image is in one alone.
        say: takes a line for each shard, and one about files that are renamed.

    Raises:
        InputError: the folder has no image, or other files are where the shards would be.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name how the shards begin, such as {out / folder.name}")
    sources = folder_sources(folder)
    if not sources:
        raise InputError(f"{folder} has no PNG, JPEG or WebP image")
    labelled = [source.labels for source in sources.values() if source.labels is not None]
    whole = len(labelled) == len(sources)
    classes = tuple(map(str, np.unique(np.concatenate(labelled)))) if whole else ()
    planned = dict[Path, list[_Item]]()
    for word, source in sources.items():
        items = _items(source, classes)
        renamed = sum(item.name != source.name(row) for row, item in enumerate(items))
        if renamed:
            say(f"{counted(renamed, 'file')} with dots in the name or with another's name: the shards name them anew")
        begin = f"{out.name}-{word}-" if word else f"{out.name}-"
        for number, some in enumerate(runs(items, lambda item: item.size, shard_bytes)):
            planned[out.with_name(f"{begin}{number:06d}.{format}")] = some
    with lock_file(out):
        _check_others(out, format, planned)
        if classes and format == "tar":
            names = "".join(f"{name}\n" for name in classes).encode()
            _write(out.with_name(CLASS_NAMES), lambda path: path.write_bytes(names))
        for path, items in planned.items():
            _write(path, partial(_write_tar if format == "tar" else _write_parquet, items=items, classes=classes))
            say(f"{path}: {counted(len(items), 'image')}")
    return Packed(sum(map(len, planned.values())), tuple(planned), classes)


def _items(source: FolderSource, classes: Sequence[str]) -> list[_Item]:
    """The images of a split, by names that differ before the first dot: a.b.png is a_b.png."""
    taken: dict[str, str] = {}
    found = list[_Item]()
    number = {name: place for place, name in enumerate(classes)}
    for row in range(len(source)):
        name, path = source.name(row), Path(source.where(row))
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.rpartition(".")
        key = f"{folder}{slash}{stem.replace('.', '_')}"
        if key in taken:  # a.png beside a.jpg
            key = f"{key}_{suffix}"
        if key in taken:
            raise InputError(f"{taken[key]} and {name} would both be {key} in a shard; rename one of them")
        taken[key] = name
        found.append(_Item(f"{key}.{suffix}", path, path.stat().st_size, number.get(name.split("/")[0])))
    return found


def _check_others(out: Path, format: str, planned: dict[Path, list[_Item]]) -> None:
    """Refuse shards of that name that this packing does not make."""
    shard = re.compile(rf"{re.escape(out.name)}-(?:(?:train|test|val|validation)-)?\d{{6}}\.{format}")
    others = sorted(path for path in out.parent.iterdir() if shard.fullmatch(path.name) and path not in planned)
    if others:
        raise InputError(f"{others[0]} is there and is not of this packing; choose another OUT, or move it away")
    for left in out.parent.glob(f"{TEMPORARY}*-{out.name}-*.{format}"):  # of a packing that was killed
        left.unlink(missing_ok=True)


def _write(target: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all, unless it is there and holds something else."""
    with replace_file(target) as temporary:
        write(temporary)
        if target.exists() and not filecmp.cmp(temporary, target, shallow=False):
            raise InputError(f"{target} is there and holds something else; choose another OUT, or move it away")


def _write_tar(path: Path, items: Sequence[_Item], classes: Sequence[str]) -> None:
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for item in items:
            members = [(item.name, item.path.read_bytes())]
            if item.label is not None:
                members.append((f"{item.name.rpartition('.')[0]}.cls", str(item.label).encode()))
            for name, content in members:
                member = tarfile.TarInfo(name)  # of no time and no owner
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every header


def _write_parquet(path: Path, items: Sequence[_Item], classes: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = [pyarrow.field("image", pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if classes:
        fields.append(pyarrow.field("label", pyarrow.int64()))
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    schema = pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=["label"]) as writer:
        for group in runs(items, lambda item: item.size, _GROUP_BYTES):
            columns: dict[str, Any] = {
                "image": [{"bytes": item.path.read_bytes(), "path": item.name} for item in group],
                "label": [item.label for item in group],
            }
            writer.write_table(pyarrow.table({name: columns[name] for name in features}, schema=schema))
