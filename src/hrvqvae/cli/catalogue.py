"""Commands that list: presets, runs, data sets, published networks, this installation."""

import os
import platform
from importlib import util
from pathlib import Path
from typing import Any

from hrvqvae.cli.console import Arguments, Command, Group, option, print_json, print_table
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import LOG, waiting


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
        printed = f"; printed: {entry['printed'][name]:,}" if name in entry["printed"] else ""
        shown = value
        if isinstance(value, (int, float)):
            shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        rows.append((name, shown, f"computed{printed}"))
    print()
    print_table(rows)
    for note in entry["notes"]:
        print(f"\nNote: {note}")


def _data_list(_: Arguments) -> None:
    from hrvqvae.config.registry import DATASETS
    from hrvqvae.data.loading import find_published, list_missing_files
    from hrvqvae.data.sources import find_data_root
    from hrvqvae.models import published

    root = find_data_root(None)
    rows = []
    for dataset in DATASETS.entries():
        folder = find_published(dataset, root) if dataset.files else root / dataset.name
        present = folder.is_dir() and not list_missing_files(dataset, folder)
        where = f"in {folder}" if present else "not there"
        how = f"hrvqvae data get {dataset.name} ({dataset.how})" if dataset.ways else dataset.how
        rows.append((dataset.name, where, f"{dataset.about}; {how}"))
    about = (
        "--data DIR: PNG, JPEG or WebP, also in class folders, train/ and test/; or tars, Parquet"
        " files, arrays"
    )
    rows.append(("any folder", "", about))
    for network in published.NETWORKS.values():
        where = f"in {network.path.parent}" if network.available else "not there"
        rows.append((network.name, where, f"{network.about}; {network.install_commands}"))
    print(f"root folder: {root}")
    print_table(rows)


def _data_get(arguments: Arguments) -> None:
    from hrvqvae.data import fetch
    from hrvqvae.data.sources import find_data_root
    from hrvqvae.models import published

    if arguments.name in published.NETWORKS:
        published.download(arguments.name, print)
    else:
        fetch.get(arguments.name, find_data_root(None), print)


def _doctor(arguments: Arguments) -> int:
    """Report versions (None: missing), device, folders of data and models, and the missing packages
    of each extra.
    """
    from importlib import metadata

    from hrvqvae.data.sources import find_data_root
    from hrvqvae.utils.extras import packages

    def version(name: str) -> str | None:
        return next((package.version for package in metadata.distributions(name=name)), None)

    needed = dict(packages())
    versions = {"python": platform.python_version(), "hrvqvae": version("hrvqvae")}
    versions |= {name: version(name) for name in needed.pop("", ())}
    report: dict[str, Any] = {"versions": versions}
    report |= {"platform": platform.platform(), "cores": os.cpu_count()}
    problems = [
        f"{name} is missing: pip install {name}" for name, text in versions.items() if text is None
    ]
    folders = {}
    try:
        folders["data sets (HRVQVAE_DATA)"] = find_data_root(None)
    except InputError as error:
        problems.append(str(error))
    waiting("loading torch, to find its device")
    try:
        import torch

        from hrvqvae.utils.device import computes_bf16

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        report["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        report["precision"] = "bf16" if computes_bf16(device) else "fp32"
        folders["published networks (TORCH_HOME)"] = Path(torch.hub.get_dir(), "checkpoints")
    except (ImportError, OSError) as error:
        problems.append(f"torch can't be used: {' '.join(str(error).split())}")
    if util.find_spec("huggingface_hub"):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["models of the hub (HF_HOME)"] = Path(HF_HUB_CACHE)
    for title, path in folders.items():
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            problems.append(f"the folder for {title} can't be written: {path}")
    report["folders"] = {title: str(path) for title, path in folders.items()}
    report["extras"] = {
        extra: [name for name in names if version(name) is None] for extra, names in needed.items()
    }
    code = 1 if problems else 0
    if arguments.json:
        print_json(report | {"problems": problems})
        return code
    rows = [(name, installed or "missing") for name, installed in versions.items()]
    rows += [(name, value) for name, value in report.items() if not isinstance(value, dict)]
    rows += report["folders"].items()
    for extra, missing in report["extras"].items():
        advice = f"pip install 'hrvqvae[{extra}]' for {', '.join(missing)}"
        rows.append((f"extra {extra}", advice if missing else "complete"))
    print_table(rows)
    for problem in problems:
        LOG.error("%s", problem)
    return code


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
    Command(
        "doctor",
        "check this installation: packages, device, folders; exit code 1 if it can't work",
        _doctor,
        "--json",
    ),
)
