"""What lies beside a model and was made for another state of it, as it is left where an autoencoder trains on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hrvqvae.codec.tables import read_tables
from hrvqvae.errors import DamagedFileError
from hrvqvae.runs import storage
from hrvqvae.runs.folder import RunFolder, prefix_folder


def outdated(run: Path) -> list[str]:
    """A line for its priors, its decoder of prefixes and its tables each, if they are, and the command that renews them.

    What is damaged is left to whoever reads it.

    Raises:
        InputError: there is no model in the folder, or it is damaged.
    """
    folder = RunFolder(run)
    weights, _, digest = storage.read_with_digest(folder.model)
    priors, prefixes = run / "priors", prefix_folder(run)

    def trained_for(path: Path) -> str:
        return str(storage.read_meta(path).get("autoencoder"))

    def made_for(path: Path) -> str:
        return read_tables(path.read_bytes(), str(path)).model

    own = storage.weights_digest(weights)
    told = {
        f"{priors} is of an earlier state of the model: delete it, and hrvqvae train-prior {run}": any(
            _is_of_another(path, trained_for, digest) for path in priors.glob("level*/model.safetensors")
        ),
        f"{prefixes.path} is of an earlier state of the model: hrvqvae train-prefixes {run}": _is_of_another(
            prefixes.model, trained_for, digest
        ),
        f"{folder.tables} is of an earlier state of the model: hrvqvae tables {run}": _is_of_another(
            folder.tables, made_for, own
        ),
    }
    return [line for line, holds in told.items() if holds]


def _is_of_another(path: Path, source: Callable[[Path], str], state: str) -> bool:
    """Whether there is a whole file, and its source is another state than that of this digest."""
    try:
        return path.is_file() and source(path) != state
    except DamagedFileError:
        return False
