"""What others need of a run, or of an autoencoder alone, as a folder and on the hub.

DIR/config.json         the configuration, without paths of this machine
    model.safetensors   the weights, with the same configuration inside
    README.md           the model card
    tables.hrvt, prefixes/, priors/level-1/ ...   the entropy model, the progressive decoder and the priors
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hrvqvae.checkpoints import hub, storage
from hrvqvae.checkpoints.card import card_of, kept_card, last_figures
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folder, progressive_folder, shipped
from hrvqvae.checkpoints.loading import (
    config_of,
    load_with_config,
    read_prior,
    read_progressive_decoder,
    save_model,
    save_progressive_decoder,
    trained_priors,
)  # fmt: skip
from hrvqvae.checkpoints.stale import stale_notice, stale_parts
from hrvqvae.config import Config, DataConfig, Levels, StageConfig, to_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic, writing_folder
from hrvqvae.utils.progress import told_once

_Stage = TypeVar("_Stage", bound=StageConfig)


def export(run: str | Path, out: Path, *, name: str | None = None, licence: str | None = None) -> list[Path]:
    """Write what others need of a run, and nothing else; -> the files. Written whole or not at all.

    Priors are written in half precision. What is stale is left out, and a line on standard error says so. The model
    card is the one in the run's folder, or else one is written from the configuration and the run's last evaluation.

    Args:
        name: of the model, for its card; None is the name of `out`.
        licence: of the model, for its card.

    Raises:
        InputError: the run has no model, `out` exists or can't be written.
        DamagedFileError: a file of the run is damaged.
    """
    source = locate(run)
    weights, meta, digest = storage.read_with_digest(source)
    config, beside = without_paths(config_of(meta, source)), RunFolder(source.parent)
    stale = {part.path for part in stale_parts(run)}
    for line in stale_notice(run):
        told_once(f"left out of {out}: {line}")
    networks, bits, prefix_step = dict[Levels, str](), list[float](), None
    with writing_folder(out) as folder:
        target = RunFolder(folder)
        storage.write(target.model, weights, {**meta, "config": to_dict(config)})
        autoencoder = storage.digest(target.model)
        for levels, prior in trained_priors(beside.path).items():
            if prior.path not in stale:
                weights, about = read_prior(prior.model, digest, run, levels)
                half = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
                networks[levels] = _write_part(prior_folder(folder, *levels), half, about, autoencoder)
                bits += about.get("level_bits_per_code", [about["bits_per_code"]])
        decoder = progressive_folder(beside.path)
        if decoder.model.is_file() and decoder.path not in stale:
            weights, about = read_progressive_decoder(decoder.model, digest, run)
            _write_part(progressive_folder(folder), weights, about, autoencoder)
            prefix_step = about["step"]
        if beside.tables.is_file() and beside.tables not in stale:
            write_atomic(target.tables, beside.tables.read_bytes())
        card = kept_card(beside.path, config, licence) or card_of(
            config, name=name or out.name, step=meta.get("step"), bits_per_code=bits, networks=networks,
            figures=last_figures(beside), licence=licence, prefix_step=prefix_step,
        )  # fmt: skip
        write_atomic(target.card, card.encode())
        _write_config(target, config)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _write_part(target: RunFolder, weights: Mapping[str, Tensor], about: dict[str, Any], autoencoder: str) -> str:
    """Write a prior or a progressive decoder for the autoencoder of that digest; -> the kind of a prior's network."""
    config = without_paths(config_of(about, target.model))
    target.path.mkdir(parents=True)
    storage.write(target.model, weights, {**about, "config": to_dict(config), "autoencoder": autoencoder})
    return config.prior.network.kind


def without_paths(config: Config) -> Config:
    """A configuration without where data, codes and first weights lie on this machine."""

    def begun(training: _Stage) -> _Stage:
        return training if training.init_from in shipped() else replace(training, init_from="")

    prior = replace(config.prior, codes=None, training=begun(config.prior.training))
    progressive = replace(config.progressive, training=begun(config.progressive.training))
    data, training = replace(config.data, root=None), begun(config.training)
    return replace(config, data=data, training=training, prior=prior, progressive=progressive)


def _write_config(target: RunFolder, config: Config) -> None:
    write_atomic(target.config_json, f"{json.dumps(to_dict(config), indent=2)}\n".encode())


def load_autoencoder(kind: type[Autoencoder], name: str | Path, beam: int | None = None, **options: Any) -> Autoencoder:
    """As `Autoencoder.from_pretrained`.

    Args:
        kind: the class that it must be of.
    """
    model, config = load_with_config(hub.found_or_fetched(name, **options), beam=beam)
    if not isinstance(model, kind):
        raise InputError(f"{name} is a {type(model).__name__}; {kind.__name__} can't be made of it")
    model.run_config = config
    return model


def save_autoencoder(
    model: Autoencoder, folder: str | Path, config: Config | None = None, *, name: str | None = None
) -> None:
    """As `Autoencoder.save_pretrained`; what of it lies in the folder is replaced, a model card is kept.

    Args:
        name: of the model, for its card; None is the name of the folder.
    """
    target = RunFolder(Path(folder))
    if target.config.is_file():
        raise InputError(f"{folder} is a run folder; choose another one")
    config = config or model.run_config
    if config is None:
        config = Config(data=DataConfig(channels=model.channels), model=model.config)
    config = without_paths(config)
    decoder, prefixes = getattr(model, "progressive_decoder", None), progressive_folder(target.path)
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        save_model(target.model, config, model.state_dict(), 0)
        if decoder is None:
            prefixes.model.unlink(missing_ok=True)
        else:
            prefixes.path.mkdir(exist_ok=True)
            digest = storage.digest(target.model)
            save_progressive_decoder(prefixes.model, config, decoder.state_dict(), step=0, autoencoder=digest)
        _write_config(target, config)
        if not target.card.is_file():
            write_atomic(target.card, card_of(config, name=name or target.path.name).encode())
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror or error})") from error


def push_autoencoder(model: Autoencoder, name: str, config: Config | None = None, **options: Any) -> str:
    """As `Autoencoder.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        save_autoencoder(model, folder, config, name=name)
        return hub.push(Path(folder), name, **options)


def push_run(run: str | Path, name: str, *, licence: str | None = None, **options: Any) -> str:
    """Put what `export` writes of a run on the hub; -> where it is.

    Args:
        name: user/name.
        licence: as the hub names licences: mit, cc-by-4.0, ...
        options: as `hub.push` takes them.

    Raises:
        InputError: as `export` and `hub.push`.
    """
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder) / "model", name=name, licence=licence)
        return hub.push(Path(folder) / "model", name, **options)
