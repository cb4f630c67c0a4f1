"""What this installation is, where it keeps things, and what it lacks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from hrvqvae.cli.console import Arguments, Group, command, print_json, print_table
from hrvqvae.utils.extras import extras, required
from hrvqvae.utils.notices import waiting


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _computes() -> dict[str, Any]:
    """Device, precision and threads of a training that leaves them to the machine."""
    import torch

    from hrvqvae.checkpoints.loading import resolve_device
    from hrvqvae.training.device import computes_bf16

    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "precision": "bf16" if computes_bf16(device) else "fp32",
        "threads": torch.get_num_threads(),
    }


def _data() -> Path:
    from hrvqvae.data.loading import data_root

    return data_root(None)


def _networks() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _compiled() -> Path | None:
    from hrvqvae.compression.range_coder import encode
    from hrvqvae.utils.compiled import cache_folder

    return cache_folder(encode)


def _hub() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


_FOLDERS: Mapping[str, tuple[str, Callable[[], Path | None]]] = {
    "data": ("data sets (HRVQVAE_DATA)", _data),
    "networks": ("published networks (TORCH_HOME)", _networks),
    "compiled": ("compiled functions (NUMBA_CACHE_DIR)", _compiled),
    "hub": ("models of the hub (HF_HOME)", _hub),
}
"""Name -> what a cache folder holds, with the variable that moves it, and where it is."""


def _folder(path: Path | None) -> dict[str, Any]:
    """What is known of a cache folder; it may be written as soon as the nearest folder above that is there may be."""
    if path is None:
        return {"path": None, "there": False, "writable": False}
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return {"path": str(path), "there": path.is_dir(), "writable": there.is_dir() and os.access(there, os.W_OK)}


def examine() -> dict[str, Any]:
    """This installation as plain values.

    Returns:
        `versions`: package -> version, or None where it is missing, of Python, this package and what it requires.
        `cores`, and, where torch can be imported, `device`, `device_name`, `precision` and `threads`.
        `folders`: name -> `path`, `there`, `writable`. A folder of a package that is missing is left out.
        `extras`: name -> `packages` (name -> version or None) and `missing`.
        `problems`: a line for each thing that keeps the package from working.
    """
    versions = {"python": platform.python_version(), "hrvqvae": _version("hrvqvae")}
    versions |= {package: _version(package) for package in required()}
    problems = [f"{name} is missing: pip install {name}" for name in required() if versions[name] is None]
    if versions["hrvqvae"] is None:
        problems.append("hrvqvae is not installed, only found on the path: what it requires is not known")
    found: dict[str, Any] = {"versions": versions, "platform": platform.platform(), "cores": os.cpu_count()}
    waiting("loading torch, to see what it computes on")
    try:
        found |= _computes()
    except (ImportError, OSError) as error:
        problems.append(f"torch can't be used: {' '.join(str(error).split())}")
    folders = {}
    for name, (what, where) in _FOLDERS.items():
        try:
            folders[name] = _folder(where())
        except (ImportError, OSError):
            continue  # of a package that is missing, which is said elsewhere
        if not folders[name]["writable"]:
            problems.append(f"the folder for {what} can't be written: {folders[name]['path']}")
    packages = {extra: {name: _version(name) for name in names} for extra, names in extras().items()}
    found["folders"] = folders
    found["extras"] = {
        extra: {"packages": versions, "missing": [name for name, version in versions.items() if version is None]}
        for extra, versions in packages.items()
    }
    found["problems"] = problems
    return found


def _show(found: Mapping[str, Any]) -> None:
    print_table([(name, version or "missing") for name, version in found["versions"].items()])
    print(f"\n{found['platform']}, {found['cores']} cores")
    if "device" in found:
        print(
            f"computes on {found['device']} ({found['device_name']}), {found['precision']}, {found['threads']} threads"
        )
    print("\ncache folders")
    rows = []
    for name, folder in found["folders"].items():
        state = "" if folder["there"] else "not there yet"
        rows.append((name, folder["path"] or "none", _FOLDERS[name][0], state))
    print_table(rows)
    print("\nextras")
    lacking = {extra: told["missing"] for extra, told in found["extras"].items() if told["missing"]}
    complete = [extra for extra in found["extras"] if extra not in lacking]
    if complete:
        print(f"complete: {', '.join(complete)}")
    if lacking:
        print_table([(extra, f"missing: {', '.join(missing)}") for extra, missing in lacking.items()])
        print(f"\nto add one: pip install 'hrvqvae[{next(iter(lacking))}]'")
    if not found["extras"]:
        print("unknown: the package is not installed")


def _doctor(arguments: Arguments) -> int:
    found = examine()
    if arguments.json:
        print_json(found)
    else:
        _show(found)
        for problem in found["problems"]:
            print(f"hrvqvae: {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


def add(commands: Group) -> None:
    """doctor."""
    about = "what is installed and missing, what it computes on, where it keeps things; exit code 1 if it can't work"
    doctor = command(commands, "doctor", about, _doctor)
    doctor.add_argument("--json", action="store_true", help="for programs")
