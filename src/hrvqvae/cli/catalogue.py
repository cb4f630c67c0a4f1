"""Commands that list: presets, runs, data sets, published networks."""

from hrvqvae.cli.console import Arguments, Command, Group, option, print_json, print_table


def _presets(arguments: Arguments) -> None:
    from hrvqvae.config import presets

    names = presets.names() if arguments.name is None else [arguments.name]
    entries = [presets.describe(presets.get(name)) for name in names]
    if arguments.json:
        print_json(entries if arguments.name is None else entries[0])
        return
    if arguments.name is None:
        print_table([(entry["name"], entry["about"]) for entry in entries])
        return
    (entry,) = entries
    print(f"{entry['name']}: {entry['about']}\n")
    print_table([(name, row["value"], row["source"]) for name, row in entry["values"].items()])
    rows = []
    for name, value in entry["derived"].items():
        shown = value
        if isinstance(value, (int, float)):
            shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        rows.append((name, shown, "computed"))
    print()
    print_table(rows)
    for note in entry["notes"]:
        print(f"\nNote: {note}")


def _data_list(_: Arguments) -> None:
    from hrvqvae.config.registry import DATASETS
    from hrvqvae.data.fetch import find_data_root, list_missing_files
    from hrvqvae.models import published

    root = find_data_root(None)
    rows = []
    for dataset in DATASETS.entries():
        folder = root / dataset.name
        present = folder.is_dir() and not list_missing_files(dataset, folder)
        where = f"in {folder}" if present else "not there"
        how = f"hrvqvae data get {dataset.name} ({dataset.how})" if dataset.ways else dataset.how
        rows.append((dataset.name, where, f"{dataset.about}; {how}"))
    about = (
        "--data DIR: images, also in class folders, train/ and test/; or Parquet, tar or Arrow"
        " files; or hub:OWNER/NAME"
    )
    rows.append(("any folder", "", about))
    for network in published.NETWORKS.values():
        where = f"in {network.path.parent}" if network.available else "not there"
        rows.append((network.name, where, f"{network.about}; hrvqvae data get {network.name}"))
    print(f"root folder: {root}")
    print_table(rows)


def _data_get(arguments: Arguments) -> None:
    from hrvqvae.data import fetch
    from hrvqvae.models import published

    if arguments.name in published.NETWORKS:
        published.download(arguments.name, print)
    else:
        fetch.get(arguments.name, fetch.find_data_root(None), print)


COMMANDS = (
    Command(
        "presets",
        "list the presets, or show the values of a preset with their sources",
        _presets,
        option("name NAME", "show the preset NAME (default: list all)", nargs="?"),
        "--json",
    ),
    Group(
        "data",
        "list and get data sets, and networks that compare images",
        Command("list", "list data sets and networks, and where they are", _data_list),
        Command(
            "get",
            "get a data set into the folder HRVQVAE_DATA (default: the user's cache), or a network",
            _data_get,
            option("name NAME", "data set or network, such as mnist"),
        ),
    ),
)
