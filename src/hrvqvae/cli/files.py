"""Commands for files of codes: compress, ..., fit-entropy-model; and for Parquet shards: tokenize,
detokenize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hrvqvae.cli.console import (
    Arguments,
    Group,
    command,
    flag,
    option,
    print_json,
    print_table,
    whole,
)
from hrvqvae.utils.errors import InputError, printable
from hrvqvae.utils.quantities import counted


def _compress(arguments: Arguments) -> int:
    from hrvqvae.image_files import compress_files
    from hrvqvae.model import Model

    model = Model(arguments.model, arguments.device, arguments.beam)
    written = compress_files(
        model,
        arguments.images,
        arguments.out,
        arguments.levels,
        arguments.bytes,
        arguments.lmbda,
        force=arguments.force,
        skip=arguments.on_error == "skip",
    )
    # `lost` has an entry for each image
    count = len(written.lost)
    size = counted(written.bytes, "byte")
    mean = written.bytes / count
    share = written.bytes / written.pixels
    print(f"{counted(count, 'image')}, {size}, {mean:.1f} per image: {share:.2%} of the pixels")
    if not model.entropy_model.networks:
        print(
            "without an entropy model; fit one and write fewer bytes: hrvqvae fit-entropy-model"
            f" {arguments.model}"
        )
    print(arguments.out)
    return 0


def _decompress(arguments: Arguments) -> int:
    from hrvqvae.image_files import decompress_files, list_files_of_codes
    from hrvqvae.model import models_of_files

    files = list_files_of_codes(arguments.files)
    models = models_of_files([path for path, _ in files], arguments.model)
    names = arguments.names or ()
    force = arguments.force
    count = decompress_files(models, files, arguments.out, arguments.levels, names, force=force)
    print(f"{counted(count, 'image')}: {arguments.out}")
    return 0


def _inspect(arguments: Arguments) -> int:
    from hrvqvae.compression.archive import is_archive
    from hrvqvae.compression.hrv import read, read_header
    from hrvqvae.model import models_of_files
    from hrvqvae.pictures import draw_levels
    from hrvqvae.utils.outputs import check_output

    path: Path = arguments.file
    if is_archive(path):
        if arguments.out is not None:
            raise InputError("-o draws the levels of one file (.hrv), not of an archive")
        if arguments.model is not None:
            raise InputError(
                "--model is for one file (.hrv): an archive has all that its inspection needs"
            )
        return _inspect_archive(path, arguments.verify)
    if arguments.verify:
        raise InputError("--verify is for archives: a file of codes (.hrv) is always checked")
    if arguments.out is not None:
        check_output(arguments.out, force=arguments.force, inputs=[path], suffix=".png")
    (model,) = models_of_files([path], arguments.model)
    content = path.read_bytes()
    codes = read(model.entropy_model, [content], names=[str(path)])[0]
    header = read_header(content)
    coding = "with an entropy model" if header.by_tables else "without an entropy model"
    print(
        f"{path}: {codes.size[0]}x{codes.size[1]} pixels (height, width), by"
        f" {model.entropy_model.name}, {coding}"
    )
    print(f"fingerprint {header.fingerprint.hex()}\n")
    rows: list[Sequence[object]] = [("part", "codes", "bytes", "bits per code", "bytes so far")]
    total = header.length
    rows.append(("header", "", total, "", total))
    for level, (indices, length) in enumerate(
        zip(codes.codes, codes.lengths[1:], strict=True), start=1
    ):
        total += length
        rows.append(
            (f"level {level}", indices.size, length, f"{8 * length / indices.size:.3f}", total)
        )
    print_table(rows)
    missing = len(model.entropy_model.symbols) - len(codes.codes)
    state = f"whole; {counted(missing, 'level')} not written to the file" if missing else "whole"
    print(f"\n{codes.fault or state}")
    if arguments.out is not None and len(codes.codes) >= model.autoencoder.prefixes[0]:
        draw_levels(model, codes, arguments.out)
        print(f"picture of the levels: {arguments.out}")
    return 2 if codes.fault else 0


def _inspect_archive(path: Path, verify: bool) -> int:
    """Print the contents of an archive; `verify` decodes all codes. Return 2 if anything is
    damaged, else 0.
    """
    from hrvqvae.compression.archive import open_archive

    opened = open_archive(path)
    entropy_model = opened.entropy_model
    entries = opened.entries
    records = sum(entry.length for entry in entries)
    model_size = len(entropy_model.content)
    print(
        f"{path}: {counted(len(entries), 'image')}, by {entropy_model.name} (weights"
        f" {entropy_model.model[:12]})"
    )
    rows: list[Sequence[object]] = [("part", "bytes", "per image")]
    count = max(1, len(entries))
    index_size = path.stat().st_size - opened.left_over - opened.damaged - records - model_size
    for name, size in (("records", records), ("entropy model", model_size), ("index", index_size)):
        rows.append((name, f"{size:,}", f"{size / count:.2f}"))
    print_table(rows)
    sizes = sorted({entry.size for entry in entries})
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:4]) + (
        ", ..." if len(sizes) > 4 else ""
    )
    print(f"sizes: {shown or 'none'}")
    for line in opened.damage:
        print(line)
    faults = (
        {index: fault for index, fault in enumerate(opened.faults()) if fault} if verify else {}
    )
    for index, fault in faults.items():
        print(f"{printable(opened.names[index])} (image {index}): {fault}")
    if verify:
        print(f"verified: {len(entries) - len(faults)} of {counted(len(entries), 'image')} whole")
    if not (faults or opened.damage):
        return 0
    print(f"write what is whole into a new archive: hrvqvae salvage {path} NEW.hrva")
    return 2


def _salvage(arguments: Arguments) -> int:
    from hrvqvae.compression.archive import salvage
    from hrvqvae.model import Model

    entropy_model = Model(arguments.model).entropy_model if arguments.model else None
    count, left_out = salvage(arguments.archive, arguments.out, entropy_model)
    print(f"{counted(count, 'image')}: {arguments.out}")
    for line in left_out:
        print(f"left out: {printable(line)}")
    return 2 if left_out else 0


def _fit_entropy_model(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.run import Run
    from hrvqvae.utils.device import resolve_device

    if not 0 < arguments.effort < math.inf:
        raise InputError(f"--effort is {arguments.effort}; it must be above 0")
    artifact = Run(arguments.model).entropy_model
    device = resolve_device(arguments.device)
    path = artifact.fit(
        arguments.data, arguments.effort, arguments.shifts, device, small=arguments.small
    )
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


def _tokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.tokenize import tokenize

    tokenized = tokenize(
        arguments.model,
        arguments.source,
        arguments.out,
        shard_size=arguments.shard_size,
        full_size=arguments.full_size,
        workers=arguments.workers,
        device=arguments.device,
        engine=arguments.engine,
        retry_broken=arguments.retry_broken,
        beam=arguments.beam,
    )
    if arguments.json:
        print_json(vars(tokenized))
    else:
        images = counted(tokenized.images, "image")
        shards = counted(tokenized.shards, "shard")
        print(f"{images} in {shards}, {tokenized.added:,} of them made now: {arguments.out}")
    return 0


def _detokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.shards import detokenize

    count = detokenize(
        arguments.shards,
        arguments.out,
        model=arguments.model,
        levels=arguments.levels,
        device=arguments.device,
        force=arguments.force,
    )
    print(f"{counted(count, 'image')}: {arguments.out}")
    return 0


def add(commands: Group) -> None:
    """Add compress, decompress, inspect, salvage, fit-entropy-model, tokenize and detokenize."""
    command(
        commands,
        "compress",
        "encode images as files of codes (.hrv) or into an archive (.hrva)",
        _compress,
        "model",
        option(
            "images",
            nargs="+",
            type=Path,
            metavar="IMAGE",
            help="files, folders, lists, tars, Parquet, arrays",
        ),
        option(
            "-o",
            "--out",
            required=True,
            type=Path,
            metavar="OUT",
            help="X.hrv, a folder, or X.hrva to append to",
        ),
        option("--levels", type=int, metavar="K", help="write levels 1 to K only (default: all)"),
        "--force",
        option(
            "--on-error",
            choices=("stop", "skip"),
            default="stop",
            help="at an unreadable image (default: stop)",
        ),
        option(
            "--bytes",
            type=whole(1),
            metavar="N",
            help="minimize the error in at most N bytes per image",
        ),
        "--beam",
        "--lmbda",
        "--device",
    )
    command(
        commands,
        "decompress",
        "decode files of codes and archives to PNG",
        _decompress,
        option(
            "files", nargs="+", type=Path, metavar="FILE", help="X.hrv, X.hrva, or a folder of them"
        ),
        option("-o", "--out", required=True, type=Path, metavar="OUT", help="Y.png, or a folder"),
        "--model",
        "--force",
        "--levels",
        option(
            "--names",
            nargs="+",
            metavar="NAME",
            help="decode only these images of an archive, by name or index",
        ),
    )
    sheet = option(
        "-o",
        "--out",
        type=Path,
        metavar="SHEET.png",
        help="draw the levels of the file to SHEET.png",
    )
    verify = flag(
        "--verify", "decode the codes of every image of an archive; exit code 2 if any is damaged"
    )
    about = "show what a file of codes or an archive holds"
    file = option("file", type=Path, metavar="FILE", help="X.hrv or X.hrva")
    command(commands, "inspect", about, _inspect, file, "--model", sheet, "--force", verify)
    command(
        commands,
        "salvage",
        "copy the whole images of a damaged archive into a new one",
        _salvage,
        option("archive", type=Path, metavar="ARCHIVE", help="X.hrva"),
        option("out", type=Path, metavar="NEW.hrva", help="write the new archive to NEW.hrva"),
        option(
            "--model",
            metavar="MODEL",
            help="model that wrote the archive; needed if its head is damaged",
        ),
    )
    about = "fit the entropy model of a run, which makes its files smaller"
    effort = option(
        "--effort", type=float, default=1.0, metavar="X", help="train X times as long (default: 1)"
    )
    copies = "train on N shifted copies of each image too (default: 0)"
    shifts = option("--shifts", type=whole(0), default=0, metavar="N", help=copies)
    small = flag(
        "--small",
        "limit the entropy model to a few kilobytes per level, for a web page (docs/web.md)",
    )
    options = ("model", "--data", effort, shifts, small, "--device")
    command(commands, "fit-entropy-model", about, _fit_entropy_model, *options)
    source = "a folder of images, a list of images (.txt), tars, Parquet or arrays"
    command(
        commands,
        "tokenize",
        "encode many images as Parquet shards of codes; the same command resumes",
        _tokenize,
        "model",
        option("source", type=Path, metavar="SOURCE", help=source),
        option("out", type=Path, metavar="OUT", help="write the shards to the folder OUT"),
        option(
            "--shard-size",
            type=whole(1),
            metavar="N",
            help="write N images per shard (default: 10,000)",
        ),
        flag(
            "--full-size", "encode images in their own sizes, not cropped to the size in training"
        ),
        option(
            "--workers",
            type=whole(0),
            metavar="N",
            help="decode images in N processes per copy of the model",
        ),
        "--device",
        "--beam",
        "--json",
        option(
            "--engine",
            choices=("local", "ray"),
            default="local",
            help="ray: on a Ray cluster (default: local)",
        ),
        flag("--retry-broken", "retry images that were broken in an earlier call"),
    )
    command(
        commands,
        "detokenize",
        "decode shards of codes to PNG",
        _detokenize,
        option("shards", type=Path, metavar="SHARDS", help="a folder of shards, or one shard"),
        option(
            "out",
            type=Path,
            metavar="OUT",
            help="write each image to OUT/KEY, by its key in the shards",
        ),
        "--model",
        "--levels",
        "--device",
        "--force",
    )
