"""The golden files: small files of codes with what is in them, which every later version must read alike.

`python -m tests.compression.golden` wrote tests/golden/files. It is not run again: files that were written once stay.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hrvqvae.compression.archive import appending
from hrvqvae.compression.stream import Codec, write
from tests.compression.made import ALL, bare, random_codes

FOLDER = Path(__file__).parents[1] / "golden" / "files"
_SIZES = {"tree": ((1, 1), (7, 7), (16, 16), (130, 5)), "grids": ((3, 3), (9, 20)), "flat": ((16, 16), (5, 40)),
          "half": ((8, 8), (64, 33))}  # fmt: skip


def _nested(codec: Codec, size: tuple[int, int], codes: np.ndarray, levels: int) -> list[list[list[int]]]:
    layout = codec.layout(size)
    return [codes[layout.part(level)].reshape(layout.grids[level]).tolist() for level in range(levels)]


def write_golden(folder: Path) -> None:
    """Twenty files, two archives, their tables and an index with all codes."""
    folder.mkdir(parents=True, exist_ok=True)
    files, archives = [], []
    for seed, (name, codec) in enumerate(ALL.items()):
        assert codec.tables is not None
        (folder / f"{name}.hrvt").write_bytes(codec.tables.content)
        for number, size in enumerate(_SIZES[name]):
            codes = random_codes(codec, size, 1, seed + number)
            for kind, one in (("tables", codec), ("plain", bare(codec))):
                levels = len(codec.symbols) - (number == 1 and kind == "tables" and len(codec.symbols) > 1)
                content = b"".join(write(one, codes, size, levels)[0])
                file = f"{name}-{kind}-{size[0]}x{size[1]}.hrv"
                (folder / file).write_bytes(content)
                files.append({
                    "file": file, "tables": f"{name}.hrvt", "by_tables": bool(content[0] & 1), "size": size,
                    "codes": _nested(codec, size, codes[0], levels),
                })  # fmt: skip
    for name, sizes in (("tree", ((6, 6),) * 3), ("grids", ((9, 4), (12, 12)))):
        codec = ALL[name]
        path = folder / f"{name}.hrva"
        images = [random_codes(codec, size, 1, 50 + number)[0] for number, size in enumerate(sizes)]
        names = [f"image/{number}" if number else "" for number in range(len(sizes))]
        with appending(path, codec) as append:
            append(images[:2], sizes[:2], names[:2], len(codec.symbols))
            if sizes[2:]:
                append(images[2:], sizes[2:], names[2:], 2)
        stored = [len(codec.symbols)] * 2 + [2] * len(sizes[2:])
        archives.append({
            "file": path.name,
            "images": [
                {"name": names[number], "size": size, "codes": _nested(codec, size, images[number], stored[number])}
                for number, size in enumerate(sizes)
            ],
        })  # fmt: skip
    (folder / "codes.json").write_text(json.dumps({"files": files, "archives": archives}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write_golden(FOLDER)
