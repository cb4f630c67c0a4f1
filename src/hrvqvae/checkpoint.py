"""The run folder, and a model from anywhere.

RUN/config.yaml         the resolved configuration
    metrics.jsonl       a line for each logged step and each evaluation
    model.safetensors   averaged weights with the configuration inside: what everything else loads
    checkpoints/        the two newest resume states, step-00001000.safetensors
    pictures/           reconstruction sheets, training curves, codeword usage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hrvqvae import storage
from hrvqvae.config import Config, to_dict
from hrvqvae.configfile import from_dict
from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.models import Autoencoder, build

KEPT = 2


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its checkpoints."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def create(self) -> None:
        """Make the folders, and clear what a killed writer left.

        Raises:
            InputError: the folder can't be made or written.
        """
        try:
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
                storage.remove_temporaries(folder)
            storage.write_atomic(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"the run folder {self.path} can't be written ({reason}); choose another --out") from error

    def begun(self) -> bool:
        """Whether there is anything here that a new run would overwrite."""
        return bool(self.saved()) or self.model.is_file()

    def write_config(self, config: Config) -> None:
        storage.write_atomic(self.config, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

    def read_config(self) -> Config:
        """Raises InputError where the folder holds no run, or its configuration is damaged."""
        if not self.config.is_file():
            raise InputError(f"{self.path} is not a run folder (it has no config.yaml)")
        try:
            content = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DamagedFileError(f"{self.config} is damaged: not YAML") from error
        return from_dict(content, str(self.config))

    def saved(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint and drop all but the two newest. Raises OSError with the older ones untouched."""
        path = self.checkpoints / f"step-{step:09d}.safetensors"
        storage.write(path, tensors, meta)
        for old in self.saved()[KEPT:]:
            old.unlink()
        return path

    def newest(self, say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """State of the newest checkpoint that is whole, or None where there is none at all.

        A damaged one is named and set aside (renamed to *.damaged), so that two good ones are kept from here on.

        Raises:
            DamagedFileError: there are checkpoints and every one is damaged.
        """
        found, damaged = self.saved(), list[Path]()
        for path in found:
            try:
                state = storage.read(path)
            except DamagedFileError as error:
                say(str(error))
                damaged.append(path)
                continue
            for bad in damaged:
                bad.replace(bad.with_suffix(".damaged"))
            if damaged:
                say(f"{path.name}, the one before, is taken")
            return state
        if found:
            raise DamagedFileError(f"every checkpoint in {self.checkpoints} is damaged; train anew with another --out")
        return None


def save_model(path: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write weights with their configuration. Raises OSError."""
    storage.write(path, weights, {"kind": "autoencoder", "config": to_dict(config), "step": step})


def locate(run: str | Path) -> Path:
    """The weights file that a run folder, or a path to a weights file, stands for.

    Raises:
        InputError: there is no such folder or file, or the folder holds no trained model.
    """
    path = Path(run)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: there is no such run folder")
    folder = RunFolder(path)
    if folder.model.is_file():
        return folder.model
    if folder.config.is_file():
        raise InputError(f"{path} has no model.safetensors yet; train it: hrvqvae train ... --out {path} --resume")
    raise InputError(f"{path} is not a run folder (it has no model.safetensors)")


def load_with_config(run: str | Path, device: str = "cpu") -> tuple[Autoencoder, Config]:
    """The model of a run in evaluation mode, with its configuration.

    Raises:
        InputError: it is no run.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    path = locate(run)
    weights, meta = storage.read(path)
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    config = from_dict(meta["config"], str(path))
    model = build(config).requires_grad_(False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return model.eval().to(torch.device(device)), config


def load(run: str | Path, device: str = "cpu") -> Autoencoder:
    """The model of a run folder or weights file, in evaluation mode. Raises as `load_with_config` does."""
    return load_with_config(run, device)[0]
