"""Models and priors from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hrvqvae.config import Config, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.priors.base import Priors
from hrvqvae.priors.build import build_prior
from hrvqvae.runs import storage
from hrvqvae.runs.device import resolve_device
from hrvqvae.runs.folder import RunFolder, prior_folder
from hrvqvae.runs.locating import locate
from hrvqvae.systems.base import Autoencoder
from hrvqvae.systems.build import build


def save_model(path: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write weights with their configuration. Raises OSError."""
    storage.write(path, weights, {"kind": "autoencoder", "config": to_dict(config), "step": step})


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


def has_priors(run: str | Path) -> bool:
    """Whether every level of a run has a prior. Reads no weights."""
    path = locate(run)
    levels = len(_config_of(storage.read_meta(path), path).model.num_symbols)
    return all(prior_folder(path.parent, level).model.is_file() for level in range(levels))


def read_prior(path: Path, autoencoder: str, run: str | Path, level: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
        InputError: no such run, a level has no prior, one was trained for another state of the autoencoder, the
            levels know different classes, or a config.yaml describes another network; what to do is named.
        DamagedFileError: a file is damaged, or does not fit its configuration.
    """
    model_path = locate(run)
    autoencoder = storage.digest(model_path)
    levels = len(_config_of(storage.read_meta(model_path), model_path).model.num_symbols)
    priors, known = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
    if not any(prior_folder(model_path.parent, level).model.is_file() for level in range(levels)):
        raise InputError(f"{run} has no priors; train them: hrvqvae train-prior {run}")
    for level in range(levels):
        path = prior_folder(model_path.parent, level).model
        weights, about = read_prior(path, autoencoder, run, level)
        config = from_dict(about["config"], str(path))
        _check_agreement(lambda one: one.prior.network, config, about, path)
        prior = build_prior(config, about["level"], len(about["classes"]))
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


def _config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """The configuration inside a weights file. Raises DamagedFileError where it holds none."""
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    return from_dict(meta["config"], str(path))


def _check_agreement(part: Callable[[Config], Any], config: Config, meta: Mapping[str, Any], path: Path) -> None:
    """Raises InputError where a configuration beside the weights has another such part than the weights have."""
    folder = RunFolder(path.parent)
    if path != folder.model:
        return
    for file in (folder.config, folder.config_json):
        if not file.is_file():
            continue
        described = folder.read_plain(file)
        if described == meta["config"]:  # as a rule, and quicker than what follows
            continue
        if part(from_dict(described, str(file))) != part(config):
            raise InputError(
                f"{file} describes another model than {path.name} was trained as: put back what was changed "
                "there, or train anew in another folder"
            )


def load_with_digest(run: str | Path, device: str = "cpu") -> tuple[Autoencoder, Config, str]:
    """The model of a run in evaluation mode, its configuration, and the checksum of just these weights.

    Raises:
        InputError: it is no run, there is no such device, or its config.yaml describes another model than the weights
            are of.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    path = locate(run)
    weights, meta, digest = storage.read_with_digest(path)
    config = _config_of(meta, path)
    _check_agreement(lambda one: one.model, config, meta, path)
    model = build(config).requires_grad_(False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return model.eval().to(resolve_device(device)), config, digest


def load_with_config(run: str | Path, device: str = "cpu") -> tuple[Autoencoder, Config]:
    """The model of a run in evaluation mode, with its configuration. Raises as `load_with_digest`."""
    return load_with_digest(run, device)[:2]
