"""Commands for files of codes and their entropy model, and for Parquet shards of codes."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from hrvqvae.cli.console import (
    READING_FIELDS,
    Arguments,
    Command,
    flag,
    integer,
    option,
    pick,
    print_json,
    print_table,
)
from hrvqvae.utils.errors import InputError, printable
from hrvqvae.utils.quantities import counted


def _compress(arguments: Arguments) -> None:
    from hrvqvae.image_files import compress_images
    from hrvqvae.model import Model

    model = Model(arguments.model, arguments.device, arguments.beam)
    written = compress_images(
        model,
        arguments.images,
        arguments.out,
        skip=arguments.on_error == "skip",
        max_bytes=arguments.bytes,
        **pick(arguments, "force levels effort"),
    )
    count = len(written.lost)  # it has an entry per image, even if nothing was lost
    if count:  # an interrupted call may have left nothing to do
        mean = written.bytes / count
        share = written.bytes / written.pixels
        totals = f"{counted(count, 'image')}, {counted(written.bytes, 'byte')}"
        print(f"{totals}, {mean:.1f} per image: {share:.2%} of the pixels")
    if not model.entropy_model.networks:
        print(
            "without an entropy model; fit one and write fewer bytes: hrvqvae fit-entropy-model"
            f" {shlex.quote(arguments.model)}"
        )
    print(arguments.out)


def _decompress(arguments: Arguments) -> None:
    from hrvqvae.image_files import decompress_files

    count = decompress_files(
        arguments.files,
        arguments.out,
        **pick(arguments, "model levels force"),
    )
    print(f"{counted(count, 'image')}: {arguments.out}")


def _inspect(arguments: Arguments) -> int:
    from hrvqvae.compression.zips import is_zip

    if not is_zip(arguments.file):
        return _inspect_file(arguments)
    if arguments.out is not None or arguments.model is not None:
        raise InputError("-o and --model are for one file (.hrv), not for a zip")
    return _inspect_zip(arguments.file)


def _inspect_file(arguments: Arguments) -> int:
    """Print what each level of a file takes. Return 2 if it is damaged, else 0."""
    from hrvqvae.compression.hrv import read, read_header
    from hrvqvae.model import find_models
    from hrvqvae.pictures import draw_levels
    from hrvqvae.utils.outputs import check_output

    path: Path = arguments.file
    if arguments.out is not None:
        check_output(arguments.out, force=arguments.force, inputs=[path], suffix=".png")
    content = path.read_bytes()
    header = read_header(content, str(path))
    ((model,), _) = find_models([(str(path), header.fingerprint)], arguments.model)
    assert model is not None  # an unknown one is an error
    codes = read(model.entropy_model, [content], names=[str(path)])[0]
    # docs/format.md calls the networks of an entropy model tables.
    coding = "with an entropy model" if header.by_tables else "without an entropy model"
    height, width = codes.size
    print(
        f"{path}: {height}x{width} pixels (height, width), by {model.entropy_model.name}, {coding}"
    )
    print(f"fingerprint {header.fingerprint.hex()}\n")
    rows: list[Sequence[object]] = [("part", "codes", "bytes", "bits per code", "bytes so far")]
    total = header.length
    rows.append(("header", "", total, "", total))
    # The first length is the header's.
    for level, (indices, length) in enumerate(
        zip(codes.codes, codes.lengths[1:], strict=True), start=1
    ):
        total += length
        bits = 8 * length / indices.size
        rows.append((f"level {level}", indices.size, length, f"{bits:.3f}", total))
    print_table(rows)
    missing = len(model.entropy_model.symbols) - len(codes.codes)
    state = f"whole; {counted(missing, 'level')} not written to the file" if missing else "whole"
    print(f"\n{codes.fault or state}")
    if arguments.out is not None:
        least = model.autoencoder.prefixes[0]  # levels that the model decodes
        if len(codes.codes) < least:
            print(f"no picture: the model decodes {least} levels or more")
            return 2
        draw_levels(model, codes, arguments.out)
        print(f"picture of the levels: {arguments.out}")
    return 2 if codes.fault else 0


def _inspect_zip(path: Path) -> int:
    """Print what a zip holds, and what is damaged. Return 2 if anything is, else 0."""
    from hrvqvae.compression.hrv import read_header
    from hrvqvae.compression.zips import read_zip
    from hrvqvae.utils.errors import DamagedFileError

    headers = []
    damaged = []
    num_bytes = 0
    for name, content in read_zip(path):
        content = content or b""  # None: the zip is damaged there, so there is no header
        try:
            headers.append(read_header(content, name))
            num_bytes += len(content)
        except DamagedFileError:
            damaged.append(name)
    overhead = (path.stat().st_size - num_bytes) / max(1, len(headers))
    images = counted(len(headers), "image")
    print(f"{path}: {images}, {num_bytes:,} bytes, and {overhead:.1f} per image for the zip")
    fingerprints = {header.fingerprint.hex() for header in headers}
    print(f"fingerprints: {', '.join(sorted(fingerprints))}")
    sizes = sorted({header.size for header in headers})
    shown = [f"{height}x{width}" for height, width in sizes[:4]]
    print(f"sizes: {', '.join(shown)}{', ...' if len(sizes) > 4 else ''}")
    for name in damaged:
        print(f"damaged: {printable(name)}")
    return 2 if damaged else 0


def _fit_entropy_model(arguments: Arguments) -> None:
    from hrvqvae.checkpoints.run import Run
    from hrvqvae.utils.device import resolve_device

    if not 0 < arguments.effort < math.inf:
        raise InputError(f"--effort is {arguments.effort}; it must be above 0")
    artifact = Run(arguments.model).entropy_model
    device = resolve_device(arguments.device)
    path = artifact.fit(
        arguments.data,
        device=device,
        **pick(arguments, "effort shifts small fields"),
    )
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def _tokenize(arguments: Arguments) -> None:
    from hrvqvae.tokens.tokenize import tokenize

    tokenized = tokenize(
        **pick(
            arguments,
            "model source out shard_size full_size workers device engine retry_broken beam effort",
        ),
    )
    if arguments.json:
        print_json(vars(tokenized))
    else:
        images = counted(tokenized.images, "image")
        shards = counted(tokenized.shards, "shard")
        print(f"{images} in {shards}, {tokenized.added:,} of them made now: {arguments.out}")


def _detokenize(arguments: Arguments) -> None:
    from hrvqvae.tokens.shards import detokenize

    count = detokenize(**pick(arguments, "shards out model levels device force"))
    print(f"{counted(count, 'image')}: {arguments.out}")


COMMANDS = (
    Command(
        "compress",
        "encode images as files of codes (.hrv), or as a zip of them",
        _compress,
        "model",
        option(
            "images IMAGE", "files, folders, lists, tars, Parquet, arrays", nargs="+", type=Path
        ),
        option("-o --out OUT", "X.hrv, X.zip, or a folder", required=True, type=Path),
        option("--levels K", "write levels 1 to K only (default: all)", type=int),
        "--force",
        option(
            "--on-error",
            "at an unreadable image (default: stop)",
            choices=("stop", "skip"),
            default="stop",
        ),
        option(
            "--bytes N",
            "write the most levels that fit in N bytes per image",
            type=integer(1),
        ),
        "--beam",
        "--effort",
        "--device",
    ),
    Command(
        "decompress",
        "decode files of codes to PNG",
        _decompress,
        option("files FILE", "X.hrv, X.zip, or a folder of them", nargs="+", type=Path),
        option("-o --out OUT", "Y.png, or a folder", required=True, type=Path),
        "--model",
        "--force",
        "--levels",
    ),
    Command(
        "inspect",
        "show what a file of codes or a zip of them holds",
        _inspect,
        option("file FILE", "X.hrv or X.zip", type=Path),
        "--model",
        option("-o --out SHEET.png", "draw the levels of the file to SHEET.png", type=Path),
        "--force",
    ),
    Command(
        "fit-entropy-model",
        "fit the entropy model of a run, which makes its files smaller",
        _fit_entropy_model,
        "model",
        "--data",
        option("--effort X", "train X times as long (default: 1)", type=float, default=1.0),
        option(
            "--shifts N",
            "train on N shifted copies of each image too (default: 0)",
            type=integer(0),
            default=0,
        ),
        flag(
            "--small",
            "limit the entropy model to a few kilobytes per level, for a web page (docs/web.md)",
        ),
        "--device",
        fields=READING_FIELDS,
    ),
    Command(
        "tokenize",
        "encode many images as Parquet shards of codes; the same command resumes",
        _tokenize,
        "model",
        option(
            "source SOURCE",
            "a folder of images, a list of images (.txt), tars, Parquet or arrays",
            type=Path,
        ),
        option("out OUT", "write the shards to the folder OUT", type=Path),
        option("--shard-size N", "write N images per shard (default: 10,000)", type=integer(1)),
        flag(
            "--full-size", "encode images in their own sizes, not cropped to the size in training"
        ),
        option(
            "--workers N",
            "decode images in N processes per copy of the model",
            type=integer(0),
        ),
        "--device",
        "--beam",
        "--effort",
        "--json",
        option(
            "--engine",
            "ray: on a Ray cluster (default: local)",
            choices=("local", "ray"),
            default="local",
        ),
        flag("--retry-broken", "retry images that were broken in an earlier call"),
    ),
    Command(
        "detokenize",
        "decode shards of codes to PNG",
        _detokenize,
        option("shards SHARDS", "a folder of shards, or one shard", type=Path),
        option("out OUT", "write each image to OUT/KEY, by its key in the shards", type=Path),
        "--model",
        "--levels",
        "--device",
        "--force",
    ),
)
