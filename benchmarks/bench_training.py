"""Measurements of training: of an autoencoder, of a prior, of several processes, and of a GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hrvqvae.cli.console import Arguments, Group, at_least, command, print_json, print_table
from hrvqvae.utils.errors import InputError


def _bench_train(arguments: Arguments) -> int:
    from benchmarks.train import bench_train
    from hrvqvae.config.parsing import base_config, override

    config = override(base_config(arguments.preset), arguments.fields)
    at_least(arguments.rounds, 1, "--rounds")
    rows = bench_train(config, arguments.rounds, profile=arguments.profile)
    if arguments.json:
        print_json(rows)
        return 0
    table: list[Sequence[object]] = [("method", "preset", "batch", "images/s", "ratio")]
    for row in rows:
        ratio = row["images_per_second"] / rows[0]["images_per_second"]
        table.append((row["method"], row["preset"], row["batch"], f"{row['images_per_second']:.1f}", f"{ratio:.2f}"))
    print_table(table)
    for row in rows if arguments.profile else []:
        spent, step = row["quantizer_seconds"] * 1e3, row["step_seconds"] * 1e3
        print(f"{row['method']}: the quantizer takes {spent:.1f} of {step:.1f} ms a step, {row['quantizer_share']:.1%}")
    return 0


def _bench_prior(arguments: Arguments) -> int:
    from benchmarks.prior import bench_prior
    from hrvqvae.config.parsing import base_config, override

    base = base_config(arguments.preset)
    if base.prior.network.kind != "pixelsnail":
        raise InputError(f"what is measured are the parts of a PixelSNAIL; {base.name} has a {base.prior.network.kind}")
    given = {
        "prior.training.batch_size": "32",
        "prior.network.residual_blocks": "18",
        **arguments.fields,
    }
    config = override(base, given)
    at_least(arguments.rounds, 1, "--rounds")
    levels = len(config.model.num_symbols)
    if not 1 <= arguments.level <= levels:
        raise InputError(f"--level is {arguments.level}; this model has levels 1 to {levels}")
    rows = bench_prior(config, arguments.level - 1, arguments.rounds)
    if arguments.json:
        print_json(rows)
        return 0
    first = rows[0]["images_per_second"]
    table: list[Sequence[object]] = [("method", "batch", "parameters", "images/s", "ratio")]
    for row in rows:
        speed = row["images_per_second"]
        table.append((row["method"], row["batch"], f"{row['parameters']:,}", f"{speed:.1f}", f"{speed / first:.2f}"))
    print_table(table)
    return 0


def _bench_depth(arguments: Arguments) -> int:
    from benchmarks.depth import bench_depth
    from hrvqvae.config.parsing import base_config, override

    at_least(arguments.rounds, 1, "--rounds")
    given = {"prior.training.batch_size": "32", "prior.network.residual_blocks": "6", **arguments.fields}
    rows = bench_depth(override(base_config(arguments.preset), given), arguments.rounds)
    if arguments.json:
        print_json(rows)
        return 0
    table: list[Sequence[object]] = [("measured", "batch", "method", "parameters", "s an image", "ratio")]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        spent = f"{row['seconds_per_image']:.4f}"
        table.append((row["measured"], row["batch"], row["method"], f"{row['parameters']:,}", spent, ratio))
    print_table(table)
    return 0


def _bench_processes(arguments: Arguments) -> int:
    from benchmarks.processes import as_tables, bench_processes

    at_least(arguments.processes, 2, "--processes")
    at_least(arguments.steps, 1, "--steps")
    found = bench_processes(arguments.processes, arguments.steps, arguments.systems)
    if arguments.json:
        print_json(found)
    for table in [] if arguments.json else as_tables(found):
        print_table([*table, [""] * len(table[0])])
    return 0


def _bench_gpu(arguments: Arguments) -> int:
    from benchmarks.gpu.report import as_tables, bench_gpu, form_of
    from hrvqvae.utils.device import resolve_device

    device = resolve_device("auto")
    found = bench_gpu(device, form_of(device))
    if arguments.json:
        print_json(found)
    else:
        where = "" if device.type == "cuda" else "no GPU here: a small form of the measurements, on the CPU\n"
        rate = f"{found['matrix_rate'] / 1e12:,.3g} TFLOP/s of matrix products in {found['precision']}"
        print(f"{where}{found['device_name']}, torch {found['torch']}: {rate}; {found['seconds']:.0f} s in all")
        for title, table in as_tables(found):
            print(f"\n{title}")
            print_table(table)
    for fault in found["faults"]:
        print(f"hrvqvae: {fault}", file=sys.stderr)
    return 1 if found["faults"] else 0


def add_training(targets: Group) -> tuple[Any, ...]:
    """bench train, prior, depth, processes, gpu; -> their parsers."""
    train = command(targets, "train", "training throughput against the same model in plain form", _bench_train)
    train.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET")
    train.add_argument("--rounds", type=int, default=12, metavar="N", help="steps of each side")
    train.add_argument("--profile", action="store_true", help="also the quantizer's share of a step")
    train.set_defaults(takes_fields=True)

    about = "training throughput of a prior, and what each step of the way brought"
    prior = command(targets, "prior", about, _bench_prior)
    prior.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET")
    prior.add_argument("--level", type=int, default=1, metavar="L", help="1 is the coarsest")
    prior.add_argument("--rounds", type=int, default=5, metavar="N", help="steps of each form")
    prior.set_defaults(takes_fields=True)

    about = "one prior for all levels beside a prior for each: a training step, and samples"
    depth = command(targets, "depth", about, _bench_depth)
    depth.add_argument("--preset", default="hrvqvae/cifar10", metavar="PRESET")
    depth.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each row")
    depth.set_defaults(takes_fields=True)

    about = "training under torchrun beside one process: losses, images a second, bytes exchanged"
    processes = command(targets, "processes", about, _bench_processes)
    processes.add_argument("--processes", type=int, default=2, metavar="N", help="on this machine (default: 2)")
    processes.add_argument("--steps", type=int, default=60, metavar="N", help="of each training (default: 60)")
    processes.add_argument("--systems", nargs="+", default=(), metavar="NAME", help="default: all")

    about = "codes, training, search, sampling and memory of a GPU in minutes; without one a small form on the CPU"
    gpu = command(targets, "gpu", f"{about}; exit code 1 if its codes are not the CPU's", _bench_gpu)
    return train, prior, depth, processes, gpu
