"""Models and priors from disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.device import resolve_device
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, prior_folders
from hrvqvae.checkpoints.locating import locate
from hrvqvae.checkpoints.progressive import with_progressive_decoder
from hrvqvae.checkpoints.stale import require_current
from hrvqvae.config import Config, Levels, level_names, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.priors.base import Priors
from hrvqvae.priors.build import build_prior
from hrvqvae.utils.errors import DamagedFileError, InputError


def save_model(path: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write weights with their configuration. Raises OSError."""
    storage.write(path, weights, {"kind": "autoencoder", "config": to_dict(config), "step": step})


def save_prior(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    *,
    levels: Levels,
    step: int,
    autoencoder: str,
    classes: Sequence[str],
    class_counts: Sequence[int],
    bits_per_code: Sequence[float],
) -> None:
    """Write a prior of some levels with what it was trained on, and the bits a code of each level. Raises OSError."""
    meta = {
        "kind": "prior", "config": to_dict(config), "level": levels.start, "step": step, "autoencoder": autoencoder,
        "classes": list(classes), "class_counts": list(class_counts), "bits_per_code": mean(bits_per_code),
    }  # fmt: skip
    if len(levels) > 1:
        meta |= {"levels": len(levels), "level_bits_per_code": list(bits_per_code)}
    storage.write(path, weights, meta)


def level_bits(about: Mapping[str, Any]) -> list[float]:
    """Bits a code of each level that a prior covers, on held-out images, from its file's meta."""
    return list(about.get("level_bits_per_code", [about["bits_per_code"]]))


def has_priors(run: str | Path) -> bool:
    """Whether every level of a run has a prior. Reads no weights. Raises InputError where one has two."""
    path = locate(run)
    count = len(_config_of(storage.read_meta(path), path).model.num_symbols)
    return all(folder.model.is_file() for folder in folders_of_priors(path.parent, count).values())


def folders_of_priors(run: Path, count: int) -> dict[Levels, RunFolder]:
    """Folders of the priors of all levels of a run, coarse first; of a level that has none, where its own would be.

    Args:
        count: levels of the run.

    Raises:
        InputError: a level has two priors.
    """
    found = {levels: folder for levels, folder in prior_folders(run).items() if folder.model.is_file()}
    covered = {level for levels in found for level in levels}
    found |= {range(level, level + 1): prior_folder(run, level) for level in range(count) if level not in covered}
    return dict(sorted(found.items(), key=lambda item: item[0].start))


def read_prior(
    path: Path, autoencoder: str, run: str | Path, levels: Levels
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of the prior of some levels.

    Raises:
        InputError: there is none, or it is of another state of the autoencoder than the one with that digest.
        DamagedFileError: it is damaged, or no prior.
    """
    if not path.is_file():
        train = f"hrvqvae train-prior {run} --level {levels.start + 1}"
        raise InputError(f"{run} has no prior of {level_names(levels)}; train it: {train}")
    weights, about = storage.read(path)
    if about.get("kind") != "prior":
        raise DamagedFileError(f"{path} is not a prior")
    require_current(path, about["autoencoder"], autoencoder, run)
    return weights, about


def load_priors(run: str | Path) -> Priors:
    """The priors that cover every level of a run.

    Raises:
        InputError: no such run, a level has no prior or two, one was trained for another state of the autoencoder, the
            levels know different classes, or a config.yaml describes another network; what to do is named.
        DamagedFileError: a file is damaged, or does not fit its configuration.
    """
    model_path = locate(run)
    autoencoder = storage.digest(model_path)
    count = len(_config_of(storage.read_meta(model_path), model_path).model.num_symbols)
    priors, known = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
    folders = folders_of_priors(model_path.parent, count)
    if not any(folder.model.is_file() for folder in folders.values()):
        raise InputError(f"{run} has no priors; train them: hrvqvae train-prior {run}")
    for levels, folder in folders.items():
        path = folder.model
        weights, about = read_prior(path, autoencoder, run, levels)
        config = from_dict(about["config"], str(path))
        _check_agreement(lambda one: one.prior.network, config, about, path)
        own = range(about["level"], about["level"] + about.get("levels", 1))
        prior = build_prior(config, own, len(about["classes"]))
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


def described_config(run: str | Path) -> Config:
    """The configuration of a trained run: its config.yaml, or else the one inside its weights. Raises as `locate`."""
    path = locate(run)
    folder = RunFolder(path.parent)
    described = path == folder.model and folder.config.is_file()
    return folder.read_config() if described else _config_of(storage.read_meta(path), path)


def load_alone(run: str | Path, beam: int | None = None) -> tuple[Autoencoder, Config, str]:
    """The model of a run without what lies beside it, in evaluation mode and on the CPU, its configuration, and the
    checksum of just these weights.

    Args:
        beam: paths that its search keeps at each level; None keeps as many as it was trained with.

    Raises:
        InputError: it is no run, its config.yaml describes another model than the weights are of, or it has no linked
            codebooks for a beam.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    path = locate(run)
    weights, meta, digest = storage.read_with_digest(path)
    config = _config_of(meta, path)
    _check_agreement(lambda one: one.model, config, meta, path)
    if beam is not None:
        config = dataclasses.replace(config, model=config.model.with_beam(beam))
    model = build(config).requires_grad_(False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return model.eval(), config, digest


@torch.inference_mode(False)  # weights that a lambda can take gradients through
def load_with_digest(run: str | Path, device: str = "cpu", beam: int | None = None) -> tuple[Autoencoder, Config, str]:
    """As `load_alone`, on a device, with the progressive decoder where the run has one for this state of it.

    Raises:
        InputError: there is no such device.
        DamagedFileError: that decoder is damaged or does not fit its configuration.
    """
    model, config, digest = load_alone(run, beam)
    config = with_progressive_decoder(model, config, locate(run), digest, run)
    return model.to(resolve_device(device)), config, digest


def load_with_config(run: str | Path, device: str = "cpu", beam: int | None = None) -> tuple[Autoencoder, Config]:
    """The model of a run in evaluation mode, with its configuration. Raises as `load_with_digest`."""
    return load_with_digest(run, device, beam)[:2]
