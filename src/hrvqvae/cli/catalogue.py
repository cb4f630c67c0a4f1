"""What there is: presets, data sets, published networks."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, at_least, command, group, print_json, print_table, warn_of_faults
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


def _presets(arguments: Arguments) -> int:
    from hrvqvae.config import presets
    from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS

    if arguments.name is None:
        warn_of_faults(SYSTEMS, PRIORS, DATASETS)
        if arguments.json:
            print_json([presets.describe(presets.get(name)) for name in presets.names()])
        else:
            print_table(list(presets.listed()))
        return 0
    entry = presets.describe(presets.get(arguments.name))
    if arguments.json:
        print_json(entry)
        return 0
    print(f"{entry['name']}: {entry['about']}\n")
    print_table([(name, row["value"], row["source"]) for name, row in entry["values"].items()])
    print()
    rows = []
    for name, value in entry["derived"].items():
        printed = f"printed: {entry['printed'][name]:,}" if name in entry["printed"] else ""
        shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((name, shown, f"computed{'; ' + printed if printed else ''}"))
    print_table(rows)
    for note in entry["notes"]:
        print(f"\nNote: {note}")
    return 0


def _data_list(arguments: Arguments) -> int:
    from hrvqvae.config.registry import DATASETS
    from hrvqvae.data.loading import data_root, missing_files
    from hrvqvae.models import published

    warn_of_faults(DATASETS)
    root = data_root(arguments.root)
    rows: list[tuple[str, str, str]] = []
    for dataset in DATASETS.entries():
        folder = root / dataset.name
        there = not missing_files(dataset, root) if dataset.files else folder.is_dir()
        how = f"hrvqvae data get {dataset.name} ({dataset.how})" if dataset.ways else dataset.how
        rows.append((dataset.name, f"in {folder}" if there else "not there", f"{dataset.about}; {how}"))
    about = "--data DIR: PNG, JPEG, WebP; class folders, train/ and test/ as there are; or tars, Parquet files, arrays"
    rows.append(("any folder", "", about))
    for network in published.NETWORKS.values():
        where = f"in {network.path.parent}" if network.there else "not there"
        rows.append((network.name, where, f"{network.about}; {network.how}"))
    print(f"root folder: {root}")
    print_table(rows)
    return 0


def _data_get(arguments: Arguments) -> int:
    from hrvqvae.data import fetch
    from hrvqvae.data.loading import data_root
    from hrvqvae.models import published

    if arguments.name in published.NETWORKS:
        published.get(arguments.name, print)
    else:
        fetch.get(arguments.name, data_root(arguments.root), print)
    return 0


def _data_pack(arguments: Arguments) -> int:
    from hrvqvae.data import packing

    at_least(arguments.shard_size, 1, "--shard-size")
    if arguments.format not in packing.FORMATS:
        raise InputError(f"--format is {arguments.format}; there are {' and '.join(packing.FORMATS)}")
    megabytes = 10**6
    packed = packing.pack(arguments.folder, arguments.out, arguments.format, arguments.shard_size * megabytes)
    classes = f", {len(packed.classes):,} classes" if packed.classes else ""
    print(f"{counted(packed.images, 'image')}{classes} in {counted(len(packed.shards), 'shard')}")
    return 0


def add(commands: Group) -> None:
    """presets, data list, data get, data pack."""
    presets = command(commands, "presets", "list presets, or show one: every value with where it comes from", _presets)
    presets.add_argument("name", nargs="?", metavar="NAME")
    presets.add_argument("--json", action="store_true", help="for programs")

    actions = group(commands, "data", "data sets, and networks to compare images by", "ACTION")
    for name, about, call in (("list", "what there is, and where", _data_list), ("get", "get one", _data_get)):
        action = command(actions, name, about, call)
        if name == "get":
            action.add_argument("name", metavar="NAME")
        action.add_argument("--root", metavar="DIR", help="root folder (else HRVQVAE_DATA, else the user's cache)")

    about = "pack a folder of images into shards, WebDataset tars or Parquet files; called again, it goes on"
    pack = command(actions, "pack", about, _data_pack)
    pack.add_argument("folder", metavar="DIR", type=Path)
    pack.add_argument("out", metavar="OUT", type=Path, help="how the shards begin: OUT-000000.tar and so on")
    pack.add_argument("--shard-size", type=int, default=512, metavar="MB", help="images of a shard (default: 512)")
    pack.add_argument("--format", default="tar", metavar="NAME", help="tar or parquet")
