"""This installation: its packages and folders."""

from __future__ import annotations

import os
import platform
from importlib import util
from pathlib import Path
from typing import Any

from hrvqvae.cli.console import Arguments, Group, command, print_json, print_table
from hrvqvae.utils.progress import LOG, waiting


def examine() -> dict[str, Any]:
    """This installation as plain values: `versions` of what is required (None: missing), `device` and `precision` where
    torch can be imported, `folders` of data and models, missing packages of `extras`, and `problems`, a line each."""
    from importlib import metadata

    from hrvqvae.data.loading import data_root
    from hrvqvae.utils.extras import packages

    def version(name: str) -> str | None:
        return next((found.version for found in metadata.distributions(name=name)), None)

    needed = dict(packages())
    versions = {"python": platform.python_version(), "hrvqvae": version("hrvqvae")}
    versions |= {name: version(name) for name in needed.pop("", ())}
    found: dict[str, Any] = {"versions": versions, "platform": platform.platform(), "cores": os.cpu_count()}
    problems = [f"{name} is missing: pip install {name}" for name, there in versions.items() if there is None]
    folders = {"data sets (HRVQVAE_DATA)": data_root(None)}
    waiting("loading torch, to see what it computes on")
    try:
        import torch

        from hrvqvae.utils.device import computes_bf16

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        found["precision"] = "bf16" if computes_bf16(device) else "fp32"
        folders["published networks (TORCH_HOME)"] = Path(torch.hub.get_dir(), "checkpoints")
    except (ImportError, OSError) as error:
        problems.append(f"torch can't be used: {' '.join(str(error).split())}")
    if util.find_spec("huggingface_hub"):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["models of the hub (HF_HOME)"] = Path(HF_HUB_CACHE)
    for what, path in folders.items():
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            problems.append(f"the folder for {what} can't be written: {path}")
    found["folders"] = {what: str(path) for what, path in folders.items()}
    found["extras"] = {extra: [name for name in names if version(name) is None] for extra, names in needed.items()}
    return found | {"problems": problems}


def _doctor(arguments: Arguments) -> int:
    found = examine()
    if arguments.json:
        print_json(found)
        return 1 if found["problems"] else 0
    rows = [(name, version or "missing") for name, version in found["versions"].items()]
    rows += [(name, found[name]) for name in ("platform", "cores", "device", "precision") if name in found]
    rows += found["folders"].items()
    for extra, lacking in found["extras"].items():
        how = f"pip install 'hrvqvae[{extra}]' for {', '.join(lacking)}"
        rows.append((f"extra {extra}", how if lacking else "complete"))
    print_table(rows)
    for problem in found["problems"]:
        LOG.error("%s", problem)
    return 1 if found["problems"] else 0


def add(commands: Group) -> None:
    """doctor."""
    about = "what is installed and missing, what it computes on, where it keeps things; exit code 1 if it can't work"
    command(commands, "doctor", about, _doctor, "--json")
