"""Measure files of codes: bytes by level, speed of entropy coding and of the network, zips."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import Row, as_script, options, read_images, show, side_by_side
from hrvqvae.cli.console import print_json
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.images import decode_images
from hrvqvae.compression.levels import flat_codes
from hrvqvae.compression.zips import open_zip, write_zip
from hrvqvae.model import Model
from hrvqvae.utils.progress import note

Codes = NDArray[np.int32]

_BATCH = 128
_TIMED = 512


def bench_codec(
    run: str | Path, root: str | None = None, images: int = 1000, zipped: int = 60_000
) -> Row:
    """Return the bytes and the times of files of codes of a run's test images.

    Args:
        run: a run folder, or a model in the package.
        root: folder of the data, if it has moved since training.
        images: number of test images, evenly spread.
        zipped: number of images in a zip, which repeats the test images.
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
    note(f"a zip of {zipped:,} images")
    with tempfile.TemporaryDirectory() as folder:
        row["zip"] = _bench_zip(files, zipped, Path(folder) / "many.zip")
    return row


def _bench_speed(
    model: Model, pixels: Tensor, codes: Codes, files: list[bytes], size: tuple[int, int]
) -> Row:
    """Return images per second of each step."""
    pictures = read(model.entropy_model, files)
    batches = torch.split(pixels, _BATCH)
    spent = side_by_side(
        {
            "network, to codes": lambda: [*map(model.encode, batches)],
            "codes to files": lambda: write(model.entropy_model, codes, size),
            "files to codes": lambda: read(model.entropy_model, files),
            "network, to images": lambda: decode_images(model.autoencoder, pictures, model.device),
        },
        3,
    )
    return {name: len(files) / time_spent for name, time_spent in spent.items()}


def _bench_zip(files: Sequence[bytes], count: int, path: Path) -> Row:
    """Return size, overhead and times of a zip of `count` files, which repeats `files`."""
    contents = [files[index % len(files)] for index in range(count)]
    size = sum(map(len, contents))
    begun = time.perf_counter()
    write_zip(path, ((f"{index:06d}.hrv", content) for index, content in enumerate(contents)))
    written = time.perf_counter()
    assert sum(len(read()) for _, read in open_zip(path)) == size
    finished = time.perf_counter()
    return {
        "images": count,
        "bytes": path.stat().st_size,
        "overhead per image": (path.stat().st_size - size) / count,
        "images/s written": count / (written - begun),
        "images/s read": count / (finished - written),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the files of a run's test images."""
    parser = options(__doc__, images=(1000, "test images"), zipped=(60_000, "in a zip"))
    parser.add_argument(
        "run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="where the data is, if it has moved since training"
    )
    arguments = parser.parse_args(argv)
    row = bench_codec(arguments.run, arguments.data, arguments.images, arguments.zipped)
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
    for title in ("speed", "zip"):
        print()
        rows = [{"name": name, "value": value} for name, value in row[title].items()]
        show(rows, {title: "{name}", "images/s" if title == "speed" else "": "{value:,.4g}"})


if __name__ == "__main__":
    as_script(main)
