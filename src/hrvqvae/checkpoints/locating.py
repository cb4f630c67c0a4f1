"""From what a person types to the weights of a trained model."""

from __future__ import annotations

import re
from pathlib import Path

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import presets
from hrvqvae.utils.errors import InputError

SHIPPED = Path(__file__).parent.parent / "weights"
"""Trained models inside the package, a folder each, in the form that `export` writes."""


def shipped() -> list[str]:
    """Names of the trained models inside the package."""
    return sorted(path.name for path in SHIPPED.glob("*") if RunFolder(path).model.is_file())


def run_folder(run: str | Path) -> Path:
    """The folder that a person means: a path as it is, or else the name of a model inside the package."""
    path = Path(run)
    is_run = path.is_file() or RunFolder(path).config.is_file() or RunFolder(path).model.is_file()
    return SHIPPED / path if str(run) in shipped() and not is_run else path


def is_hub_name(name: str | Path) -> bool:
    """Whether it has the form user/name, as models of the hub are named; a path may have it too."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name), re.ASCII) is not None


def locate(run: str | Path) -> Path:
    """The weights file that a run folder, a path to a weights file, or the name of a shipped model stands for.

    Raises:
        InputError: there is no such folder or file, or the folder holds no trained model.
    """
    path = run_folder(run)
    if path.is_file():
        return path
    if not path.is_dir():
        named = f"; models inside the package: {', '.join(shipped())}" if shipped() else ""
        if str(run) in presets.names():
            raise InputError(f"{run} is a preset, not a trained model; {_of_preset(str(run))}")
        if is_hub_name(run) and not path.parent.is_dir():
            named += f"; for one of the hub: hrvqvae hub get {run}"
        raise InputError(f"{path}: there is no such run folder{named}")
    folder = RunFolder(path)
    if folder.model.is_file():
        return folder.model
    if folder.config.is_file():
        raise InputError(f"{path} has no model.safetensors yet; train it: hrvqvae train ... --out {path} --resume")
    raise InputError(f"{path} is not a run folder (it has no model.safetensors)")


def _of_preset(name: str) -> str:
    """How a preset becomes a trained model, and the one inside the package where there is one of it."""
    train = f"train one: hrvqvae train {name} --out runs/{name.replace('/', '-')}"
    named = name.removeprefix("hrvqvae/").replace("/", "-")
    return f"{train}, or take {named}, which is inside the package" if named in shipped() else train
