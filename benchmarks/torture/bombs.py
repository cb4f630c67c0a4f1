"""Constructed files: small inputs that ask for much memory or time, and what no random damage
makes.

Each function writes the files of a case into a folder and returns the path that its reader of
`READERS` gets.
"""

import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torture import readers
from benchmarks.torture.readers import MODEL
from hrvqvae.checkpoints import storage
from hrvqvae.compression.entropy_model import MAGIC
from hrvqvae.model import Model

Bomb = Callable[[Path, Path], Path]
"""Takes the ground and an empty folder."""
BOMBS: dict[tuple[str, str], Bomb] = {}
"""By reader and name."""


def _bomb(reader: str, name: str) -> Callable[[Bomb], Bomb]:
    def add(make: Bomb) -> Bomb:
        BOMBS[reader, name] = make
        return make

    return add


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _single(reader: str, name: str, file: str, content: Callable[[], bytes]) -> None:
    """Add a case of one file."""
    BOMBS[reader, name] = lambda _, folder: _written(folder / file, content())


# Zips


@_bomb("zip", "an entry of 1 GB of zeros")
def _zeros(_: Path, folder: Path) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.hrv", "w") as out:
        for _megabyte in range(1 << 10):
            out.write(bytes(1 << 20))
    return path


@_bomb("zip", "30,000 entries that share their bytes")
def _shared(_: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w") as file:
        file.writestr("x.hrv", bytes(1 << 20))
        file.filelist *= 30_000
    return folder / "x.zip"


_single(
    "zip",
    "100,000 headers, each of which says that the rest of the file is its entry",
    "x.zip",
    lambda: 100_000 * (struct.pack("<4s4xH4xII4xHH", b"PK\3\4", 0, 0, 3_500_000, 5, 0) + b"x.hrv"),
)


# Files and tables


def _pixels(size: bytes) -> bytes:
    return b"\xd7" + Model(MODEL).entropy_model.fingerprint + size + b"\x55" * 200


for side, size in (("8192", b"\xff\x3f"), ("2048", b"\xff\x0f")):
    _single("file of codes", f"{side}x{side} pixels in 200 bytes", "x.hrv", partial(_pixels, size))


def _tables(groups: int = 1, hidden: int = 1, zeros: int | None = None) -> bytes:
    symbols = 2
    rows = symbols + 1 + 256
    level = {
        "groups": [[0, 0]] * groups,
        "features": [[0, -1, 0]],
        "selecting": -1,
        "hidden": hidden,
        "shift": 1,
    }
    header = {
        "name": "x",
        "model": "ab" * 16,
        "geometry": {"unit": 1, "margin": 0, "times": [1]},
        "symbols": [symbols],
        "levels": [level],
    }
    text = json.dumps(header).encode()
    size = (
        rows * hidden + 4 * hidden + 2 * symbols * hidden + 4 * symbols if zeros is None else zeros
    )
    body = zlib.compress(bytes(size) + zlib.crc32(text).to_bytes(4, "little"), 9)
    return _framed(text, body)


def _framed(header: bytes, body: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little") + header + body


def _laughs() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines).encode()


for name, changes in (
    ("a body of 64 MB", {"zeros": 1 << 26}),
    ("a million hidden units", {"hidden": 300_000}),
    ("100,000 groups", {"groups": 100_000}),
):
    _single("tables", name, "tables.hrvt", partial(_tables, **changes))
_single(
    "tables",
    "brackets in brackets",
    "tables.hrvt",
    lambda: _framed(b"[" * 100_000, zlib.compress(b"1234")),
)

# Texts

for name, file, content in (
    ("YAML that refers to itself", "x.yaml", lambda: b"&a\nsystem: hrvqvae\nmodel: *a\n"),
    ("YAML of nine lists of nine", "x.yaml", _laughs),
    ("JSON 994 deep", "x.json", lambda: b'{"a":' * 994 + b"1" + b"}" * 994),
):
    _single("configuration", name, file, content)
_single("metrics", "a line 100,000 deep", "metrics.jsonl", lambda: b"[" * 100_000)

# Weights


def _retold(ground: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """Return weights whose configuration is another."""
    path = _weights(ground, folder)
    content = path.read_bytes()
    meta = json.loads(storage._header(content)[0])
    change(meta["config"]["model"])
    return _written(path, readers._with_meta(content, json.dumps(meta).encode()))


def _weights(ground: Path, folder: Path) -> Path:
    return Path(shutil.copytree(ground / "trained", folder / "run")) / "model.safetensors"


@_bomb("sealed run", "a configuration of a large network")
def _network(ground: Path, folder: Path) -> Path:
    return _retold(ground, folder, lambda model: model.update(hidden_units=8192))


@_bomb("sealed run", "weights of another shape")
def _shape(ground: Path, folder: Path) -> Path:
    return _retold(ground, folder, lambda model: model["quantizer"].update(codewords=4))


@_bomb("run", "a header of 2^62 bytes")
def _header(ground: Path, folder: Path) -> Path:
    path = _weights(ground, folder)
    return _written(path, (1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


# Images and data


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_single("image", "a PNG of 40,000x20,000 pixels", "x.png", lambda: _png(40_000, 20_000))


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    header = str({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


@_bomb("npy and npz", "an npz of 1 GB of zeros")
def _npz(_: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "b.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, shape, kind in (("x", (1 << 20, 32, 32), "|u1"), ("y", (1 << 20,), "|u1")):
            with file.open(f"{name}.npy", "w") as out:
                out.write(_npy_header(kind, shape))
                for _megabyte in range(int(np.prod(shape)) >> 20):
                    out.write(bytes(1 << 20))
    return folder / "b.npz"


_single(
    "npy and npz",
    "an npy that says 2^60 images",
    "a.npy",
    lambda: _npy_header("|u1", (1 << 60, 9, 9)) + bytes(81),
)


@_bomb("tar", "a member of 2^60 bytes")
def _tar(_: Path, folder: Path) -> Path:
    info = tarfile.TarInfo("x.png")
    info.size = 1 << 60
    return _written(folder / "x.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@_bomb("Parquet of images", "labels that are one long text")
def _labels(_: Path, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 1000
    image = pa.array([{"bytes": _png(2, 2), "path": "x.png"}] * count)
    table = pa.table({"image": image, "label": pa.array(["n" * 400_000] * count)})
    pq.write_table(table, folder / "x.parquet", compression="zstd")
    return folder / "x.parquet"


@_bomb("shards of codes", "lists of 20 million codes")
def _codes(ground: Path, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (source,) = sorted((ground / "shards").glob("part-000000.parquet"))
    table = pq.read_table(source)
    column = table.schema.get_field_index("codes_1")
    field = table.schema.field(column)
    offsets = pa.array(np.arange(len(table) + 1, dtype=np.int32) * 20_000_000)
    codes = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(20_000_000 * len(table), np.uint8)))
    table = table.set_column(column, field, codes.cast(field.type))
    pq.write_table(table, folder / "part-000000.parquet", compression="zstd")
    return folder / "part-000000.parquet"
