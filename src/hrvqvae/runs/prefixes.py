"""The decoder of a run's prefixes on disk: RUN/prefixes, a run folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hrvqvae.config import Config, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.runs import storage
from hrvqvae.runs.folder import RunFolder, prefix_folder
from hrvqvae.systems.base import Autoencoder
from hrvqvae.systems.build import build_prefix_decoder, several_levels


def save_prefix_decoder(
    path: Path, config: Config, weights: Mapping[str, Tensor], *, step: int, autoencoder: str
) -> None:
    """Write a decoder of prefixes with the digest of the autoencoder that it was trained for. Raises OSError."""
    meta = {"kind": "prefixes", "config": to_dict(config), "step": step, "autoencoder": autoencoder}
    storage.write(path, weights, meta)


def read_prefix_decoder(path: Path, autoencoder: str, run: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of a decoder of prefixes.

    Raises:
        InputError: it is of another state of the autoencoder than the one with that digest; what to do is named.
        DamagedFileError: it is damaged, or none.
    """
    weights, about = storage.read(path)
    if about.get("kind") != "prefixes":
        raise DamagedFileError(f"{path} is no decoder of prefixes")
    if about["autoencoder"] != autoencoder:
        raise InputError(
            f"{path} was trained for another state of the autoencoder; delete {path.parent}, and if you want one, "
            f"train it anew: hrvqvae train-prefixes {run}"
        )
    return weights, about


def with_prefix_decoder(model: Autoencoder, config: Config, source: Path, autoencoder: str, run: str | Path) -> Config:
    """Let a model, on the CPU, decode prefixes by the decoder that lies for them in the folder of its weights, if any.

    Args:
        config: of the model.
        source: the file of its weights.
        autoencoder: their digest.
        run: how a person named it.

    Returns:
        The configuration, with the part that describes it.

    Raises:
        InputError: it is of another state of the autoencoder.
        DamagedFileError: it is damaged, or does not fit its configuration.
    """
    path = prefix_folder(source.parent).model
    if source != RunFolder(source.parent).model or not path.is_file():
        return config
    weights, about = read_prefix_decoder(path, autoencoder, run)
    config = dataclasses.replace(config, prefixes=from_dict(about["config"], str(path)).prefixes)
    whole = several_levels(model, config)
    decoder = build_prefix_decoder(whole, config)
    try:
        decoder.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    whole.decode_prefixes_by(decoder.eval())
    return config
