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
from pathlib import Path

import numpy as np

from benchmarks.torture.readers import MODEL, READERS
from hrvqvae.compression.entropy_model import MAGIC
from hrvqvae.model import Model

Bomb = Callable[[Path, Path], Path]
"""Takes the ground and an empty folder."""
BOMBS: dict[tuple[str, str], Bomb] = {}
"""By reader and name."""


def _bomb(reader: str, name: str) -> Callable[[Bomb], Bomb]:
    def add(make: Bomb) -> Bomb:
        assert reader in READERS
        BOMBS[reader, name] = make
        return make

    return add


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


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


@_bomb("zip", "100,000 headers, each of which says that the rest of the file is its entry")
def _nested(_: Path, folder: Path) -> Path:
    count = 100_000
    header = struct.pack("<4s4xH4xII4xHH", b"PK\3\4", 0, 0, 35 * count, 5, 0) + b"x.hrv"
    return _written(folder / "x.zip", header * count)


# Files and tables


@_bomb("file of codes", "8192x8192 pixels in 200 bytes")
def _pixels(_: Path, folder: Path) -> Path:
    model = Model(MODEL).entropy_model
    return _written(folder / "x.hrv", b"\xd7" + model.fingerprint + b"\xff\x3f" + b"\x55" * 200)


@_bomb("file of codes", "2048x2048 pixels in 200 bytes")
def _fewer_pixels(_: Path, folder: Path) -> Path:
    model = Model(MODEL).entropy_model
    return _written(folder / "x.hrv", b"\xd7" + model.fingerprint + b"\xff\x0f" + b"\x55" * 200)


def _tables(
    groups: int = 1, hidden: int = 1, symbols: int = 2, zeros: int | None = None, **changes: object
) -> bytes:
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
        **changes,
    }
    text = json.dumps(header).encode()
    size = (
        rows * hidden + 4 * hidden + 2 * symbols * hidden + 4 * symbols if zeros is None else zeros
    )
    body = zlib.compress(bytes(size) + zlib.crc32(text).to_bytes(4, "little"), 9)
    return MAGIC + len(text).to_bytes(4, "little") + text + body


@_bomb("tables", "a body of 64 MB")
def _body(_: Path, folder: Path) -> Path:
    return _written(folder / "tables.hrvt", _tables(zeros=1 << 26))


@_bomb("tables", "a million hidden units")
def _hidden(_: Path, folder: Path) -> Path:
    return _written(folder / "tables.hrvt", _tables(hidden=300_000))


@_bomb("tables", "100,000 groups")
def _many_groups(_: Path, folder: Path) -> Path:
    return _written(folder / "tables.hrvt", _tables(groups=100_000))


@_bomb("tables", "brackets in brackets")
def _deep_header(_: Path, folder: Path) -> Path:
    text = b"[" * 100_000
    return _written(
        folder / "tables.hrvt",
        MAGIC + len(text).to_bytes(4, "little") + text + zlib.compress(b"1234"),
    )


# Texts


@_bomb("configuration", "YAML that refers to itself")
def _itself(_: Path, folder: Path) -> Path:
    return _written(folder / "x.yaml", b"&a\nsystem: hrvqvae\nmodel: *a\n")


@_bomb("configuration", "YAML of nine lists of nine")
def _laughs(_: Path, folder: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)
    ]
    return _written(folder / "x.yaml", "\n".join(lines).encode())


@_bomb("configuration", "JSON 994 deep")
def _deep(_: Path, folder: Path) -> Path:
    return _written(folder / "x.json", b'{"a":' * 994 + b"1" + b"}" * 994)


@_bomb("metrics", "a line 100,000 deep")
def _deep_metrics(_: Path, folder: Path) -> Path:
    return _written(folder / "metrics.jsonl", b"[" * 100_000)


# Weights


@_bomb("sealed run", "a configuration of a large network")
def _network(ground: Path, folder: Path) -> Path:
    from benchmarks.torture.readers import _with_meta
    from hrvqvae.checkpoints import storage

    shutil.copytree(ground / "trained", folder / "run")
    path = folder / "run" / "model.safetensors"
    meta = json.loads(storage._header(path.read_bytes())[0])
    meta["config"]["model"]["hidden_units"] = 8192
    return _written(path, _with_meta(path.read_bytes(), json.dumps(meta).encode()))


@_bomb("sealed run", "weights of another shape")
def _shape(ground: Path, folder: Path) -> Path:
    from benchmarks.torture.readers import _with_meta
    from hrvqvae.checkpoints import storage

    shutil.copytree(ground / "trained", folder / "run")
    path = folder / "run" / "model.safetensors"
    meta = json.loads(storage._header(path.read_bytes())[0])
    meta["config"]["model"]["quantizer"]["codewords"] = 4
    return _written(path, _with_meta(path.read_bytes(), json.dumps(meta).encode()))


@_bomb("run", "a header of 2^62 bytes")
def _header(ground: Path, folder: Path) -> Path:
    shutil.copytree(ground / "trained", folder / "run")
    path = folder / "run" / "model.safetensors"
    return _written(path, (1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


# Images and data


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big")
            + kind
            + content
            + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@_bomb("image", "a PNG of 40,000x20,000 pixels")
def _large_png(_: Path, folder: Path) -> Path:
    return _written(folder / "x.png", _png(40_000, 20_000))


@_bomb("npy and npz", "an npz of 1 GB of zeros")
def _npz(_: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "b.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, shape, kind in (("x", (1 << 20, 32, 32), "|u1"), ("y", (1 << 20,), "|u1")):
            header = str({"descr": kind, "fortran_order": False, "shape": shape}).encode()
            header += b" " * (-(11 + len(header)) % 64) + b"\n"
            with file.open(f"{name}.npy", "w") as out:
                out.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
                for _megabyte in range(int(np.prod(shape)) >> 20):
                    out.write(bytes(1 << 20))
    return folder / "b.npz"


@_bomb("npy and npz", "an npy that says 2^60 images")
def _npy(_: Path, folder: Path) -> Path:
    header = str({"descr": "|u1", "fortran_order": False, "shape": (1 << 60, 9, 9)}).encode()
    header += b" " * (-(11 + len(header)) % 64) + b"\n"
    return _written(
        folder / "a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(81)
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
