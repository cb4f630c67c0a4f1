"""Codes of many images as Parquet: tokenize, detokenize."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, command, flag, option, print_json, whole
from hrvqvae.utils.quantities import counted


def _tokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.tokenize import tokenize

    found = tokenize(
        arguments.model, arguments.source, arguments.out, shard_size=arguments.shard_size,
        full_size=arguments.full_size, workers=arguments.workers, device=arguments.device, engine=arguments.engine,
        retry_broken=arguments.retry_broken, beam=arguments.beam,
    )  # fmt: skip
    if arguments.json:
        print_json(vars(found))
    else:
        shards = counted(found.shards, "shard")
        print(f"{counted(found.images, 'image')} in {shards}, {found.made:,} of them made now: {arguments.out}")
    return 0


def _detokenize(arguments: Arguments) -> int:
    from hrvqvae.tokens.detokenize import detokenize

    count = detokenize(
        arguments.shards, arguments.out, model=arguments.model, levels=arguments.levels, device=arguments.device,
        force=arguments.force,
    )  # fmt: skip
    print(f"{counted(count, 'image')}: {arguments.out}")
    return 0


def add(commands: Group) -> None:
    """tokenize, detokenize."""
    source = "a folder of images, a list of images (.txt), tars, Parquet or arrays"
    command(
        commands, "tokenize", "codes of many images to Parquet files; ended at any moment, the same command goes on",
        _tokenize, "model", option("source", type=Path, metavar="SOURCE", help=source),
        option("out", type=Path, metavar="OUT", help="the folder of the shards"),
        option("--shard-size", type=whole(1), metavar="N", help="images of a shard (default: 10,000)"),
        flag("--full-size", "images at their own sizes, not cropped to the size of training"),
        option("--workers", type=whole(0), metavar="N", help="processes that decode images beside a model"),
        "--device", "--beam", "--json",
        option("--engine", choices=("local", "ray"), default="local", help="ray: shared out over a cluster by Ray"),
        flag("--retry-broken", "try images again that were broken before"),
    )  # fmt: skip
    command(
        commands, "detokenize", "shards of codes back to PNG", _detokenize,
        option("shards", type=Path, metavar="SHARDS", help="a folder of shards, or one"),
        option("out", type=Path, metavar="OUT", help="a folder: each image at the path that is its key"),
        "--model", "--levels", "--device", flag("--force", "write over images that exist"),
    )  # fmt: skip
