"""The command line: parse, call, print. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import argparse
import contextlib
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


_BUDGET = ("max_steps", "max_minutes", "seed", "device")


def _given(arguments: Arguments, stage: str) -> dict[str, str]:
    """Dotted name -> text, of every option that names a field of the configuration; `stage` is what is trained."""
    from hrvqvae.configfile import parse_overrides

    given = parse_overrides(arguments.rest)
    for short, name in (("data", "data.root"), *((short, f"{stage}.{short}") for short in _BUDGET)):
        value = getattr(arguments, short)
        if value is not None:
            given[name] = value
    if "data.root" in given:
        given["data.root"] = str(Path(given["data.root"]).expanduser().absolute())
    return given


def _train(arguments: Arguments) -> int:
    given = _given(arguments, "training")
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


def _train_prior(arguments: Arguments) -> int:
    given = _given(arguments, "prior.training")
    from hrvqvae.resolve import resolve_priors
    from hrvqvae.training.prior import train_priors

    configs = resolve_priors(arguments.run, arguments.level, given, resume=arguments.resume)
    outcomes = train_priors(arguments.run, configs, resume=arguments.resume)
    for level, outcome in outcomes.items():
        spent = f"{outcome.step} steps in {outcome.seconds / 60:.1f} minutes"
        if outcome.signal is not None:
            print(f"level {level + 1}: stopped after {spent}, saved; continue with --resume")
            return 128 + outcome.signal
        print(f"level {level + 1}: trained {spent}, peak memory {outcome.peak_bytes / 2**30:.2f} GiB")
    print(f"priors in {Path(arguments.run) / 'priors'}")
    return 0


def _evaluate(arguments: Arguments) -> int:
    from hrvqvae.commands import evaluate_run

    _at_least(arguments.samples, 0, "--samples")
    if arguments.images is not None:
        _at_least(arguments.images, 1, "--images")
    evaluated = evaluate_run(
        arguments.run, arguments.split, arguments.data, arguments.device, arguments.samples, limit=arguments.images,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    report, rate = evaluated.report, evaluated.rate
    if arguments.json:
        _print_json(evaluated.to_dict())
        return 0
    ssim = "-" if report.ssim is None else f"{report.ssim:.4f}"
    print(f"{report.dataset} {report.split}: {report.images:,} images")
    print(f"MSE {report.mse:.4e}   PSNR {report.psnr:.2f} dB   SSIM {ssim}")
    print(f"{report.bits_per_image:,.0f} bits an image, compression factor {report.compression_ratio:.2f}\n")
    rows: list[Sequence[object]] = [("level", "codewords", "used", "usage", "perplexity", "MSE of levels 1..l")]
    for number, level in enumerate(report.levels, start=1):
        usage, perplexity = f"{level.usage:.1%}", f"{level.perplexity:.1f}"
        rows.append(
            (number, level.codewords, level.used, usage, perplexity, "-" if level.mse is None else f"{level.mse:.4e}")
        )
    _table(rows)
    if rate is None:
        print(f"\nno priors: {evaluated.no_rate}")
        return 0
    bits: list[Sequence[object]] = [("bits a code", "prior", "given path", "given path and neighbours")]
    for number, one in enumerate(rate.levels, start=1):
        bits.append((f"level {number}", f"{one.prior:.4f}", f"{one.path:.4f}", f"{one.neighbours:.4f}"))
    totals = (rate.prior_bits_per_image, rate.path_bits_per_image, rate.neighbours_bits_per_image)
    bits.append(("an image", *(f"{total:.1f}" for total in totals)))
    print()
    _table(bits)
    share = rate.prior_bits_per_image / rate.neighbours_bits_per_image
    print(f"the priors need {share:.1%} of what path and neighbours tell")
    if evaluated.recognized is not None:
        found = evaluated.recognized
        print(
            f"{found.recognized:.1%} of {found.samples:,} samples are recognized as their class, by a classifier "
            f"that is right about {found.classifier_accuracy:.2%} of the test images"
        )
    return 0


def _reconstruct(arguments: Arguments) -> int:
    from hrvqvae.commands import reconstruct

    for path, error in reconstruct(arguments.run, arguments.images, arguments.out, arguments.levels):
        print(f"{path}: MSE {error:.3e}")
    print(f"originals above reconstructions: {arguments.out}")
    return 0


def _export(arguments: Arguments) -> int:
    from hrvqvae.checkpoint import export

    for path in export(arguments.run, arguments.out):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _draw(arguments: Arguments) -> dict[str, Any]:
    """What `sample` and `complete` have in common."""
    from hrvqvae.sampling import Draw

    if arguments.top_k is not None:
        _at_least(arguments.top_k, 1, "--top-k")
    how = Draw(temperature=arguments.temperature, top_k=arguments.top_k or 0, top_p=arguments.top_p)
    return {"seed": arguments.seed, "class_name": arguments.class_name, "draw": how}


def _sample(arguments: Arguments) -> int:
    from hrvqvae.generate import sample

    sample(arguments.run, arguments.count, arguments.out, save_dir=arguments.save_dir, **_draw(arguments))
    print(f"{arguments.count} samples: {arguments.out}")
    if arguments.save_dir is not None:
        print(f"each on its own: {arguments.save_dir}")
    return 0


def _complete(arguments: Arguments) -> int:
    from hrvqvae.generate import complete

    complete(arguments.run, arguments.image, arguments.keep, arguments.count, arguments.out, **_draw(arguments))
    print(f"{arguments.count} completions: {arguments.out}")
    return 0


def _demo(arguments: Arguments) -> int:
    from hrvqvae.commands import demo

    return demo(Path(arguments.out), arguments.root, arguments.max_minutes, arguments.max_steps)


def _compare(arguments: Arguments) -> int:
    from hrvqvae.comparison import codebook
    from hrvqvae.comparison import systems as of_systems
    from hrvqvae.configfile import parse_overrides

    systems = tuple(name.strip() for name in arguments.systems.split(",") if name.strip())
    comparison = of_systems.Comparison(
        dataset=arguments.dataset, systems=systems, seeds=arguments.seeds, max_steps=arguments.max_steps,
        max_minutes=arguments.max_minutes, priors=arguments.priors,
        prior_steps=arguments.prior_steps,
        root=None if arguments.data is None else str(Path(arguments.data).expanduser().absolute()),
        fields=parse_overrides(arguments.rest, of_systems.SYSTEMS),
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        chosen = codebook.study if arguments.study else of_systems.compare
        rows, signal = chosen(comparison, Path(arguments.out))
    if signal:
        print("stopped, saved; the same command goes on", file=sys.stderr)
        return 128 + signal
    if arguments.json:
        _print_json(rows)
        return 0
    table = codebook.table(rows) if arguments.study else of_systems.table(rows)
    print(f"\n{table}\n{Path(arguments.out) / 'results.md'}, results.json, and pictures beside them")
    return 0


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


def _figure_nearest(arguments: Arguments) -> int:
    from hrvqvae.generate import figure_nearest

    _at_least(arguments.count, 1, "-n")
    errors = figure_nearest(arguments.run, arguments.out, arguments.count, seed=arguments.seed, root=arguments.data)
    print(f"samples beside their nearest training images, MSE {min(errors):.2e} to {max(errors):.2e}: {arguments.out}")
    return 0


def _figure_classes(arguments: Arguments) -> int:
    from hrvqvae.generate import figure_classes

    _at_least(arguments.count, 1, "-n")
    classes = figure_classes(arguments.run, arguments.out, arguments.count, seed=arguments.seed)
    print(f"{arguments.count} samples of each of {classes} classes: {arguments.out}")
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
    if arguments.size is not None:
        _at_least(arguments.size[0], 1, "the first number of --size")
        _at_least(arguments.size[1], 2, "the second number of --size")
        if arguments.plot:
            raise InputError("--plot draws how cost grows over all sizes; leave --size out")
    grid = None if arguments.size is None else [tuple(arguments.size)]
    rows = bench_search(grid, arguments.vectors, libraries=not arguments.no_libraries)
    if arguments.plot:
        search_growth(rows, arguments.plot)
    if arguments.json:
        _print_json(rows)
        return 0
    print(f"{arguments.vectors:,} vectors of width {rows[0]['width']}, medians, side by side")
    _table(as_table(rows))
    return 0


def _bench_start(arguments: Arguments) -> int:
    from hrvqvae.bench.start import bench_start

    rows = bench_start()
    if arguments.json:
        _print_json(rows)
        return 0
    print("first search of a process, seconds")
    _table([("cache", "method", "s"), *((row["cache"], row["method"], f"{row['seconds']:.2f}") for row in rows)])
    return 0


def _bench_prior(arguments: Arguments) -> int:
    from hrvqvae.bench.prior import bench_prior
    from hrvqvae.configfile import override, parse_overrides
    from hrvqvae.resolve import base_config

    given = {
        "prior.training.batch_size": "32",
        "prior.batch_size": "[]",
        "prior.network.residual_blocks": "18",
        **parse_overrides(arguments.rest),
    }
    config = override(base_config(arguments.preset), given)
    _at_least(arguments.rounds, 1, "--rounds")
    levels = len(config.model.num_symbols)
    if not 1 <= arguments.level <= levels:
        raise InputError(f"--level is {arguments.level}; this model has levels 1 to {levels}")
    rows = bench_prior(config, arguments.level - 1, arguments.rounds)
    if arguments.json:
        _print_json(rows)
        return 0
    first = rows[0]["images_per_second"]
    table: list[Sequence[object]] = [("method", "batch", "parameters", "images/s", "ratio")]
    for row in rows:
        speed = row["images_per_second"]
        table.append((row["method"], row["batch"], f"{row['parameters']:,}", f"{speed:.1f}", f"{speed / first:.2f}"))
    _table(table)
    return 0


def _bench_sample(arguments: Arguments) -> int:
    from hrvqvae.bench.sample import as_table, bench_sample

    _at_least(arguments.rounds, 1, "--rounds")
    rows = bench_sample(rounds=arguments.rounds)
    if arguments.json:
        _print_json(rows)
        return 0
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

    def trains(added: Any, example: str) -> None:
        added.add_argument("--data", metavar="DIR", help="root folder of the data, or the image folder")
        added.add_argument("--max-steps", metavar="N", help="budget in steps")
        added.add_argument("--max-minutes", metavar="M", help="budget in minutes")
        added.add_argument("--seed", metavar="S")
        added.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
        added.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint")
        added.set_defaults(takes_fields=True)
        added.epilog = f"--section.field VALUE sets any field, such as {example} (see hrvqvae presets)"

    train = command("train", "train an autoencoder from a preset (or a YAML or JSON file)", _train)
    train.add_argument("preset", metavar="PRESET")
    train.add_argument("--out", metavar="RUN", help="run folder (default: runs/PRESET)")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    trains(train, "--model.quantizer.codewords 8")

    train_prior = command("train-prior", "train the priors of a run, one a level; budgets are a level's", _train_prior)
    train_prior.add_argument("run", metavar="RUN")
    train_prior.add_argument("--level", type=int, metavar="L", help="this level only, 1 is the coarsest")
    trains(train_prior, "--prior.network.hidden_units 128")

    evaluate = command("evaluate", "distortion, rate and codeword usage of a run", _evaluate)
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="test or train")
    evaluate.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    evaluate.add_argument("--device", default="auto", metavar="NAME")
    evaluate.add_argument(
        "--samples", type=int, default=0, metavar="N", help="draw N images and have a classifier of the data judge them"
    )
    evaluate.add_argument("--images", type=int, metavar="N", help="the first N images of the split only (default: all)")
    evaluate.add_argument("--json", action="store_true", help="for programs")

    reconstruct = command("reconstruct", "a sheet of images above their reconstructions", _reconstruct)
    reconstruct.add_argument("run", metavar="RUN")
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    reconstruct.add_argument("-o", "--out", required=True, metavar="SHEET.png", type=Path)
    reconstruct.add_argument("--levels", type=int, metavar="K", help="decode levels 1..K only")

    export = command("export", "the model of a run and its priors in half precision, and nothing else", _export)
    export.add_argument("run", metavar="RUN")
    export.add_argument("out", metavar="DIR", type=Path)

    def draws(added: Any, count: int) -> None:
        added.add_argument(
            "-n", dest="count", type=int, default=count, metavar="N", help=f"how many (default: {count})"
        )
        added.add_argument("--class", dest="class_name", metavar="C", help="name or number of a class")
        added.add_argument("--temperature", type=float, default=1.0, metavar="T", help="below 1: likelier codes")
        added.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest codes only")
        added.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest share P only")
        added.add_argument("--seed", type=int, default=0, metavar="S")
        added.add_argument("-o", "--out", required=True, metavar="SHEET.png", type=Path)

    sample = command("sample", "new images from a run's priors", _sample)
    sample.add_argument("run", metavar="RUN")
    draws(sample, 64)
    sample.add_argument(
        "--save-dir", type=Path, metavar="DIR", help="also a PNG file of each, named by class and number"
    )

    complete = command("complete", "keep a part of an image and draw the rest from a run's priors", _complete)
    complete.add_argument("run", metavar="RUN")
    complete.add_argument("image", type=Path, metavar="IMAGE")
    complete.add_argument("--keep", default="top", metavar="PART", help="top, left, or a fraction of the rows")
    draws(complete, 8)

    demo = command("demo", "MNIST from nothing: data, training, evaluation, pictures", _demo)
    demo.add_argument("--out", default="runs/demo", metavar="RUN")
    demo.add_argument("--root", metavar="DIR", help="root folder of the data")
    demo.add_argument(
        "--max-minutes", type=float, default=10.5, metavar="M", help="training time in all (default: 10.5)"
    )
    demo.add_argument("--max-steps", type=int, default=0, metavar="N", help="steps of each stage at most")

    compare = command("compare", "systems side by side: same data, order, budget and test images", _compare)
    compare.add_argument("dataset", metavar="DATASET", help="mnist, cifar10, emoji32, ...: as in the presets")
    compare.add_argument("--systems", default="hrvqvae,vqvae,vqvae2,vqgan", metavar="A,B", help="which (default: all)")
    compare.add_argument("--max-steps", type=int, default=0, metavar="N", help="budget of each autoencoder in steps")
    compare.add_argument("--max-minutes", type=float, default=0.0, metavar="M", help="the same in minutes")
    compare.add_argument("--seeds", type=int, default=1, metavar="K", help="how often each is trained (default: 1)")
    compare.add_argument(
        "--priors",
        action="store_true",
        help="also priors: a system's get the budget of its autoencoder, shared by levels",
    )
    compare.add_argument(
        "--prior-steps", type=int, default=0, metavar="N", help="also priors, of N steps a system, shared by its levels"
    )
    compare.add_argument(
        "--study", choices=("codebook",), help="instead: HR-VQVAE and VQVAE with 64, 512 and 4,096 leaves, with and "
        "without k-means start and revival",
    )  # fmt: skip
    compare.add_argument("--data", metavar="DIR", help="root folder of the data, or the image folder")
    compare.add_argument("--out", required=True, metavar="DIR")
    compare.add_argument("--json", action="store_true", help="for programs")
    compare.set_defaults(takes_fields=True)
    compare.epilog = (
        "--section.field VALUE sets a field of every system, such as --data.size 128; --SYSTEM.section.field VALUE of "
        "one, such as --vqgan.model.adversarial_start 500"
    )

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

    classes = command("classes", "a row of samples for each class (Figure 14)", _figure_classes, figures)
    classes.add_argument("run", metavar="RUN")
    classes.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    classes.add_argument("-n", dest="count", type=int, default=8, metavar="N", help="of each class (default: 8)")
    classes.add_argument("--seed", type=int, default=0, metavar="S")

    nearest = command("nearest", "samples beside their nearest training images", _figure_nearest, figures)
    nearest.add_argument("run", metavar="RUN")
    nearest.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    nearest.add_argument("-n", dest="count", type=int, default=64, metavar="N", help="how many (default: 64)")
    nearest.add_argument("--seed", type=int, default=0, metavar="S")
    nearest.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")

    bench = commands.add_parser("bench", help="measurements that print a ratio")
    targets = bench.add_subparsers(metavar="TARGET", required=True, parser_class=_Parser)
    bench_train = command("train", "training throughput against the same model in plain form", _bench_train, targets)
    bench_train.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET")
    bench_train.add_argument("--rounds", type=int, default=12, metavar="N", help="steps of each side")
    bench_train.add_argument("--profile", action="store_true", help="also the quantizer's share of a step")
    bench_train.add_argument("--json", action="store_true", help="for programs")
    bench_train.set_defaults(takes_fields=True)
    prior = command(
        "prior", "training throughput of a prior, and what each step of the way brought", _bench_prior, targets
    )
    prior.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET")
    prior.add_argument("--level", type=int, default=1, metavar="L", help="1 is the coarsest")
    prior.add_argument("--rounds", type=int, default=5, metavar="N", help="steps of each form")
    prior.add_argument("--json", action="store_true", help="for programs")
    prior.set_defaults(takes_fields=True)
    sampling = command(
        "sample", "the cached sampler against the plain one, and how its cost grows", _bench_sample, targets
    )
    sampling.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each row")
    sampling.add_argument("--json", action="store_true", help="for programs")
    start = command("start", "the first search of a process: compiled, or loaded from the cache", _bench_start, targets)
    start.add_argument("--json", action="store_true", help="for programs")
    search = command("search", "the tree's search against flat ones, ours and others'", _bench_search, targets)
    search.add_argument("--vectors", type=int, default=32_768, metavar="N", help="vectors of width 32 (default: 32768)")
    search.add_argument("--size", type=int, nargs=2, metavar=("L", "M"), help="only L levels of M codewords")
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
