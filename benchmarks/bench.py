"""Measurements that print a ratio."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from hrvqvae.cli.bench_training import add_training

from hrvqvae.cli.console import Arguments, Group, at_least, command, group, print_json, print_table
from hrvqvae.utils.errors import InputError


def _bench_search(arguments: Arguments) -> int:
    from benchmarks.search import as_table, bench_search

    at_least(arguments.vectors, 64, "--vectors")
    if arguments.size is not None:
        at_least(arguments.size[0], 1, "the first number of --size")
        at_least(arguments.size[1], 2, "the second number of --size")
        if arguments.plot:
            raise InputError("--plot draws how cost grows over all sizes; leave --size out")
    grid = None if arguments.size is None else [tuple(arguments.size)]
    rows = bench_search(grid, arguments.vectors, libraries=not arguments.no_libraries)
    if arguments.plot:
        from hrvqvae.plots.curves import search_growth

        search_growth(rows, arguments.plot)
    if arguments.json:
        print_json(rows)
        return 0
    print(f"{arguments.vectors:,} vectors of width {rows[0]['width']}, medians, side by side")
    print_table(as_table(rows))
    return 0


def _bench_beam(arguments: Arguments) -> int:
    from benchmarks.beam import as_tables, bench_beam

    at_least(arguments.images, 1, "--images")
    rows, rate_rows = bench_beam(arguments.run, images=arguments.images, data=arguments.data)
    if arguments.json:
        print_json({"beams": rows, "rates": rate_rows})
        return 0
    for table in as_tables(rows, rate_rows):
        print_table(table)
        print()
    return 0


def _bench_start(arguments: Arguments) -> int:
    from benchmarks.start import bench_start

    rows = bench_start()
    if arguments.json:
        print_json(rows)
        return 0
    print("first search of a process, seconds")
    print_table([("cache", "method", "s"), *((row["cache"], row["method"], f"{row['seconds']:.2f}") for row in rows)])
    return 0


def _bench_codec(arguments: Arguments) -> int:
    from benchmarks.codec import bench_codec

    for name in ("images", "archived"):
        at_least(getattr(arguments, name), 64, f"--{name}")
    found = bench_codec(
        arguments.run, arguments.data, arguments.images, arguments.archived, arguments.damaged,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    if arguments.json:
        print_json(found)
        return 0
    names = ["header", *(f"level {number}" for number in range(1, len(found["parts"])))]
    shown = ", ".join(f"{name} {length:.1f}" for name, length in zip(names, found["parts"], strict=True))
    print(f"{found['bytes']:.1f} bytes an image ({shown}): {found['share']:.1%} of the raw {found['raw']:.0f}")
    print(f"{found['images']:,} test images; tables of {found['tables'] / 1e3:.0f} kB\n")
    for title in ("speed", "archive", "damage"):
        unit = "images/s" if title == "speed" else ""
        print_table([(title, unit), *((name, f"{value:,.4g}") for name, value in found[title].items())])
        print()
    return 0


def _bench_sample(arguments: Arguments) -> int:
    from benchmarks.sample import as_table, bench_sample

    at_least(arguments.rounds, 1, "--rounds")
    rows = bench_sample(rounds=arguments.rounds)
    if arguments.json:
        print_json(rows)
        return 0
    print_table(as_table(rows))
    return 0


def _bench_files(arguments: Arguments) -> int:
    from benchmarks.files.comparison import ahead_table, compare_files
    from hrvqvae.checkpoints.folder import shipped
    from hrvqvae.config.parsing import base_config, override
    from hrvqvae.plots.files import write_pictures

    if arguments.images is not None:
        at_least(arguments.images, 1, "--images")
    for budget in arguments.bytes:
        at_least(budget, 1, "--bytes")
    config = override(base_config(f"hrvqvae/{arguments.dataset}"), arguments.fields).with_root(arguments.data)
    models = [arguments.dataset] if arguments.models is None and arguments.dataset in shipped() else arguments.models
    compared = compare_files(
        config.data, models or (), arguments.formats, limit=arguments.images, budgets=arguments.bytes,
        linear=not arguments.no_linear,
    )  # fmt: skip
    written = write_pictures(compared, arguments.out) if arguments.out else []
    if arguments.json:
        print_json(compared.to_dict())
        return 0
    _, channels, height, width = compared.images.shape
    print(f"{arguments.dataset}: {len(compared.images):,} test images, {channels} x {height} x {width}")
    print("(in brackets): not every byte that a reader needs is counted; model: what it needs beside the file")
    for measure, way, title in (
        ("psnr", "within", "PSNR, dB, of the mean squared error: fixed settings, so many bytes an image in the mean"),
        ("ssim", "within", "SSIM, the same"),
        ("psnr", "fitted", "PSNR: so many bytes at most for each image, its setting chosen for it"),
    ):
        print(f"\n{title}")
        print_table(compared.table(measure, way))
    for title, rows in compared.ahead().items():
        print(f"\n{title}: dB above (below: -) the others at the same mean bytes")
        print_table(ahead_table(rows))
    for path in written:
        print(path)
    return 0


def _bench_onnx(arguments: Arguments) -> int:
    from benchmarks.onnx import as_table, bench_onnx

    at_least(arguments.images, 1, "--images")
    at_least(arguments.rounds, 1, "--rounds")
    agreement, rows = bench_onnx(arguments.run, images=arguments.images, data=arguments.data, rounds=arguments.rounds)
    if arguments.json:
        print_json({"agreement": dataclasses.asdict(agreement), "rows": rows})
        return 0
    print(f"{agreement}\n")
    print_table(as_table(rows))
    return 0


def _bench_layer(arguments: Arguments) -> int:
    from benchmarks.layer import as_table, bench_layer
    from hrvqvae.config.registry import DATASETS

    levels, codewords = arguments.size
    at_least(levels, 1, "the first number of --size")
    at_least(codewords, 2, "the second number of --size")
    for name in ("steps", "batch", "images", "rounds"):
        at_least(getattr(arguments, name), 1, f"--{name}")
    data = DATASETS.get("fashion-mnist").config
    rows = bench_layer(
        data, levels, codewords, arguments.steps, arguments.batch, arguments.seed, arguments.images, arguments.rounds
    )
    if arguments.json:
        print_json(rows)
        return 0
    steps, bits, images = f"{arguments.steps:,}", f"{rows[0]['bits']:.3g}", f"{arguments.images:,}"
    print(f"fashion-mnist: {steps} steps of {arguments.batch} images, {bits} bits a position, {images} test images")
    print_table(as_table(rows))
    return 0


def add(commands: Group) -> None:
    """bench train, prior, depth, sample, start, search, beam, codec, processes, gpu, files, onnx, layer."""
    targets = group(commands, "bench", "measurements that print a ratio", "TARGET")
    training = add_training(targets)
    about = "the cached sampler against the plain one, and how its cost grows"
    sample = command(targets, "sample", about, _bench_sample)
    sample.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each row")

    about = "the first search of a process: compiled, or loaded from the cache"
    start = command(targets, "start", about, _bench_start)

    about = "encoding with a beam of paths, and by error and bits: error of each prefix, bytes, time"
    beam = command(targets, "beam", about, _bench_beam)
    beam.add_argument("run", nargs="?", default="cifar10", metavar="RUN", help="default: the model in the package")
    beam.add_argument("--images", type=int, default=1000, metavar="N", help="test images (default: 1000)")
    beam.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")

    about = "files of codes: bytes, speed, an archive, and damaged files by the number"
    codec = command(targets, "codec", about, _bench_codec)
    codec.add_argument("run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package")
    codec.add_argument("--images", type=int, default=1000, metavar="N", help="test images (default: 1000)")
    codec.add_argument("--archived", type=int, default=60_000, metavar="N", help="of an archive (default: 60000)")
    codec.add_argument("--damaged", type=int, default=100_000, metavar="N", help="damaged files (default: 100000)")
    codec.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")

    search = command(targets, "search", "the tree's search against flat ones, ours and others'", _bench_search)
    search.add_argument("--vectors", type=int, default=32_768, metavar="N", help="vectors of width 32 (default: 32768)")
    search.add_argument("--size", type=int, nargs=2, metavar=("L", "M"), help="only L levels of M codewords")
    search.add_argument("--no-libraries", action="store_true", help="leave out vector-quantize-pytorch")
    search.add_argument("--plot", type=Path, metavar="FIG.png", help="draw cost against leaves")

    about = "bytes against error: trained models, WebP, AVIF, JPEG XL, JPEG, ThumbHash and a linear transform"
    files = command(targets, "files", about, _bench_files)
    files.add_argument("dataset", metavar="DATASET", help="mnist, cifar10, emoji32, photos, ...: as in the presets")
    trained = "trained models, at several lambda; about a second an image (default: the shipped one, if any)"
    files.add_argument("--models", nargs="+", metavar="RUN", help=trained)
    files.add_argument("--formats", nargs="+", default=(), metavar="NAME", help="webp, avif, jxl, jpeg, jpeg-scan")
    files.add_argument("--no-linear", action="store_true", help="leave out the linear transform")
    files.add_argument("--bytes", nargs="+", type=int, default=(), metavar="N", help="budgets an image, of the tables")
    files.add_argument(
        "--images", type=int, default=1000, metavar="N", help="test images, evenly spread (default: 1000)"
    )
    files.add_argument("--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays")
    files.add_argument("-o", "--out", type=Path, metavar="DIR", help="gets curves.png and sheet.png")
    files.set_defaults(takes_fields=True)

    onnx = command(targets, "onnx", "a trained model as ONNX beside torch: same codes, same images, speed", _bench_onnx)
    onnx.add_argument("run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package")
    onnx.add_argument("--images", type=int, default=1000, metavar="N", help="test images compared (default: 1000)")
    onnx.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    onnx.add_argument("--rounds", type=int, default=20, metavar="N", help="measurements of each row (default: 20)")

    about = "TreeVQ in a small autoencoder beside the layers of vector-quantize-pytorch, at equal bits"
    layer = command(targets, "layer", about, _bench_layer)
    layer.add_argument("--size", type=int, nargs=2, default=(4, 4), metavar=("L", "M"), help="L levels of M codewords")
    layer.add_argument("--steps", type=int, default=2000, metavar="N", help="of each layer (default: 2000)")
    layer.add_argument("--batch", type=int, default=128, metavar="N", help="images a step (default: 128)")
    layer.add_argument("--images", type=int, default=10_000, metavar="N", help="test images (default: 10000)")
    layer.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="measurements of a layer alone (default: 20)"
    )
    layer.add_argument("--seed", type=int, default=0, metavar="S")

    for target in (*training, sample, start, search, beam, codec, files, onnx, layer):
        target.add_argument("--json", action="store_true", help="for programs")
