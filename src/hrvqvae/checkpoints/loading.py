"""Models, priors and progressive decoders: written with their configuration, and loaded on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folders, progressive_folder
from hrvqvae.checkpoints.stale import renewal, require_current
from hrvqvae.config import Config, Levels, SingleGridConfig, to_dict
from hrvqvae.config.parsing import from_dict, from_file
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build, build_progressive_decoder, several_levels
from hrvqvae.priors.base import Priors, build_prior
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.progress import told_once

_Network = TypeVar("_Network", bound=nn.Module)
_META = {
    "prior": {"config", "autoencoder", "step", "level", "classes", "class_counts", "bits_per_code"},
    "prefixes": {"config", "autoencoder", "step"},
}


def save_model(
    path: Path, config: Config, weights: Mapping[str, Tensor], step: int, kind: str = "autoencoder", **about: Any
) -> None:
    """Write weights with their configuration and what else is to be known of them. Raises OSError.

    Of a prior or a progressive decoder (prefixes), `about` has what `_META` names.
    """
    storage.write(path, weights, {"kind": kind, "config": to_dict(config), "step": step, **about})


def config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """The configuration inside a weights file. Raises DamagedFileError where it holds none."""
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    return from_dict(meta["config"], str(path))


def described_config(run: str | Path) -> Config:
    """The configuration of a trained run: its config.yaml, or else that inside its weights. Raises as `locate`."""
    path = locate(run)
    folder = RunFolder(path.parent)
    described = path == folder.model and folder.config.is_file()
    return folder.read_config() if described else config_of(storage.read_meta(path), path)


def _check_agreement(part: Callable[[Config], Any], config: Config, path: Path) -> None:
    """Raises InputError where a configuration beside the weights differs from theirs in that part."""
    folder = RunFolder(path.parent)
    for file in (folder.config, folder.config_json):
        if path == folder.model and file.is_file() and part(from_file(file)) != part(config):
            raise InputError(
                f"{file} describes another model than {path.name} was trained as: put back what was changed there, or "
                "train anew in another folder"
            )


def _with_beam(config: Config, width: int) -> Config:
    model = config.model
    if not isinstance(model, SingleGridConfig) or model.quantizer.group_size == 1:
        raise InputError(f"{model.system} has no linked codebooks, which a beam searches")
    return replace(config, model=replace(model, quantizer=replace(model.quantizer, beam=width)))


def _filled(network: _Network, weights: Mapping[str, Tensor], path: Path) -> _Network:
    """The network with weights from a file, in evaluation mode."""
    try:
        network.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return network.eval()


@torch.inference_mode(False)  # a rate-distortion search takes gradients through the weights
def load_with_digest(
    run: str | Path, device: str = "cpu", beam: int | None = None, progressive: bool = True
) -> tuple[Autoencoder, Config, str]:
    """The model of a run in evaluation mode, its configuration, and the digest of its file.

    Args:
        beam: paths that its search keeps at each level; None keeps as many as in training.
        progressive: decode prefixes by the progressive decoder beside it, unless it is stale.

    Raises:
        InputError: no run, a config.yaml of another model, no linked codebooks for a beam, or no such device.
        DamagedFileError: the weights, or those of the progressive decoder, are damaged or do not fit.
    """
    path = locate(run)
    weights, meta, digest = storage.read_with_digest(path)
    config = config_of(meta, path)
    _check_agreement(lambda one: one.model, config, path)
    if beam is not None:
        config = _with_beam(config, beam)
    model = _filled(build(config), weights, path)
    decoder = progressive_folder(path.parent)
    if progressive and path == RunFolder(path.parent).model and decoder.model.is_file():
        if decoder.is_stale(digest):
            told_once(f"prefixes are decoded by the decoder of all levels: {decoder.path} was {renewal(run)}")
        else:
            weights, about = read_part(decoder.model, "prefixes", digest, run)
            config = replace(config, progressive=config_of(about, decoder.model).progressive)
            whole = several_levels(model, config)
            whole.use_progressive_decoder(_filled(build_progressive_decoder(whole, config), weights, decoder.model))
    return model.to(resolve_device(device)), config, digest


def load_with_config(run: str | Path, device: str = "cpu", beam: int | None = None) -> tuple[Autoencoder, Config]:
    """The first two of `load_with_digest`. Raises as it does."""
    return load_with_digest(run, device, beam)[:2]


def read_part(
    path: Path, kind: Literal["prior", "prefixes"], autoencoder: str, run: str | Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of a prior or a progressive decoder (prefixes) of a run's autoencoder, which has that digest.

    Raises:
        InputError: there is none, or it is stale.
        DamagedFileError: it is damaged, or of another kind.
    """
    weights, about = storage.read(path)
    if about.get("kind") != kind or not _META[kind] <= about.keys():
        raise DamagedFileError(f"{path} is no file of the kind {kind}")
    require_current(path, about["autoencoder"], autoencoder, run)
    return weights, about


def trained_priors(run: Path) -> dict[Levels, RunFolder]:
    """Folders of the trained priors of a run, by the levels that each covers. Raises InputError as `prior_folders`."""
    return {levels: folder for levels, folder in prior_folders(run).items() if folder.model.is_file()}


def lacking_priors(run: str | Path) -> str:
    """What is to be done before a run has priors; "" where every level has one. Reads no weights.

    Raises:
        InputError: a level has two.
    """
    path = locate(run)
    folders, levels = trained_priors(path.parent), len(config_of(storage.read_meta(path), path).model.num_symbols)
    missing = sorted(set(range(levels)) - {level for covered in folders for level in covered})
    if missing:
        alone = f" --level {missing[0] + 1}" if folders else ""
        return f"train them: hrvqvae train-prior {run}{alone}"
    return ""


def load_priors(run: str | Path) -> Priors:
    """The priors that cover every level of a run.

    Raises:
        InputError: no such run, a level has no prior or two, one is stale, the levels have different classes, or a
            config.yaml describes another network.
        DamagedFileError: a file is damaged, or does not fit its configuration.
    """
    if lacking := lacking_priors(run):
        raise InputError(f"{run} lacks priors; {lacking}")
    model = locate(run)
    autoencoder = storage.digest(model)
    priors, known = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
    for path in (folder.model for folder in trained_priors(model.parent).values()):
        weights, about = read_part(path, "prior", autoencoder, run)
        config = config_of(about, path)
        _check_agreement(lambda one: one.prior.network, config, path)
        levels = range(about["level"], about["level"] + about.get("levels", 1))
        priors.append(_filled(build_prior(config, levels, len(about["classes"])), weights, path))
        known.append((tuple(about["classes"]), tuple(about["class_counts"])))
        if known[-1][0] != known[0][0]:
            raise InputError(f"{path} was trained on other classes than level 1; delete {path.parent}, train it anew")
    return Priors(tuple(priors), *known[0])
