"""What there is: presets, data sets, published networks."""

from __future__ import annotations

from hrvqvae.cli.console import Arguments, Group, command, group, print_json, print_table, warn_of_faults


def _presets(arguments: Arguments) -> int:
    from hrvqvae.config import presets
    from hrvqvae.config.entries import DATASETS, PRIORS, SYSTEMS

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
    from hrvqvae.config.entries import DATASETS
    from hrvqvae.data.loading import data_root, missing_files
    from hrvqvae.perceptual import published

    warn_of_faults(DATASETS)
    root = data_root(arguments.root)
    rows: list[tuple[str, str, str]] = []
    for dataset in DATASETS.entries():
        folder = root / dataset.name
        there = not missing_files(dataset, root) if dataset.files else folder.is_dir()
        how = f"hrvqvae data get {dataset.name} ({dataset.how})" if dataset.ways else dataset.how
        rows.append((dataset.name, f"in {folder}" if there else "not there", f"{dataset.about}; {how}"))
    rows.append(("any folder", "", "--data DIR: PNG, JPEG, WebP; class folders, train/ and test/ as there are"))
    for network in published.NETWORKS.values():
        where = f"in {network.path.parent}" if network.there else "not there"
        rows.append((network.name, where, f"{network.about}; {network.how}"))
    print(f"root folder: {root}")
    print_table(rows)
    return 0


def _data_get(arguments: Arguments) -> int:
    from hrvqvae.data import fetch
    from hrvqvae.data.loading import data_root
    from hrvqvae.perceptual import published

    if arguments.name in published.NETWORKS:
        published.get(arguments.name, print)
    else:
        fetch.get(arguments.name, data_root(arguments.root), print)
    return 0


def add(commands: Group) -> None:
    """presets, data list, data get."""
    presets = command(commands, "presets", "list presets, or show one: every value with where it comes from", _presets)
    presets.add_argument("name", nargs="?", metavar="NAME")
    presets.add_argument("--json", action="store_true", help="for programs")

    actions = group(commands, "data", "data sets, and networks to compare images by", "ACTION")
    for name, about, call in (("list", "what there is, and where", _data_list), ("get", "get one", _data_get)):
        action = command(actions, name, about, call)
        if name == "get":
            action.add_argument("name", metavar="NAME")
        action.add_argument("--root", metavar="DIR", help="root folder (else HRVQVAE_DATA, else the user's cache)")
