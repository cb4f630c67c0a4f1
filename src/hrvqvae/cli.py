"""The command line: parse, call, print. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hrvqvae.errors import InputError

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    """Errors in the form of every other error: one line, exit code 2."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see {self.prog} --help)")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _table(rows: Sequence[Sequence[object]]) -> None:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _presets(arguments: Arguments) -> int:
    from hrvqvae import presets

    if arguments.name is None:
        described = [presets.describe(preset) for preset in presets.PRESETS.values()]
        if arguments.json:
            _print_json(described)
        else:
            _table([(entry["name"], entry["about"]) for entry in described])
        return 0
    entry = presets.describe(presets.get(arguments.name))
    if arguments.json:
        _print_json(entry)
        return 0
    print(f"{entry['name']}: {entry['about']}\n")
    _table([(name, row["value"], row["source"]) for name, row in entry["values"].items()])
    print()
    rows = []
    for name, value in entry["derived"].items():
        printed = f"printed: {entry['printed'][name]:,}" if name in entry["printed"] else ""
        shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((name, shown, f"computed{'; ' + printed if printed else ''}"))
    _table(rows)
    for note in entry["notes"]:
        print(f"\nNote: {note}")
    return 0


def _data_list(arguments: Arguments) -> int:
    from hrvqvae.data.sources import FOLDERS, SOURCES, data_root

    root = data_root(arguments.root)
    rows: list[tuple[str, str, str]] = []
    for source in SOURCES.values():
        there = f"in {root / source.name}" if not source.missing(root) else "not there"
        rows.append((source.name, there, f"{source.about}; {source.how}"))
    for name, how in FOLDERS.items():
        rows.append((name, f"in {root / name}" if (root / name).is_dir() else "not there", how))
    rows.append(("any folder", "", "--data DIR: PNG, JPEG, WebP; class folders, train/ and test/ as there are"))
    print(f"root folder: {root}")
    _table(rows)
    return 0


def _data_get(arguments: Arguments) -> int:
    from hrvqvae.data.fetch import get
    from hrvqvae.data.sources import data_root

    get(arguments.name, data_root(arguments.root), print)
    return 0


_SHORT = {"data": "data.root", "max_steps": "training.max_steps", "max_minutes": "training.max_minutes",
          "seed": "training.seed", "device": "training.device"}  # fmt: skip


def _given(arguments: Arguments) -> dict[str, str]:
    """Dotted name -> text, of every option that names a field of the configuration."""
    from hrvqvae.configfile import parse_overrides

    given = parse_overrides(arguments.rest)
    for short, name in _SHORT.items():
        value = getattr(arguments, short)
        if value is not None:
            given[name] = value
    if "data.root" in given:
        given["data.root"] = str(Path(given["data.root"]).expanduser().absolute())
    return given


def _train(arguments: Arguments) -> int:
    given = _given(arguments)
    if arguments.print_config:
        import yaml

        from hrvqvae.config import to_dict
        from hrvqvae.configfile import override
        from hrvqvae.resolve import base_config

        print(yaml.safe_dump(to_dict(override(base_config(arguments.preset), given)), sort_keys=False), end="")
        return 0
    from hrvqvae.checkpoint import RunFolder
    from hrvqvae.resolve import resolve
    from hrvqvae.training.autoencoder import train

    run = RunFolder(Path(arguments.out or f"runs/{arguments.preset.replace('/', '-')}"))
    config = resolve(arguments.preset, given, run, resume=arguments.resume)
    outcome = train(config, run, resume=arguments.resume)
    memory = f"peak memory {outcome.peak_bytes / 2**30:.2f} GiB"
    if outcome.signal is not None:
        print(f"stopped at step {outcome.step}, saved; continue with --resume ({memory})")
        return 128 + outcome.signal
    print(f"trained {outcome.step} steps in {outcome.seconds / 60:.1f} minutes, {memory}: {run.model}")
    print(f"pictures in {run.pictures}")
    return 0


def _evaluate(arguments: Arguments) -> int:
    from hrvqvae.commands import evaluate_run

    report = evaluate_run(arguments.run, arguments.split, arguments.data, arguments.device)
    if arguments.json:
        _print_json(report.to_dict())
        return 0
    ssim = "-" if report.ssim is None else f"{report.ssim:.4f}"
    print(f"{report.dataset} {report.split}: {report.images:,} images")
    print(f"MSE {report.mse:.4e}   PSNR {report.psnr:.2f} dB   SSIM {ssim}")
    print(f"{report.bits_per_image:,.0f} bits an image, compression factor {report.compression_ratio:.2f}\n")
    rows: list[Sequence[object]] = [("level", "codewords", "used", "usage", "perplexity", "MSE of levels 1..l")]
    for number, level in enumerate(report.levels, start=1):
        usage, perplexity = f"{level.usage:.1%}", f"{level.perplexity:.1f}"
        rows.append((number, level.codewords, level.used, usage, perplexity, f"{level.mse:.4e}"))
    _table(rows)
    return 0


def _reconstruct(arguments: Arguments) -> int:
    from hrvqvae.commands import reconstruct

    for path, error in reconstruct(arguments.run, arguments.images, arguments.out, arguments.levels):
        print(f"{path}: MSE {error:.3e}")
    print(f"originals above reconstructions: {arguments.out}")
    return 0


def _demo(arguments: Arguments) -> int:
    from hrvqvae.commands import demo

    return demo(Path(arguments.out), arguments.root, arguments.max_minutes, arguments.max_steps)


def _at_least(value: int, least: int, name: str) -> None:
    if value < least:
        raise InputError(f"{name} is {value}; it must be at least {least}")


def _path(text: str) -> list[int]:
    try:
        return [int(child) for child in text.split(",")]
    except ValueError as error:
        raise InputError(f"--path is {text!r}; it must be child indices such as 2,1,3") from error


def _figure_hierarchy(arguments: Arguments) -> int:
    from hrvqvae.figures import figure_hierarchy

    path = None if arguments.path is None else _path(arguments.path)
    position = None if arguments.position is None else (arguments.position[0], arguments.position[1])
    drawn = figure_hierarchy(arguments.run, arguments.out, position, path)
    print(f"{drawn}: {arguments.out}")
    return 0


def _bench_train(arguments: Arguments) -> int:
    from hrvqvae.bench.train import bench_train
    from hrvqvae.configfile import override, parse_overrides
    from hrvqvae.resolve import base_config

    config = override(base_config(arguments.preset), parse_overrides(arguments.rest))
    _at_least(arguments.rounds, 1, "--rounds")
    rows = bench_train(config, arguments.rounds, profile=arguments.profile)
    if arguments.json:
        _print_json(rows)
        return 0
    table: list[Sequence[object]] = [("method", "preset", "batch", "images/s", "ratio")]
    for row in rows:
        ratio = row["images_per_second"] / rows[0]["images_per_second"]
        table.append((row["method"], row["preset"], row["batch"], f"{row['images_per_second']:.1f}", f"{ratio:.2f}"))
    _table(table)
    for row in rows if arguments.profile else []:
        spent, step = row["quantizer_seconds"] * 1e3, row["step_seconds"] * 1e3
        print(f"{row['method']}: the quantizer takes {spent:.1f} of {step:.1f} ms a step, {row['quantizer_share']:.1%}")
    return 0


def _bench_search(arguments: Arguments) -> int:
    from hrvqvae.bench.search import as_table, bench_search
    from hrvqvae.pictures.curves import search_growth

    _at_least(arguments.vectors, 64, "--vectors")
    rows = bench_search(vectors=arguments.vectors, libraries=not arguments.no_libraries)
    if arguments.plot:
        search_growth(rows, arguments.plot)
    if arguments.json:
        _print_json(rows)
        return 0
    print(f"{arguments.vectors:,} vectors of width {rows[0]['width']}, medians, side by side")
    _table(as_table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hrvqvae", description="Hierarchical residual vector quantization of images.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, about: str, call: Callable[[Arguments], int], under: Any = commands) -> Any:
        added = under.add_parser(name, help=about, description=about, allow_abbrev=False)
        added.set_defaults(call=call, takes_fields=False, prog=added.prog)
        return added

    presets = command("presets", "list presets, or show one: every value with where it comes from", _presets)
    presets.add_argument("name", nargs="?", metavar="NAME")
    presets.add_argument("--json", action="store_true", help="for programs")

    data = commands.add_parser("data", help="data sets: where they are, how they are got")
    actions = data.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    for name, about, call in (("list", "data sets and where they are", _data_list), ("get", "get one", _data_get)):
        action = command(name, about, call, actions)
        if name == "get":
            action.add_argument("name", metavar="NAME")
        action.add_argument("--root", metavar="DIR", help="root folder (else HRVQVAE_DATA, else the user's cache)")

    train = command("train", "train an autoencoder from a preset (or a YAML or JSON file)", _train)
    train.add_argument("preset", metavar="PRESET")
    train.add_argument("--out", metavar="RUN", help="run folder (default: runs/PRESET)")
    train.add_argument("--data", metavar="DIR", help="root folder of the data, or the image folder")
    train.add_argument("--max-steps", metavar="N", help="budget in steps")
    train.add_argument("--max-minutes", metavar="M", help="budget in minutes")
    train.add_argument("--seed", metavar="S")
    train.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    train.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint of RUN")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    train.set_defaults(takes_fields=True)
    train.epilog = "--section.field VALUE sets any field, such as --model.quantizer.codewords 8 (see hrvqvae presets)"

    evaluate = command("evaluate", "distortion, rate and codeword usage of a run", _evaluate)
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="test or train")
    evaluate.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    evaluate.add_argument("--device", default="auto", metavar="NAME")
    evaluate.add_argument("--json", action="store_true", help="for programs")

    reconstruct = command("reconstruct", "a sheet of images above their reconstructions", _reconstruct)
    reconstruct.add_argument("run", metavar="RUN")
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    reconstruct.add_argument("-o", "--out", required=True, metavar="SHEET.png", type=Path)
    reconstruct.add_argument("--levels", type=int, metavar="K", help="decode levels 1..K only")

    demo = command("demo", "MNIST from nothing: data, training, evaluation, pictures", _demo)
    demo.add_argument("--out", default="runs/demo", metavar="RUN")
    demo.add_argument("--root", metavar="DIR", help="root folder of the data")
    demo.add_argument("--max-minutes", type=float, default=7.8, metavar="M", help="training time (default: 7.8)")
    demo.add_argument("--max-steps", type=int, default=0, metavar="N", help="training steps, if fewer")

    figure = commands.add_parser("figure", help="the paper's figures")
    figures = figure.add_subparsers(metavar="FIGURE", required=True, parser_class=_Parser)
    hierarchy = command(
        "hierarchy", "which codebooks a choice leaves within reach (Figure 10)", _figure_hierarchy, figures
    )
    hierarchy.add_argument("run", nargs="?", metavar="RUN", help="a trained run (default: synthetic vectors)")
    hierarchy.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png", help="PNG or SVG")
    hierarchy.add_argument(
        "--position", nargs=2, type=int, metavar=("Y", "X"), help="of the first test image's latents"
    )
    hierarchy.add_argument("--path", metavar="K,K,K", help="child indices from level 1 on, such as 2,1,3")

    bench = commands.add_parser("bench", help="measurements that print a ratio")
    targets = bench.add_subparsers(metavar="TARGET", required=True, parser_class=_Parser)
    bench_train = command("train", "training throughput against the same model in plain form", _bench_train, targets)
    bench_train.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET")
    bench_train.add_argument("--rounds", type=int, default=12, metavar="N", help="steps of each side")
    bench_train.add_argument("--profile", action="store_true", help="also the quantizer's share of a step")
    bench_train.add_argument("--json", action="store_true", help="for programs")
    bench_train.set_defaults(takes_fields=True)
    search = command("search", "the tree's search against flat ones, ours and others'", _bench_search, targets)
    search.add_argument("--vectors", type=int, default=32_768, metavar="N", help="vectors of width 32 (default: 32768)")
    search.add_argument("--no-libraries", action="store_true", help="leave out vector-quantize-pytorch")
    search.add_argument("--plot", type=Path, metavar="FIG.png", help="draw cost against leaves")
    search.add_argument("--json", action="store_true", help="for programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; -> exit code. Whatever a user can cause is one line on stderr and exit code 2."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        if rest and not arguments.takes_fields:
            raise InputError(f"unknown argument {rest[0]!r} (see {arguments.prog} --help)")
        arguments.rest = rest
        code: int = arguments.call(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"hrvqvae: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"hrvqvae: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hrvqvae: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
