"""What there is: presets, data sets, published networks."""

from __future__ import annotations

from hrvqvae.cli.console import Arguments, Group, command, group, print_json, print_table


def _presets(arguments: Arguments) -> int:
    from hrvqvae import presets

    if arguments.name is None:
        described = [presets.describe(preset) for preset in presets.PRESETS.values()]
        if arguments.json:
            print_json(described)
        else:
            print_table([(entry["name"], entry["about"]) for entry in described])
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
    from hrvqvae import hub
    from hrvqvae.data.sources import FOLDERS, SOURCES, data_root

    root = data_root(arguments.root)
    rows: list[tuple[str, str, str]] = []
    for source in SOURCES.values():
        there = f"in {root / source.name}" if not source.missing(root) else "not there"
        rows.append((source.name, there, f"{source.about}; {source.how}"))
    for name, how in FOLDERS.items():
        rows.append((name, f"in {root / name}" if (root / name).is_dir() else "not there", how))
    rows.append(("any folder", "", "--data DIR: PNG, JPEG, WebP; class folders, train/ and test/ as there are"))
    for network in hub.NETWORKS.values():
        where = f"in {network.path.parent}" if network.there else "not there"
        rows.append((network.name, where, f"{network.about}; {network.how}"))
    print(f"root folder: {root}")
    print_table(rows)
    return 0


def _data_get(arguments: Arguments) -> int:
    from hrvqvae import hub
    from hrvqvae.data import fetch
    from hrvqvae.data.sources import data_root

    if arguments.name in hub.NETWORKS:
        hub.get(arguments.name, print)
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
