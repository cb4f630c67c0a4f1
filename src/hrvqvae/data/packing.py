"""Folders of images to shards: WebDataset tars, or Parquet as the hub has it. The files go in as they are.

A shard depends on the names and contents of its files alone. It is written under another name and renamed when it is
whole. Where a shard is there already, it is compared with what would be written, byte for byte: so a packing that was
killed goes on when it is called again, and no other file is written over.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from hrvqvae.data.images import folder_parts, listing
from hrvqvae.data.sources.tars import CLASS_NAMES
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_MB = 10**6
_GROUP_BYTES = 16 * _MB  # of the images of a row group, the least of a Parquet file that can be read
_DIGITS = 6


@dataclass(frozen=True)
class Packed:
    """What a folder became.

    Attributes:
        images: of all shards.
        shards: their paths, in order.
        classes: names of the classes; empty where there are none.
    """

    images: int
    shards: tuple[Path, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """An image that is packed: its name in the shard, its file, its size in bytes and its class if there are any."""

    name: str
    path: Path
    size: int
    label: int | None


def _unique_names(names: Sequence[str]) -> list[str]:
    """Names whose part before the first dot is each file's own, as WebDataset needs: `a.b.png` becomes `a_b.png`.

    Raises:
        InputError: two files would still have one name.
    """
    taken: dict[str, str] = {}
    found = []
    for name in names:
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.rpartition(".")
        key = f"{folder}{slash}{stem.replace('.', '_')}"
        if key in taken:  # a.png beside a.jpg
            key = f"{key}_{suffix}"
        if key in taken:
            raise InputError(f"{taken[key]} and {name} would have one name in a shard ({key}); rename one of them")
        taken[key] = name
        found.append(f"{key}.{suffix}")
    return found


def _items(files: dict[str, Path], known: Sequence[str]) -> tuple[list[_Item], tuple[str, ...]]:
    """The images of a split, in the order of a folder, and the names of the classes of all that are known."""
    listed = listing(files, known, labels=True)
    names = _unique_names(sorted(files))
    labels = listed.labels if listed.classes else [None] * len(names)
    rows = zip(names, listed.paths, labels, strict=True)
    return [_Item(name, path, path.stat().st_size, label) for name, path, label in rows], listed.classes


def _shards(items: Sequence[_Item], most: int) -> Iterator[list[_Item]]:
    """Runs of images of at most so many bytes together, or one that has more."""
    shard, filled = list[_Item](), 0
    for item in items:
        if shard and filled + item.size > most:
            yield shard
            shard, filled = [], 0
        shard.append(item)
        filled += item.size
    if shard:
        yield shard


def _write_tar(stream: Any, items: Sequence[_Item], classes: Sequence[str]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for item in items:
            members = [(item.name, item.path.read_bytes())]
            if item.label is not None:
                members.append((f"{item.name.rpartition('.')[0]}.cls", str(item.label).encode()))
            for name, content in members:
                member = tarfile.TarInfo(name)  # of no time and no owner
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every header


def _write_parquet(stream: Any, items: Sequence[_Item], classes: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = [pyarrow.field("image", pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if classes:
        fields.append(pyarrow.field("label", pyarrow.int64()))
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    schema = pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="none", use_dictionary=["label"]) as writer:
        for group in _shards(items, _GROUP_BYTES):
            columns: dict[str, Any] = {
                "image": [{"bytes": item.path.read_bytes(), "path": item.name} for item in group],
                "label": [item.label for item in group],
            }
            writer.write_table(pyarrow.table({name: columns[name] for name in features}, schema=schema))


_FORMATS: dict[str, Callable[..., None]] = {
    "tar": _write_tar, "parquet": _write_parquet,
}  # fmt: skip
FORMATS = tuple(_FORMATS)


class _Same(io.RawIOBase):
    """Takes what is written, and compares it with a file instead.

    Attributes:
        same: whether all of it was so far what the file holds.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._length, self.same = file, 0, True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._length

    def write(self, content: Any, /) -> int:
        given = bytes(content)
        self.same = self.same and self._file.read(len(given)) == given
        self._length += len(given)
        return len(given)


def _write(target: Path, write: Callable[[Any], None]) -> None:
    """Write a file under another name and rename it; or, where it is there, see that it is the same.

    Raises:
        InputError: it is there and holds something else.
    """
    if target.exists():
        with target.open("rb") as file:
            compared = _Same(file)
            write(compared)
            same = compared.same and not file.read(1)
        if not same:
            raise InputError(f"{target} is there and holds something else; choose another OUT, or move it away")
        return
    temporary = target.with_name(f".writing-{target.name}")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One packing at a time. Raises filelock.Timeout where there is another."""
    lock = filelock.FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def pack(
    folder: Path, out: Path, format: str = "tar", shard_bytes: int = 512 * _MB,
    say: Callable[[str], None] = print,
) -> Packed:  # fmt: skip
    """Pack the images of a folder into shards OUT-000000.tar, OUT-000001.tar and so on.

    A folder with `train/` beside `test/`, `val/` or `validation/` becomes OUT-train-000000.tar and OUT-test-000000.tar
    (val, validation). Folders become labels where every image lies in one; classnames.txt beside the shards names them.

    Args:
        out: how the shards' paths begin.
        format: "tar" or "parquet".
        shard_bytes: of the images of a shard at most; a larger image has one of its own.
        say: is told of each shard, and how many files are renamed.

    Raises:
        InputError: the folder has no image, or other files are where the shards would be.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name how the shards begin, such as {out / folder.name}")
    given = folder_parts(folder, labels=False)
    known = [name for part in given.values() for name in part]
    planned, count = list[tuple[Path, list[_Item]]](), 0
    classes: tuple[str, ...] = ()
    for word, files in given.items():
        begin = f"{out.name}-{word}-" if word else f"{out.name}-"
        items, classes = _items(files, known)
        renamed = sum(item.name != name for item, name in zip(items, sorted(files), strict=True))
        if renamed:
            say(f"{counted(renamed, 'file')} with dots in the name or with another's name: the shards name them anew")
        count += len(items)
        shards = enumerate(_shards(items, shard_bytes))
        planned += [(out.with_name(f"{begin}{number:0{_DIGITS}d}.{format}"), some) for number, some in shards]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out):
            _check_others(out, format, {path for path, _ in planned})
            if classes and format == "tar":
                names = "".join(f"{name}\n" for name in classes).encode()
                _write(out.with_name(CLASS_NAMES), lambda stream: stream.write(names))
            for path, items in planned:
                _write(path, partial(_FORMATS[format], items=items, classes=classes))
                say(f"{path}: {counted(len(items), 'image')}")
    except filelock.Timeout as error:
        raise InputError(f"another process is packing to {out}") from error
    return Packed(count, tuple(path for path, _ in planned), classes)


def _check_others(out: Path, format: str, planned: set[Path]) -> None:
    """Raises InputError where there are shards of that name that this packing does not make."""
    shard = re.compile(rf"{re.escape(out.name)}-(?:(?:train|test|val|validation)-)?\d{{{_DIGITS}}}\.{format}")
    others = sorted(path for path in out.parent.iterdir() if shard.fullmatch(path.name) and path not in planned)
    if others:
        raise InputError(f"{others[0]} is there and is not of this packing; choose another OUT, or move it away")
