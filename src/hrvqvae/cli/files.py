"""Codes as files: compress, decompress, inspect, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, add_beam, add_lmbda, at_least, command, print_table
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


def _compress(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.trained import TrainedModel
    from hrvqvae.compression.folders import compress_files

    if arguments.bytes is not None:
        at_least(arguments.bytes, 1, "--bytes")
    model = TrainedModel(arguments.model, arguments.device, arguments.beam)
    written = compress_files(model, arguments.images, arguments.out, arguments.levels, arguments.bytes, arguments.lmbda)
    mean, share = written.bytes / written.images, written.bytes / written.pixels
    images, size = counted(written.images, "image"), counted(written.bytes, "byte")
    print(f"{images}, {size}, {mean:.1f} an image: {share:.2%} of the pixels")
    if model.codec.tables is None:
        print(f"without tables; make them and write fewer bytes: hrvqvae tables {arguments.model}")
    print(arguments.out)
    return 0


def _decompress(arguments: Arguments) -> int:
    from hrvqvae.compression.folders import decompress_files, model_for

    model = model_for(arguments.files[0], arguments.model)
    count = decompress_files(model, arguments.files, arguments.out, arguments.levels, arguments.names or ())
    print(f"{counted(count, 'image')}: {arguments.out}")
    return 0


def _inspect(arguments: Arguments) -> int:
    from hrvqvae.compression import archive

    if arguments.file.suffix == archive.SUFFIX:
        if arguments.out is not None:
            raise InputError("-o draws the levels of one file (.hrv), not of an archive")
        return _inspect_archive(arguments.file)
    from hrvqvae.compression.folders import model_for, read_files, sheet_of_levels
    from hrvqvae.compression.stream import read_header
    from hrvqvae.plots import sheets

    if arguments.out is not None:
        sheets.check_name(arguments.out)
    model = model_for(arguments.file, arguments.model)
    picture = read_files(model.codec, [arguments.file])[0]
    header = read_header(arguments.file.read_bytes(), str(arguments.file))
    how = "by tables" if picture.by_tables else "without tables"
    print(f"{arguments.file}: {picture.size[0]}x{picture.size[1]} pixels (height, width), by {model.codec.name}, {how}")
    print(f"fingerprint {header.fingerprint.hex()}\n")
    rows: list[Sequence[object]] = [("part", "codes", "bytes", "bits a code", "bytes so far")]
    total = picture.header
    rows.append(("header", "", picture.header, "", total))
    for number, (codes, length) in enumerate(zip(picture.codes, picture.lengths, strict=True), start=1):
        total += length
        rows.append((f"level {number}", codes.size, length, f"{8 * length / codes.size:.3f}", total))
    print_table(rows)
    missing = len(model.codec.symbols) - len(picture.codes)
    ended = f"whole as far as it goes; {counted(missing, 'level')} not in the file" if missing else "whole"
    print(f"\n{picture.fault or ended}")
    if arguments.out is not None:
        sheets.save(sheets.draw(sheet_of_levels(model, picture)), arguments.out)
        print(f"its levels: {arguments.out}")
    return 0


def _inspect_archive(path: Path) -> int:
    from hrvqvae.compression.archive import open_archive

    opened = open_archive(path)
    codec, entries = opened.codec, opened.entries
    records, tables = sum(entry.length for entry in entries), len(codec.tables.content) if codec.tables else 0
    print(f"{path}: {counted(len(entries), 'image')}, by {codec.name} (weights {codec.model[:12]})")
    rows: list[Sequence[object]] = [("part", "bytes", "an image")]
    count = max(1, len(entries))
    for name, number in (("records", records), ("tables", tables), ("index", opened.end - records - tables)):
        rows.append((name, f"{number:,}", f"{number / count:.2f}"))
    print_table(rows)
    sizes = sorted({entry.size for entry in entries})
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
    print(f"sizes: {shown or 'none'}")
    if opened.left_over:
        left = counted(opened.left_over, "byte")
        print(f"{left} at the end of no whole block: a writer was killed, or the file was cut")
    return 0


def _tables(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.loading import resolve_device
    from hrvqvae.compression.images import make_tables

    if not 0 < arguments.effort < math.inf:
        raise InputError(f"--effort is {arguments.effort}; it must be above 0")
    device = resolve_device(arguments.device)
    path = make_tables(arguments.model, arguments.data, arguments.effort, device)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


def add(commands: Group) -> None:
    """compress, decompress, inspect, tables."""
    compress = command(commands, "compress", "images to files of codes (.hrv), or to an archive (.hrva)", _compress)
    compress.add_argument("model", metavar="MODEL", help="a run, or a model inside the package")
    compress.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, and folders of them")
    compress.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT", help="X.hrv, a folder, or X.hrva: appended to"
    )
    compress.add_argument("--levels", type=int, metavar="K", help="write levels 1..K only")
    compress.add_argument(
        "--bytes", type=int, metavar="N", help="the least error in N bytes: levels and lambda that fit"
    )
    add_beam(compress)
    add_lmbda(compress)
    compress.add_argument("--device", default="auto", metavar="NAME")

    decompress = command(commands, "decompress", "files of codes and archives to PNG", _decompress)
    decompress.add_argument("files", nargs="+", type=Path, metavar="FILE", help="X.hrv or X.hrva")
    decompress.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="Y.png, or a folder")
    decompress.add_argument("--model", metavar="RUN", help="by which they were made, if it is not inside the package")
    decompress.add_argument("--levels", type=int, metavar="K", help="use levels 1..K only")
    decompress.add_argument("--names", nargs="+", metavar="NAME", help="of an archive, these images only")

    inspect = command(commands, "inspect", "what is in a file of codes or an archive: bytes by level", _inspect)
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--model", metavar="RUN", help="by which it was made, if it is not inside the package")
    inspect.add_argument("-o", "--out", type=Path, metavar="SHEET.png", help="a picture of its levels")

    tables = command(commands, "tables", "learn the integer models by which a run's codes are coded", _tables)
    tables.add_argument("model", metavar="MODEL")
    tables.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    tables.add_argument("--effort", type=float, default=1.0, metavar="X", help="how long to learn (default: 1)")
    tables.add_argument("--device", default="auto", metavar="NAME", help="that encodes the training images")
