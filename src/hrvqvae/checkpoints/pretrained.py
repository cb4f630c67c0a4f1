"""Autoencoders and trained models by the conventions of the hub: from_pretrained, save_pretrained, push_to_hub.

A folder of a checkpoint:

config.json         the configuration
model.safetensors   the weights, with the same configuration inside
README.md           the model card
prefixes/           a folder for the progressive decoder, where it has one
priors/level-1/     a folder for each level's prior, where there are priors
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints import hub
from hrvqvae.checkpoints.card import card_of
from hrvqvae.checkpoints.export import config_bytes, export
from hrvqvae.checkpoints.folder import RunFolder, progressive_folder
from hrvqvae.checkpoints.loading import load_with_config, save_model
from hrvqvae.checkpoints.progressive import save_progressive_decoder
from hrvqvae.checkpoints.storage import digest
from hrvqvae.config import Config, DataConfig
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic


def load_autoencoder(kind: type[Autoencoder], name: str | Path, beam: int | None = None, **options: Any) -> Autoencoder:
    """The autoencoder of a folder, of a name inside the package, or of the hub, in evaluation mode.

    Args:
        kind: the class that it must be of.
        beam: as for `Autoencoder.from_pretrained`.
        options: as `hub.fetch` takes them.

    Raises:
        InputError: there is none such, it is of another class, or it has no linked codebooks for a beam.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    model, config = load_with_config(hub.found_or_fetched(name, **options), beam=beam)
    if not isinstance(model, kind):
        raise InputError(f"{name} is a {type(model).__name__}; {kind.__name__} can't be made of it")
    model.run_config = config
    return model


def save_autoencoder(
    model: Autoencoder, folder: str | Path, config: Config | None = None, *, name: str | None = None
) -> None:
    """Write an autoencoder without priors; what of it lies in the folder is replaced, a model card is kept.

    Args:
        folder: made if it does not exist.
        config: of the run; None takes what the model was loaded with, or the defaults for its system.
        name: of the model, for its card; None is the name of the folder.

    Raises:
        InputError: the folder is a run folder, or can't be written.
    """
    target = RunFolder(Path(folder))
    if target.config.is_file():
        raise InputError(f"{folder} is a run folder; choose another one")
    if config is None:
        config = getattr(model, "run_config", None)
    if config is None:
        config = Config(data=DataConfig(channels=model.channels), model=model.config)  # type: ignore[arg-type]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        save_model(target.model, config, model.state_dict(), 0)
        _save_prefix_decoder(model, target, config)
        write_atomic(target.config_json, config_bytes(config))
        if not target.card.is_file():
            write_atomic(target.card, card_of(config, name=name or target.path.name).encode())
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror or error})") from error


def _save_prefix_decoder(model: Autoencoder, target: RunFolder, config: Config) -> None:
    """Write the progressive decoder of a model whose weights are in the folder, or clear that of another one."""
    decoder, path = getattr(model, "progressive_decoder", None), progressive_folder(target.path).model
    if decoder is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    save_progressive_decoder(path, config, decoder.state_dict(), step=0, autoencoder=digest(target.model))


def push_autoencoder(model: Autoencoder, name: str, config: Config | None = None, **options: Any) -> str:
    """Put an autoencoder without priors on the hub; -> where it is.

    Args:
        name: user/name.
        options: as `hub.push` takes them.

    Raises:
        InputError: as `hub.push`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_autoencoder(model, Path(folder) / name.rpartition("/")[2], config, name=name)
        return hub.push(Path(folder) / name.rpartition("/")[2], name, **options)


def push_run(run: str | Path, name: str, *, licence: str | None = None, **options: Any) -> str:
    """Put what `export` writes of a run on the hub, priors included; -> where it is.

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
