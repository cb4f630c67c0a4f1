"""Constructed files: small inputs that ask for much memory or time."""

import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.torture.readers import entropy_model
from hrvqvae.compression.entropy_model import MAGIC

Content = Callable[[], bytes]
"""Returns the content of a file."""


def _file_of_codes(size: bytes) -> bytes:
    return b"\xd7" + entropy_model().fingerprint + size + b"\x55" * 200


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
    if zeros is None:
        zeros = (rows + 4 + 2 * symbols) * hidden + 4 * symbols
    return _frame(text, bytes(zeros) + zlib.crc32(text).to_bytes(4, "little"))


def _frame(header: bytes, body: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little") + header + zlib.compress(body, 9)


def _lists_of_lists() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines).encode()


BOMBS: dict[tuple[str, str], Content] = {
    ("file of codes", "8192x8192 pixels in 200 bytes"): partial(_file_of_codes, b"\xff\x3f"),
    ("file of codes", "2048x2048 pixels in 200 bytes"): partial(_file_of_codes, b"\xff\x0f"),
    ("tables", "a body of 64 MB"): partial(_tables, zeros=1 << 26),
    ("tables", "a million hidden units"): partial(_tables, hidden=300_000),
    ("tables", "100,000 groups"): partial(_tables, groups=100_000),
    ("tables", "brackets in brackets"): lambda: _frame(b"[" * 100_000, b"1234"),
    ("configuration", "YAML that refers to itself"): lambda: b"&a\nsystem: hrvqvae\nmodel: *a\n",
    ("configuration", "YAML of nine lists of nine"): _lists_of_lists,
}
"""By the reader and the name of the case."""


def write_bomb(case: tuple[str, str], folder: Path) -> Path:
    """Write the file of a case into a folder."""
    endings = {"file of codes": "hrv", "tables": "hrvt", "configuration": "yaml"}
    path = folder / f"x.{endings[case[0]]}"
    path.write_bytes(BOMBS[case]())
    return path
