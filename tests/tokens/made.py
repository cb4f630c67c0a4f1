"""What the tests of shards share: drawn digits as image files, and how shards are read without this package."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hrvqvae.cli import main
from tests.conftest import drawn_digits


def digit_files(folder: Path, count: int, size: int = 28, seed: int = 1) -> Path:
    """Drawn digits as PNG files in class folders; -> the folder."""
    for number, (pixels, label) in enumerate(zip(*drawn_digits(count, seed, size), strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def tokenize(*arguments: object) -> None:
    """`hrvqvae tokenize ...` without workers, which must succeed."""
    assert main(["tokenize", *map(str, arguments), "--workers", "0"]) == 0


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the shards of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".parquet"}


def table(folder: Path) -> pa.Table:
    """Every row, in the order of the files."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def code_arrays(rows: pa.Table, level: int) -> list[Any]:
    """The codes of a level of each image, as arrays (H, W)."""
    shapes = zip(rows.column(f"height_{level}").to_pylist(), rows.column(f"width_{level}").to_pylist(), strict=True)
    found = zip(rows.column(f"codes_{level}").to_pylist(), shapes, strict=True)
    return [np.array(codes).reshape(shape) for codes, shape in found]
