"""Files of codes: bytes by level, speed of entropy coding and of the network, archives, and damage by the million."""

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

from benchmarks.common import Row, as_script, options, positive, seconds, show, side_by_side
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.cli.console import print_json
from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.images import decode_images, flat_codes
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

Codes = NDArray[np.int32]

_BATCH, _BLOCK, _TIMED = 128, 2048, 512
_SMALL = 64  # images whose files are damaged


def mutated(content: bytes, others: Sequence[bytes], random: np.random.Generator) -> bytes:
    """A file with up to three changes: a byte replaced, bytes cut out or put in, or the end of another file."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 4)):
        if not changed:
            break
        near_header = random.random() < 0.2
        place = int(random.integers(min(8, len(changed)) if near_header else len(changed)))
        kind = random.integers(4)
        if kind == 0:
            changed[place] = random.integers(256)
        elif kind == 1:
            del changed[place : place + int(random.integers(1, 6))]
        elif kind == 2:
            changed[place:place] = random.bytes(int(random.integers(1, 6)))
        else:
            changed[place:] = others[int(random.integers(len(others)))][place:]
    return bytes(changed)


def bench_codec(
    run: str | Path, root: str | None = None, images: int = 1000, archived: int = 60_000, damaged: int = 100_000
) -> Row:
    """What files of codes of a run's test images take, in bytes and in time.

    Args:
        root: where the data is, if it has moved since training.
        images: test images, evenly spread.
        archived: images of an archive, the test images again and again.
        damaged: mutated files and archives that are read.

    Raises:
        InputError: the run or its data is missing.
    """
    model = TrainedModel(run)
    config = model.config.with_root(root)
    batches = evaluation_batches(load_images(config.data, "test"), batch_size=_BATCH, limit=images, workers=0)
    pixels = torch.cat([batch.images for batch in batches])
    codes = np.concatenate([flat_codes(model.encode(some)) for some in torch.split(pixels, _BATCH)])
    size = (pixels.shape[-2], pixels.shape[-1])
    parts = write(model.codec, codes, size)
    files = [b"".join(one) for one in parts]
    lengths = np.array([[len(part) for part in one] for one in parts])
    layout = model.codec.layout(size)
    raw = float(sum(np.diff(layout.begins) * np.log2(layout.symbols))) / 8
    found: Row = {
        "images": len(files), "bytes": float(lengths.sum(1).mean()), "raw": raw, "parts": lengths.mean(0).tolist(),
        "tables": len(model.codec.content) if model.codec.networks else 0,
    }  # fmt: skip
    found["share"] = found["bytes"] / raw
    note("speed")
    found["speed"] = _speed(model, pixels[:_TIMED], codes[:_TIMED], files[:_TIMED], size)
    with tempfile.TemporaryDirectory() as folder:
        note(f"an archive of {archived:,} images")
        found["archive"] = _archive(
            model.codec, codes, size, archived, float(lengths[:, 1:].sum(1).mean()), Path(folder)
        )
        note(f"{damaged:,} damaged files and archives")
        found["damage"] = _damage(model.codec, codes[:_SMALL], size, damaged, Path(folder) / "small.hrva")
    return found


def _speed(model: TrainedModel, pixels: Tensor, codes: Codes, files: list[bytes], size: tuple[int, int]) -> Row:
    """Images a second."""
    pictures = read(model.codec, files)
    spent = side_by_side(
        {
            "network, to codes": lambda: [model.encode(some) for some in torch.split(pixels, _BATCH)],
            "codes to files": lambda: write(model.codec, codes, size),
            "files to codes": lambda: read(model.codec, files),
            "network, to images": lambda: decode_images(model.autoencoder, pictures, model.device),
        },
        3,
    )
    return {name: len(files) / time_spent for name, time_spent in spent.items()}


def _archive(codec: EntropyModel, codes: Codes, size: tuple[int, int], count: int, alone: float, folder: Path) -> Row:
    """Size, overhead and times of an archive."""
    path = folder / "many.hrva"
    rows = [codes[number % len(codes)] for number in range(count)]
    begun = time.perf_counter()
    with appending(path, codec) as writer:
        head = path.stat().st_size
        for start in range(0, count, _BLOCK):
            some = rows[start : start + _BLOCK]
            writer.append(some, [size] * len(some), [""] * len(some), len(codec.symbols))
    written = time.perf_counter() - begun
    begun = time.perf_counter()
    archive = open_archive(path)
    opened = time.perf_counter() - begun
    random = np.random.default_rng(0)
    times = [seconds(partial(archive.read, [number])) for number in random.integers(0, count, 200).tolist()]
    bytes_each = (path.stat().st_size - head) / count
    checks = len(codec.symbols)  # in the files of single images, which `alone` counts
    return {
        "images": count, "bytes": path.stat().st_size, "bytes an image": bytes_each,
        "overhead an image": bytes_each - (alone - checks), "images/s written": count / written,
        "seconds to open": opened, "milliseconds to read one": 1e3 * float(np.median(times)),
    }  # fmt: skip


def _damage(codec: EntropyModel, codes: Codes, size: tuple[int, int], count: int, archive: Path) -> Row:
    """How many damaged files were refused, told as damaged, not noticed, or not damaged; the slowest, in seconds."""
    random = np.random.default_rng(0)
    found: Row = {"refused": 0, "told": 0, "not noticed": 0, "not damaged": 0}
    files = [b"".join(parts) for parts in write(codec, codes, size)]
    whole = _prefixes(codec, files)
    for some in (codes[: len(codes) // 2], codes[len(codes) // 2 :]):
        with appending(archive, codec.bare) as writer:
            writer.append(list(some), [size] * len(some), [""] * len(some), len(codec.symbols))
    content = archive.read_bytes()
    slowest = 0.0
    for number in range(count):
        begun = time.perf_counter()
        if number % 20 == 19:
            changed = mutated_archive(content, random)
            kind = "not damaged" if changed == content else _read_archive(archive, changed)
        else:
            kind = _read_file(codec, mutated(files[number % len(files)], files, random), whole)
        slowest = max(slowest, time.perf_counter() - begun)
        found[kind] += 1
    return {**found, "slowest": slowest}


def _prefixes(codec: EntropyModel, files: list[bytes]) -> set[bytes]:
    """The files, and what is left of each where it ends after one of its levels."""
    found = set()
    for content, picture in zip(files, read(codec, files), strict=True):
        found |= {content[:end] for end in np.cumsum(picture.lengths)[1:].tolist()}
    return found


def _read_file(codec: EntropyModel, content: bytes, whole: set[bytes]) -> str:
    if content in whole:
        return "not damaged"
    try:
        picture = read(codec, [content])[0]
    except InputError:
        return "refused"
    return "told" if picture.fault else "not noticed"


def mutated_archive(content: bytes, random: np.random.Generator) -> bytes:
    """An archive with a few bytes changed, cut out or put in."""
    changed = bytearray(content)
    for place in random.integers(0, len(changed), random.integers(1, 4)).tolist():
        changed[place : place + int(random.integers(0, 3))] = random.bytes(int(random.integers(0, 3)))
    return bytes(changed)


def _read_archive(path: Path, content: bytes) -> str:
    path.with_suffix(".bad").write_bytes(content)
    try:
        archive = open_archive(path.with_suffix(".bad"))
        faults = [one.fault for one in archive.read(range(len(archive.entries)))]
    except InputError:
        return "refused"
    return "told" if any(faults) or archive.damaged or archive.left_over else "not noticed"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the files of a run's test images."""
    parser = options(__doc__)
    parser.add_argument("run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package")
    parser.add_argument("--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--archived", type=positive, default=60_000, metavar="N", help="in an archive (default: 60000)")
    parser.add_argument("--damaged", type=positive, default=100_000, metavar="N", help="files (default: 100000)")
    parser.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    arguments = parser.parse_args(argv)
    found = bench_codec(arguments.run, arguments.data, arguments.images, arguments.archived, arguments.damaged)
    if arguments.json:
        print_json(found)
        return
    names = ["header", *(f"level {number}" for number in range(1, len(found["parts"])))]
    parts = ", ".join(f"{name} {length:.1f}" for name, length in zip(names, found["parts"], strict=True))
    print(f"{found['bytes']:.1f} bytes per image ({parts}): {found['share']:.1%} of the raw {found['raw']:.0f}")
    print(f"{found['images']:,} test images; an entropy model of {found['tables'] / 1e3:.0f} kB")
    for title in ("speed", "archive", "damage"):
        print()
        rows = [{"name": name, "value": value} for name, value in found[title].items()]
        show(rows, {title: "{name}", "images/s" if title == "speed" else "": "{value:,.4g}"})


if __name__ == "__main__":
    as_script(main)
