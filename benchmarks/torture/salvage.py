"""An archive of 200 images with runs of damaged blocks, and which images an independent reader of
its page finds whole.

python -m benchmarks.torture.salvage --trials 1000 damages it anew in each trial: 1 to 100 blocks in
a row, in each of them a byte of its head, its index or its records, or all of it.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.common import as_script, options
from hrvqvae.compression.archive import appending, open_archive, salvage
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.model import Model
from hrvqvae.utils.errors import InputError


def write_archive(path: Path, model: EntropyModel, images: int = 200, seed: int = 0) -> None:
    """Write an archive of images of random codes, named by their numbers, each in a block of its
    own.
    """
    draw = np.random.default_rng(seed)
    layout = model.layout((28, 28))
    with appending(path, model) as writer:
        for index in range(images):
            codes = [
                draw.integers(0, most, grid.prod())
                for most, grid in zip(layout.symbols, layout.grids, strict=True)
            ]
            writer.append(
                [np.concatenate(codes).astype(np.int32)],
                [(28, 28)],
                [f"{index}"],
                len(model.symbols),
            )


def damage(content: bytes, draw: random.Random) -> bytes:
    """Return the archive with 1 to 100 damaged blocks in a row."""
    damaged = bytearray(content)
    starts = [found.start() for found in re.finditer(b"HRVB", content)] + [len(content)]
    blocks = draw.randrange(1, 101)
    first = draw.randrange(len(starts) - blocks)
    for begin, end in zip(starts[first : first + blocks], starts[first + 1 :], strict=False):
        part = (begin + 16, end) if draw.random() < 0.2 else (draw.randrange(begin, end),) * 2
        for place in range(part[0], max(part[1], part[0] + 1)):
            damaged[place] ^= draw.randrange(1, 256)
    return bytes(damaged)


def whole_images(content: bytes) -> dict[str, bytes]:
    """Return the records of the images that are whole by docs/format.md, by name, without the
    package's reader.
    """
    records = dict[str, bytes]()
    place = content.find(b"HRVB", 13 + int.from_bytes(content[5:9], "little"))
    while place >= 0:
        head = content[place : place + 20]
        end = place + 1
        count, index_bytes, record_bytes, check = (
            int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12, 16)
        )
        index = content[place + 20 : place + 20 + index_bytes]
        stop = place + 20 + index_bytes + record_bytes
        if stop <= len(content) and zlib.crc32(head[:16] + index) == check:
            start = place + 20 + index_bytes
            end = stop
            for name, length in _images(zlib.decompress(index), count):
                record = content[start : start + length]
                if _crc(record) == 0:
                    records[name] = record
                start += length
        place = content.find(b"HRVB", end)
    return records


def _images(index: bytes, count: int) -> Iterator[tuple[str, int]]:
    place = 0

    def varint() -> int:
        nonlocal place
        value = 0
        shift = 0
        while True:
            byte = index[place]
            place = place + 1
            value = value | (byte & 127) << shift
            shift = shift + 7
            if byte < 128:
                return value

    _ = varint()
    sizes = varint()
    for _ in range(2 * sizes):
        varint()
    least = varint()
    for length in [least + varint() for _ in range(count)]:
        name = varint()
        place += name
        yield index[place - name : place].decode(), length


def _crc(content: bytes) -> int:
    register = 255
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register << 1 ^ (0x1D if register & 0x80 else 0)) & 0xFF
    return register


def missing(path: Path, content: bytes, model: EntropyModel) -> list[str]:
    """Salvage a damaged archive. Return what is wrong: images that are whole and did not come back,
    or told nothing.
    """
    path.write_bytes(content)
    out = path.with_name("salvaged.hrva")
    expected = whole_images(content)
    out.unlink(missing_ok=True)
    try:
        _, left_out = salvage(path, out, model)
    except InputError as error:
        return [str(error)] if expected else []
    found = {
        entry.name: out.read_bytes()[entry.place : entry.place + entry.length]
        for entry in open_archive(out).entries
    }
    wrong = [name for name, record in expected.items() if found.get(name) != record]
    return wrong if left_out else [*wrong, "nothing is told"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    draw = random.Random(arguments.seed)
    wrong = 0
    whole = 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.hrva"
        model = Model("mnist").entropy_model
        write_archive(path, model, seed=arguments.seed)
        content = path.read_bytes()
        for _ in range(arguments.trials):
            damaged = damage(content, draw)
            whole += len(whole_images(damaged))
            wrong += bool(missing(path, damaged, model))
    print(
        f"{arguments.trials:,} trials, {whole:,} whole images, {wrong} trials in which one did not"
        " come back"
    )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    as_script(main)
