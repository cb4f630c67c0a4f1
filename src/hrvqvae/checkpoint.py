"""The run folder, and a model from anywhere.

RUN/config.yaml         the resolved configuration
    metrics.jsonl       a line for each logged step and each evaluation
    model.safetensors   averaged weights with the configuration inside: what everything else loads
    checkpoints/        the two newest resume states, step-00001000.safetensors
    pictures/           reconstruction sheets, training curves, codeword usage, samples
    priors/codes/       the codes of the train split
    priors/level-1/     a run folder of its own: its model.safetensors is the prior's best held-out state
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
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
from hrvqvae.priors import Prior, build_prior

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
    def codes(self) -> Path:
        return self.path / "priors" / "codes"

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


def export(run: str | Path, out: Path) -> list[Path]:
    """Write what others need of a run, and nothing else: the model, and its priors in half precision; -> the files.

    Paths of the data are left out. Written whole or not at all.

    Raises:
        InputError: the run has no model, a prior is of another state of it, `out` exists or can't be written.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder")
    source = locate(run)
    weights, meta = storage.read(source)
    digest = storage.digest(source)
    partial = out.with_name(f"{storage.TEMPORARY}{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        storage.write(RunFolder(partial).model, weights, {**meta, "config": _without_paths(meta["config"])})
        autoencoder = storage.digest(RunFolder(partial).model)
        for level in range(len(from_dict(meta["config"], str(source)).model.num_symbols)):
            path = prior_run(source.parent, level).model
            if path.is_file():
                weights, about = _read_prior(path, digest, run, level)
                half = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
                prior_run(partial, level).path.mkdir(parents=True)
                about |= {"config": _without_paths(about["config"]), "autoencoder": autoencoder}
                storage.write(prior_run(partial, level).model, half, about)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "data": {**config["data"], "root": None}}


def save_model(path: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write weights with their configuration. Raises OSError."""
    storage.write(path, weights, {"kind": "autoencoder", "config": to_dict(config), "step": step})


def prior_run(run: str | Path, level: int) -> RunFolder:
    """The folder of the prior of a run's level (0 is the coarsest)."""
    return RunFolder(Path(run) / "priors" / f"level-{level + 1}")


def save_prior(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    *,
    level: int,
    step: int,
    autoencoder: str,
    classes: Sequence[str],
    class_counts: Sequence[int],
    bits_per_code: float,
) -> None:
    """Write a level's prior with what it was trained on. Raises OSError."""
    meta = {
        "kind": "prior", "config": to_dict(config), "level": level, "step": step, "autoencoder": autoencoder,
        "classes": list(classes), "class_counts": list(class_counts), "bits_per_code": bits_per_code,
    }  # fmt: skip
    storage.write(path, weights, meta)


@dataclass(frozen=True)
class Priors:
    """The priors of a run, one a level, coarse first.

    Attributes:
        levels: in evaluation mode, on the CPU, float32.
        classes: names of the class labels, empty where there are none.
        class_counts: training images of each class.
    """

    levels: tuple[Prior, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]


def has_priors(run: str | Path) -> bool:
    """Whether every level of a run has a prior."""
    path = locate(run)
    levels = len(from_dict(storage.read(path)[1]["config"], str(path)).model.num_symbols)
    return all(prior_run(path.parent, level).model.is_file() for level in range(levels))


def _read_prior(path: Path, autoencoder: str, run: str | Path, level: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of the prior of a level.

    Raises:
        InputError: there is none, or it is of another state of the autoencoder than the one with that digest.
        DamagedFileError: it is damaged, or no prior.
    """
    train = f"hrvqvae train-prior {run} --level {level + 1}"
    if not path.is_file():
        raise InputError(f"{run} has no prior of level {level + 1}; train it: {train}")
    weights, about = storage.read(path)
    if about.get("kind") != "prior":
        raise DamagedFileError(f"{path} is not a prior")
    if about["autoencoder"] != autoencoder:
        raise InputError(
            f"{path} was trained on codes of another state of the autoencoder; delete {path.parent} and train it "
            f"anew: {train}"
        )
    return weights, about


def load_priors(run: str | Path) -> Priors:
    """The priors of every level of a run.

    Raises:
        InputError: no such run, a level has no prior, one was trained for another state of the autoencoder, or the
            levels know different classes; the command that trains them is named.
        DamagedFileError: a file is damaged, or does not fit its configuration.
    """
    model_path = locate(run)
    autoencoder = storage.digest(model_path)
    levels = len(from_dict(storage.read(model_path)[1]["config"], str(model_path)).model.num_symbols)
    priors, known = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
    for level in range(levels):
        path = prior_run(model_path.parent, level).model
        weights, about = _read_prior(path, autoencoder, run, level)
        prior = build_prior(from_dict(about["config"], str(path)), about["level"], len(about["classes"]))
        try:
            prior.requires_grad_(False).load_state_dict(weights)
        except RuntimeError as error:
            raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
        priors.append(prior.eval())
        known.append((tuple(about["classes"]), tuple(about["class_counts"])))
        if known[-1] != known[0]:
            raise InputError(
                f"{path} was trained on other classes than level 1; delete {path.parent} and train it anew"
            )
    return Priors(tuple(priors), *known[0])


SHIPPED = Path(__file__).parent / "weights"
"""Trained models inside the package, a folder each, in the form that `export` writes."""


def shipped() -> list[str]:
    """Names of the trained models inside the package."""
    return sorted(path.name for path in SHIPPED.glob("*") if RunFolder(path).model.is_file())


def run_folder(run: str | Path) -> Path:
    """The folder that a person means: a path as it is, or else the name of a model inside the package."""
    path = Path(run)
    is_run = path.is_file() or RunFolder(path).config.is_file() or RunFolder(path).model.is_file()
    return SHIPPED / path if str(run) in shipped() and not is_run else path


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
        raise InputError(f"{path}: there is no such run folder{named}")
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
    """The model of a run folder, weights file or shipped name, in evaluation mode. Raises as `load_with_config`."""
    return load_with_config(run, device)[0]
