"""What lies beside a model and was made for another state of it, as it is left where an autoencoder trains on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folders, progressive_folder
from hrvqvae.checkpoints.loading import renewal
from hrvqvae.compression.tables import read_tables
from hrvqvae.utils.errors import InputError

_UNREADABLE = (OSError, InputError)
_TOLD = "is of an earlier state of the model"


def outdated(run: Path) -> list[str]:
    """A line for each prior, the progressive decoder and the tables, where they are, and the command that renews it.

    What can't be read is left to whoever needs it. Nothing is raised, since the training itself has ended well.
    """
    folder, prefixes, lines = RunFolder(run), progressive_folder(run), list[str]()
    with suppress(*_UNREADABLE):
        weights, _, digest = storage.read_with_digest(folder.model)
        with suppress(*_UNREADABLE):
            if prefixes.is_stale(digest):
                lines.append(f"{prefixes.path} {_TOLD}: hrvqvae train-progressive {run}")
        with suppress(*_UNREADABLE):
            if read_tables(folder.tables.read_bytes(), str(folder.tables)).model != storage.weights_digest(weights):
                lines.append(f"{folder.tables} {_TOLD}: hrvqvae tables {run}")
        for levels, prior in prior_folders(run).items():
            with suppress(*_UNREADABLE):
                if prior.is_stale(digest):
                    lines.append(f"{prior.path} {_TOLD}: {renewal(run, levels, prior.path, prior.read_config())}")
    return lines
