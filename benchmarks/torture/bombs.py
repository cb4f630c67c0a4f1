"""Constructed files: small inputs that ask for much memory or time, and damage that no random case
makes.
"""

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.torture.readers import MODEL, seal_weights
from hrvqvae.checkpoints import storage
from hrvqvae.compression.entropy_model import MAGIC
from hrvqvae.model import Model

Bomb = Callable[[Path, Path], Path]
"""Writes the file of a case into an empty folder, from the work folder. Returns the path that the
reader gets.
"""
Content = Callable[[Path], bytes]
"""Returns the content of a file, from the work folder."""


def _write(file: str, content: Content, work: Path, folder: Path) -> Path:
    path = folder / file
    if path.parent != folder:
        shutil.copytree(work / "trained", path.parent)
    path.write_bytes(content(work))
    return path


# --- zips and numbers ---


def _zip_zeros(_: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.hrv", "w") as out:
        for _megabyte in range(1 << 10):
            out.write(bytes(1 << 20))
    return stream.getvalue()


def _share_bytes(_: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("x.hrv", bytes(1 << 20))
        file.filelist *= 30_000
    return stream.getvalue()


def _repeat_headers(_: Path) -> bytes:
    header = struct.pack("<4s4xH4xII4xHH", b"PK\3\4", 0, 0, 3_500_000, 5, 0)
    return 100_000 * (header + b"x.hrv")


# --- files of codes and tables ---


def _file_of_codes(size: bytes, _: Path) -> bytes:
    return b"\xd7" + Model(MODEL).entropy_model.fingerprint + size + b"\x55" * 200


def _tables(_: Path, groups: int = 1, hidden: int = 1, zeros: int | None = None) -> bytes:
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
    if zeros is None:
        zeros = (rows + 4 + 2 * symbols) * hidden + 4 * symbols
    return _frame(text, bytes(zeros) + zlib.crc32(text).to_bytes(4, "little"))


def _frame(header: bytes, body: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little") + header + zlib.compress(body, 9)


# --- texts and weights ---


def _lists_of_lists(_: Path) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines).encode()


def _read_weights(work: Path) -> bytes:
    return (work / "trained" / "model.safetensors").read_bytes()


def _change_model(change: Callable[[Any], object], work: Path) -> bytes:
    """Return the trained weights with another configuration of the model."""
    content = _read_weights(work)
    meta = json.loads(storage._read_header(content)["meta"])
    change(meta["config"]["model"])
    return seal_weights(content, json.dumps(meta).encode())


def _lengthen_header(work: Path) -> bytes:
    return (1 << 62).to_bytes(8, "little") + _read_weights(work)[8:]


# --- images ---


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_CONTENTS: dict[tuple[str, str], dict[str, Content]] = {
    ("zip", "x.zip"): {
        "an entry of 1 GB of zeros": _zip_zeros,
        "30,000 entries that share their bytes": _share_bytes,
        "100,000 headers, each of which says that the rest of the file is its entry": (
            _repeat_headers
        ),
    },
    ("file of codes", "x.hrv"): {
        "8192x8192 pixels in 200 bytes": partial(_file_of_codes, b"\xff\x3f"),
        "2048x2048 pixels in 200 bytes": partial(_file_of_codes, b"\xff\x0f"),
    },
    ("tables", "tables.hrvt"): {
        "a body of 64 MB": partial(_tables, zeros=1 << 26),
        "a million hidden units": partial(_tables, hidden=300_000),
        "100,000 groups": partial(_tables, groups=100_000),
        "brackets in brackets": lambda _: _frame(b"[" * 100_000, b"1234"),
    },
    ("configuration", "x.yaml"): {
        "YAML that refers to itself": lambda _: b"&a\nsystem: hrvqvae\nmodel: *a\n",
        "YAML of nine lists of nine": _lists_of_lists,
    },
    ("configuration", "x.json"): {
        "JSON 994 deep": lambda _: b'{"a":' * 994 + b"1" + b"}" * 994,
    },
    ("metrics", "metrics.jsonl"): {"a line 100,000 deep": lambda _: b"[" * 100_000},
    ("sealed run", "run/model.safetensors"): {
        "a configuration of a large network": partial(
            _change_model, lambda model: model.update(hidden_units=8192)
        ),
        "weights of another shape": partial(
            _change_model, lambda model: model["quantizer"].update(codewords=4)
        ),
    },
    ("run", "run/model.safetensors"): {"a header of 2^62 bytes": _lengthen_header},
    ("image", "x.png"): {"a PNG of 40,000x20,000 pixels": lambda _: _png(40_000, 20_000)},
}
"""By the reader and its file: the content of each case."""
BOMBS: dict[tuple[str, str], Bomb] = {
    (reader, name): partial(_write, file, content)
    for (reader, file), contents in _CONTENTS.items()
    for name, content in contents.items()
}
"""By the reader and the name of the case."""
