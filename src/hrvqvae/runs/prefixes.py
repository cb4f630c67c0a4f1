"""The decoder of a run's prefixes on disk: RUN/prefixes, a run folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hrvqvae.config import Config, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.errors import DamagedFileError
from hrvqvae.notices import told_once
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


def read_prefix_decoder(
    folder: Path, autoencoder: str, run: str | Path
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(weights, meta) of the decoder of prefixes in the folder of an autoencoder's weights; None where there is none.

    One that was trained for another state of the autoencoder, as it is left where an autoencoder trains on, counts for
    none, and a line on standard error says so.

    Args:
        autoencoder: digest of its weights.
        run: how a person named it.

    Raises:
        DamagedFileError: what lies there is damaged, or no decoder of prefixes.
    """
    path = prefix_folder(folder).model
    if not path.is_file():
        return None
    weights, about = storage.read(path)
    if about.get("kind") != "prefixes":
        raise DamagedFileError(f"{path} is no decoder of prefixes")
    if about["autoencoder"] != autoencoder:
        told_once(
            f"{path.parent} is left out: it was trained for another state of the model; until there is another "
            f"(hrvqvae train-prefixes {run}) the decoder of all levels decodes prefixes"
        )
        return None
    return weights, about


def with_prefix_decoder(model: Autoencoder, config: Config, source: Path, autoencoder: str, run: str | Path) -> Config:
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
    path = prefix_folder(source.parent).model
    beside = source == RunFolder(source.parent).model
    found = read_prefix_decoder(source.parent, autoencoder, run) if beside else None
    if found is None:
        return config
    weights, about = found
    config = dataclasses.replace(config, prefixes=from_dict(about["config"], str(path)).prefixes)
    whole = several_levels(model, config)
    decoder = build_prefix_decoder(whole, config)
    try:
        decoder.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    whole.decode_prefixes_by(decoder.eval())
    return config
