"""Measure files of codes: bytes by level, speed of entropy coding and of the network, archives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import (
    Row,
    as_script,
    options,
    positive,
    read_images,
    seconds,
    show,
    side_by_side,
)
from hrvqvae.cli.console import print_json
from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.images import decode_images, flat_codes
from hrvqvae.model import Model
from hrvqvae.utils.progress import note

Codes = NDArray[np.int32]

_BATCH = 128
_BLOCK = 2048
_TIMED = 512


def bench_codec(
    run: str | Path, root: str | None = None, images: int = 1000, archived: int = 60_000
) -> Row:
    """Return the bytes and the times of files of codes of a run's test images.

    Args:
        run: a run folder, or a model in the package.
        root: folder of the data, if it has moved since training.
        images: number of test images, evenly spread.
        archived: number of images in an archive, which repeats the test images.
    """
    model = Model(run)
    pixels = read_images(model.config.with_root(root).data, images)
    codes = np.concatenate(
        [flat_codes(model.encode(batch)) for batch in torch.split(pixels, _BATCH)]
    )
    size = (pixels.shape[-2], pixels.shape[-1])
    files = write(model.entropy_model, codes, size)
    lengths = np.array([image_codes.lengths for image_codes in read(model.entropy_model, files)])
    layout = model.entropy_model.layout(size)
    raw = float(sum(np.diff(layout.begins) * np.log2(layout.symbols))) / 8
    row: Row = {
        "images": len(files),
        "bytes": float(lengths.sum(1).mean()),
        "raw": raw,
        "parts": lengths.mean(0).tolist(),
        "tables": len(model.entropy_model.content) if model.entropy_model.networks else 0,
    }
    row["share"] = row["bytes"] / raw
    note("speed")
    row["speed"] = _bench_speed(model, pixels[:_TIMED], codes[:_TIMED], files[:_TIMED], size)
    with tempfile.TemporaryDirectory() as folder:
        note(f"an archive of {archived:,} images")
        alone = float(lengths[:, 1:].sum(1).mean())
        row["archive"] = _bench_archive(
            model.entropy_model, codes, size, archived, alone, Path(folder)
        )
    return row


def _bench_speed(
    model: Model, pixels: Tensor, codes: Codes, files: list[bytes], size: tuple[int, int]
) -> Row:
    """Return images per second of each step."""
    pictures = read(model.entropy_model, files)
    spent = side_by_side(
        {
            "network, to codes": lambda: [
                model.encode(batch) for batch in torch.split(pixels, _BATCH)
            ],
            "codes to files": lambda: write(model.entropy_model, codes, size),
            "files to codes": lambda: read(model.entropy_model, files),
            "network, to images": lambda: decode_images(model.autoencoder, pictures, model.device),
        },
        3,
    )
    return {name: len(files) / time_spent for name, time_spent in spent.items()}


def _bench_archive(
    entropy_model: EntropyModel,
    codes: Codes,
    size: tuple[int, int],
    count: int,
    alone: float,
    folder: Path,
) -> Row:
    """Return size, overhead and times of an archive; `alone` are the bytes per image in files of
    their own.
    """
    path = folder / "many.hrva"
    rows = [codes[index % len(codes)] for index in range(count)]
    begun = time.perf_counter()
    with appending(path, entropy_model) as writer:
        head = path.stat().st_size
        for start in range(0, count, _BLOCK):
            block = rows[start : start + _BLOCK]
            writer.append(block, [size] * len(block), [""] * len(block), len(entropy_model.symbols))
    written = time.perf_counter() - begun
    begun = time.perf_counter()
    archive = open_archive(path)
    opened = time.perf_counter() - begun
    indices = np.random.default_rng(0).integers(0, count, 200).tolist()
    times = [seconds(partial(archive.read, [index])) for index in indices]
    bytes_each = (path.stat().st_size - head) / count
    checks = len(entropy_model.symbols)  # in the files of single images, which `alone` counts
    return {
        "images": count,
        "bytes": path.stat().st_size,
        "bytes per image": bytes_each,
        "overhead per image": bytes_each - (alone - checks),
        "images/s written": count / written,
        "seconds to open": opened,
        "milliseconds to read one": 1e3 * float(np.median(times)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the files of a run's test images."""
    parser = options(__doc__)
    parser.add_argument(
        "run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package"
    )
    parser.add_argument(
        "--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)"
    )
    parser.add_argument(
        "--archived",
        type=positive,
        default=60_000,
        metavar="N",
        help="in an archive (default: 60000)",
    )
    parser.add_argument(
        "--data", metavar="DIR", help="where the data is, if it has moved since training"
    )
    arguments = parser.parse_args(argv)
    row = bench_codec(arguments.run, arguments.data, arguments.images, arguments.archived)
    if arguments.json:
        print_json(row)
        return
    names = ["header", *(f"level {level}" for level in range(1, len(row["parts"])))]
    parts = ", ".join(
        f"{name} {length:.1f}" for name, length in zip(names, row["parts"], strict=True)
    )
    print(
        f"{row['bytes']:.1f} bytes per image ({parts}): {row['share']:.1%} of the raw"
        f" {row['raw']:.0f}"
    )
    print(f"{row['images']:,} test images; an entropy model of {row['tables'] / 1e3:.0f} kB")
    for title in ("speed", "archive"):
        print()
        rows = [{"name": name, "value": value} for name, value in row[title].items()]
        show(rows, {title: "{name}", "images/s" if title == "speed" else "": "{value:,.4g}"})


if __name__ == "__main__":
    as_script(main)
