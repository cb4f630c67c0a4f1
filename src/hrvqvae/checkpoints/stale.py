"""What lies beside an autoencoder and was made for another state of it.

Priors, progressive decoders and code maps record the digest of the autoencoder's file that they were made for, entropy
models that of its weights alone, since their files of codes outlive an export. What is stale is never used and never
deleted: using it is an error that names the command that renews it. Prefixes are then decoded by the decoder of all
levels, with a notice; code maps are extracted anew.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folders, progressive_folder
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.config import Levels
from hrvqvae.utils.errors import InputError


class StalePart(NamedTuple):
    """Something that was made for another state of the autoencoder beside it."""

    kind: Literal["prior", "progressive decoder", "entropy model"]
    path: Path  # a folder, or the file of an entropy model
    levels: Levels | None = None  # that a prior covers


def stale_parts(run: str | Path) -> list[StalePart]:
    """The stale parts of a run, also those whose training has begun and no more; none where there is no autoencoder.

    What can't be read is passed over: using it says so.
    """
    parts, unreadable = list[StalePart](), suppress(OSError, InputError)
    with unreadable:
        path = locate(run)
        weights, _, digest = storage.read_with_digest(path)
        folder, decoder = RunFolder(path.parent), progressive_folder(path.parent)
        for levels, prior in prior_folders(folder.path).items():
            with unreadable:
                if prior.is_stale(digest):
                    parts.append(StalePart("prior", prior.path, levels))
        with unreadable:
            if decoder.is_stale(digest):
                parts.append(StalePart("progressive decoder", decoder.path))
        with unreadable:
            if read_entropy_model(folder.tables.read_bytes()).model != storage.weights_digest(weights):
                parts.append(StalePart("entropy model", folder.tables))
    return parts


def renewal(run: str | Path) -> str:
    """The end of a line about something stale: how it is renewed."""
    return f"made for another state of the model; renew with: hrvqvae refresh {shlex.quote(str(run))}"


def require_current(part: Path, made_for: str, state: str, run: str | Path) -> None:
    """Raises InputError where a part of a run was made for another state of the autoencoder; both are digests."""
    if made_for != state:
        raise InputError(f"{part} was {renewal(run)}")


def stale_notice(run: str | Path) -> list[str]:
    """A line that names what is stale in a run and how it is renewed; no line where nothing is."""
    paths = [str(part.path.relative_to(locate(run).parent)) for part in stale_parts(run)]
    return [f"{', '.join(paths)}: {renewal(run)}"] if paths else []
