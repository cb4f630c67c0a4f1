"""Models, priors and progressive decoders: written with their configuration, and read back on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folder, prior_folders, progressive_folder
from hrvqvae.checkpoints.stale import renewal, require_current
from hrvqvae.config import Config, Levels, ModelConfig, SingleGridConfig, level_names, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build, build_progressive_decoder, several_levels
from hrvqvae.priors.base import Priors, build_prior
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.progress import told_once

_Network = TypeVar("_Network", bound=nn.Module)
_TOLD = {
    "prior": {"config", "autoencoder", "step", "level", "classes", "class_counts", "bits_per_code"},
    "prefixes": {"config", "autoencoder", "step"},
}  # what the meta of a file of that kind says


def save_model(path: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write weights with their configuration. Raises OSError."""
    storage.write(path, weights, {"kind": "autoencoder", "config": to_dict(config), "step": step})


def save_progressive_decoder(
    path: Path, config: Config, weights: Mapping[str, Tensor], *, step: int, autoencoder: str
) -> None:
    """Write a progressive decoder with the digest of the autoencoder that it was trained for. Raises OSError."""
    meta = {"kind": "prefixes", "config": to_dict(config), "step": step, "autoencoder": autoencoder}
    storage.write(path, weights, meta)


def save_prior(
    path: Path, config: Config, weights: Mapping[str, Tensor], *, levels: Levels, step: int, autoencoder: str,
    classes: Sequence[str], class_counts: Sequence[int], bits_per_code: Sequence[float],
) -> None:  # fmt: skip
    """Write a prior of some levels with what it was trained on, and the bits per code of each level. Raises OSError."""
    meta = {
        "kind": "prior", "config": to_dict(config), "level": levels.start, "step": step, "autoencoder": autoencoder,
        "classes": list(classes), "class_counts": list(class_counts), "bits_per_code": mean(bits_per_code),
    }  # fmt: skip
    if len(levels) > 1:
        meta |= {"levels": len(levels), "level_bits_per_code": list(bits_per_code)}
    storage.write(path, weights, meta)


def config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """The configuration inside a weights file. Raises DamagedFileError where it holds none."""
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    return from_dict(meta["config"], str(path))


def described_config(run: str | Path) -> Config:
    """The configuration of a trained run: its config.yaml, or else the one inside its weights. Raises as `locate`."""
    path = locate(run)
    folder = RunFolder(path.parent)
    described = path == folder.model and folder.config.is_file()
    return folder.read_config() if described else config_of(storage.read_meta(path), path)


def _check_agreement(part: Callable[[Config], Any], config: Config, meta: Mapping[str, Any], path: Path) -> None:
    """Raises InputError where a configuration beside the weights has another such part than the weights have."""
    folder = RunFolder(path.parent)
    for file in (folder.config, folder.config_json):
        if path != folder.model or not file.is_file():
            continue
        described = folder.read_plain(file)
        same = described == meta["config"]  # as a rule, and quicker than what follows
        if not same and part(from_dict(described, str(file))) != part(config):
            raise InputError(
                f"{file} describes another model than {path.name} was trained as: put back what was changed "
                "there, or train anew in another folder"
            )


def _with_beam(model: ModelConfig, width: int) -> ModelConfig:
    """The model with a search that keeps so many paths at each level. Raises InputError where no levels are linked."""
    if not isinstance(model, SingleGridConfig) or model.quantizer.group_size == 1:
        raise InputError(f"{model.system} has no linked codebooks, which a beam searches")
    return dataclasses.replace(model, quantizer=dataclasses.replace(model.quantizer, beam=width))


def _filled(network: _Network, weights: Mapping[str, Tensor], path: Path) -> _Network:
    """A network with weights from a file, in evaluation mode. Raises DamagedFileError where they do not fit."""
    try:
        network.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return network.eval()


@torch.inference_mode(False)  # weights that a lambda can take gradients through
def load_with_digest(
    run: str | Path, device: str = "cpu", beam: int | None = None, progressive: bool = True
) -> tuple[Autoencoder, Config, str]:
    """The model of a run in evaluation mode, its configuration, and the digest of just these weights.

    Args:
        beam: paths that its search keeps at each level; None keeps as many as it was trained with.
        progressive: decode prefixes by the progressive decoder beside it, where there is one that is not stale.

    Raises:
        InputError: it is no run, its config.yaml describes another model than the weights are of, it has no linked
            codebooks for a beam, or there is no such device.
        DamagedFileError: the weights, or those of the progressive decoder, are damaged or do not fit their
            configuration.
    """
    path = locate(run)
    weights, meta, digest = storage.read_with_digest(path)
    config = config_of(meta, path)
    _check_agreement(lambda one: one.model, config, meta, path)
    if beam is not None:
        config = dataclasses.replace(config, model=_with_beam(config.model, beam))
    model = _filled(build(config), weights, path)
    decoder = progressive_folder(path.parent)
    file = decoder.model
    if progressive and path == RunFolder(path.parent).model and file.is_file():
        if decoder.is_stale(digest):
            told_once(f"prefixes are decoded by the decoder of all levels: {decoder.path} was {renewal(run)}")
        else:
            weights, about = read_progressive_decoder(file, digest, run)
            config = dataclasses.replace(config, progressive=config_of(about, file).progressive)
            whole = several_levels(model, config)
            whole.use_progressive_decoder(_filled(build_progressive_decoder(whole, config), weights, file))
    return model.to(resolve_device(device)), config, digest


def load_with_config(run: str | Path, device: str = "cpu", beam: int | None = None) -> tuple[Autoencoder, Config]:
    """The model of a run in evaluation mode, with its configuration. Raises as `load_with_digest`."""
    return load_with_digest(run, device, beam)[:2]


def read_progressive_decoder(path: Path, autoencoder: str, run: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of a progressive decoder. Raises as `read_prior`."""
    return _read_part(path, "prefixes", "progressive decoder", autoencoder, run)


def read_prior(
    path: Path, autoencoder: str, run: str | Path, levels: Levels
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of the prior of some levels, for the autoencoder of that digest.

    Raises:
        InputError: there is none, or it is stale.
        DamagedFileError: it is damaged, or no prior.
    """
    if not path.is_file():
        train = f"hrvqvae train-prior {run} --level {levels.start + 1}"
        raise InputError(f"{run} has no prior of {level_names(levels)}; train it: {train}")
    return _read_part(path, "prior", "prior", autoencoder, run)


def _read_part(
    path: Path, kind: str, title: str, autoencoder: str, run: str | Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights, about = storage.read(path)
    if about.get("kind") != kind or not _TOLD[kind] <= about.keys():
        raise DamagedFileError(f"{path} is not a {title}")
    require_current(path, about["autoencoder"], autoencoder, run)
    return weights, about


def trained_priors(run: Path) -> dict[Levels, RunFolder]:
    """Folders of the trained priors of a run, by the levels that each covers. Raises InputError as `prior_folders`."""
    return {levels: folder for levels, folder in prior_folders(run).items() if folder.model.is_file()}


def _without_prior(run: Path, config: Config) -> list[int]:
    """The levels that no prior covers, 0 the coarsest."""
    covered = {level for levels in trained_priors(run) for level in levels}
    return [level for level in range(len(config.model.num_symbols)) if level not in covered]


def has_priors(run: str | Path) -> bool:
    """Whether every level of a run has a prior. Reads no weights. Raises InputError where one has two."""
    path = locate(run)
    return not _without_prior(path.parent, config_of(storage.read_meta(path), path))


def load_priors(run: str | Path) -> Priors:
    """The priors that cover every level of a run.

    Raises:
        InputError: no such run, a level has no prior or two, one is stale, the levels know different classes, or a
            config.yaml describes another network; what to do is named.
        DamagedFileError: a file is damaged, or does not fit its configuration.
    """
    model_path = locate(run)
    _, meta, autoencoder = storage.read_with_digest(model_path)
    folders = trained_priors(model_path.parent)
    if not folders:
        raise InputError(f"{run} has no priors; train them: hrvqvae train-prior {run}")
    for level in _without_prior(model_path.parent, config_of(meta, model_path)):
        folders[range(level, level + 1)] = prior_folder(model_path.parent, level)
    priors, known = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
    for levels, folder in folders.items():
        path = folder.model
        weights, about = read_prior(path, autoencoder, run, levels)
        config = config_of(about, path)
        _check_agreement(lambda one: one.prior.network, config, about, path)
        own = range(about["level"], about["level"] + about.get("levels", 1))
        priors.append(_filled(build_prior(config, own, len(about["classes"])), weights, path))
        known.append((tuple(about["classes"]), tuple(about["class_counts"])))
        if known[-1][0] != known[0][0]:
            raise InputError(
                f"{path} was trained on other classes than level 1; delete {path.parent} and train it anew"
            )
    return Priors(tuple(priors), *known[0])
