"""The progressive decoder on disk: RUN/prefixes, a run folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, progressive_folder
from hrvqvae.checkpoints.stale import renewal
from hrvqvae.config import Config, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build_progressive_decoder, several_levels
from hrvqvae.utils.errors import DamagedFileError
from hrvqvae.utils.notices import told_once


def save_progressive_decoder(
    path: Path, config: Config, weights: Mapping[str, Tensor], *, step: int, autoencoder: str
) -> None:
    """Write a progressive decoder with the digest of the autoencoder that it was trained for. Raises OSError."""
    meta = {"kind": "prefixes", "config": to_dict(config), "step": step, "autoencoder": autoencoder}
    storage.write(path, weights, meta)


def read_progressive_decoder(
    folder: Path, autoencoder: str, run: str | Path
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(weights, meta) of the progressive decoder in the folder of an autoencoder's weights; None where there is none.

    One that was trained for another state of the autoencoder, as it is left where an autoencoder trains on, counts for
    none, and a line on standard error says so.

    Args:
        autoencoder: digest of its weights.
        run: how a person named it.

    Raises:
        DamagedFileError: what lies there is damaged, or no progressive decoder.
    """
    path = progressive_folder(folder).model
    if not path.is_file():
        return None
    weights, about = storage.read(path)
    if about.get("kind") != "prefixes":
        raise DamagedFileError(f"{path} is no progressive decoder")
    if about["autoencoder"] != autoencoder:
        told_once(f"the decoder of all levels decodes prefixes: {path.parent} was {renewal(run)}")
        return None
    return weights, about


def with_progressive_decoder(
    model: Autoencoder, config: Config, source: Path, autoencoder: str, run: str | Path
) -> Config:
    """Let a model, on the CPU, decode prefixes by the decoder for them in the folder of its weights, if there is one.

    Args:
        config: of the model.
        source: the file of its weights.
        autoencoder: their digest.
        run: how a person named it.

    Returns:
        The configuration, with the part that describes it.

    Raises:
        DamagedFileError: it is damaged, or does not fit its configuration.
    """
    path = progressive_folder(source.parent).model
    beside = source == RunFolder(source.parent).model
    found = read_progressive_decoder(source.parent, autoencoder, run) if beside else None
    if found is None:
        return config
    weights, about = found
    config = dataclasses.replace(config, progressive=from_dict(about["config"], str(path)).progressive)
    whole = several_levels(model, config)
    decoder = build_progressive_decoder(whole, config)
    try:
        decoder.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    whole.use_progressive_decoder(decoder.eval())
    return config
