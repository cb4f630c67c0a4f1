"""Codes of many images as Parquet: tokenize, detokenize."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, add_beam, at_least, command, print_json
from hrvqvae.utils.quantities import counted


def _tokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.tokenize import summary, tokenize

    for name, least in (("shard_size", 1), ("workers", 0)):
        if getattr(arguments, name) is not None:
            at_least(getattr(arguments, name), least, f"--{name.replace('_', '-')}")
    found = tokenize(
        arguments.model, arguments.source, arguments.out, shard_size=arguments.shard_size,
        full_size=arguments.full_size, workers=arguments.workers, device=arguments.device, engine=arguments.engine,
        retry_broken=arguments.retry_broken, beam=arguments.beam,
    )  # fmt: skip
    if arguments.json:
        print_json(dataclasses.asdict(found))
    else:
        print(summary(found, arguments.out))
    return 0


def _detokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.detokenize import detokenize

    count = detokenize(
        arguments.shards, arguments.out, model=arguments.model, levels=arguments.levels, device=arguments.device
    )
    print(f"{counted(count, 'image')}: {arguments.out}")
    return 0


def add(commands: Group) -> None:
    """tokenize, detokenize."""
    about = "codes of many images to Parquet files; ended at any moment, the same command goes on"
    tokenize = command(commands, "tokenize", about, _tokenize)
    tokenize.add_argument("model", metavar="MODEL", help="a run, or a model inside the package")
    tokenize.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a folder of images, a list of images (.txt), tars, Parquet or arrays",
    )
    tokenize.add_argument("out", type=Path, metavar="OUT", help="the folder of the shards")
    tokenize.add_argument("--shard-size", type=int, metavar="N", help="images of a shard (default: 10,000)")
    tokenize.add_argument(
        "--full-size", action="store_true", help="images at their own sizes, not cropped to the size of training"
    )
    tokenize.add_argument("--workers", type=int, metavar="N", help="processes that decode images beside a model")
    tokenize.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    tokenize.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: shared out over a cluster by Ray Data"
    )
    add_beam(tokenize)
    tokenize.add_argument("--retry-broken", action="store_true", help="try images again that were broken before")
    tokenize.add_argument("--json", action="store_true", help="for programs")

    detokenize = command(commands, "detokenize", "shards of codes back to PNG", _detokenize)
    detokenize.add_argument("shards", type=Path, metavar="SHARDS", help="a folder of shards, or one")
    detokenize.add_argument("out", type=Path, metavar="OUT", help="a folder: each image at the path that is its key")
    detokenize.add_argument("--model", metavar="RUN", help="by which they were made, if it is not inside the package")
    detokenize.add_argument("--levels", type=int, metavar="K", help="use levels 1..K only")
    detokenize.add_argument("--device", default="auto", metavar="NAME")
