"""What lies beside an autoencoder and was made for another state of it.

Whatever is made for an autoencoder records for which state: priors, progressive decoders and code maps by the checksum
of its file, entropy models by the digest of its weights alone, since their files of codes outlive an export. There is
one rule: what is stale is never used, and never deleted by itself. Using it is an error that names the command that
renews it; only prefixes are then decoded by the decoder of all levels, and a notice says so. Code maps are a cache, and
are extracted anew.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folders, progressive_folder
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.config import Levels
from hrvqvae.utils.errors import InputError

Kind = Literal["prior", "progressive decoder", "entropy model"]


@dataclass(frozen=True)
class StalePart:
    """Something that was made for another state of the autoencoder beside it."""

    kind: Kind
    path: Path  # of its folder, or of the file of an entropy model
    levels: Levels | None = None  # that a prior covers


def stale_parts(run: str | Path) -> list[StalePart]:
    """What lies in a run folder and was made, or has begun to be trained, for another state of its autoencoder.

    What can't be read is left to whoever uses it. Nothing is stale where there is no autoencoder.
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
            entropy_model = read_entropy_model(folder.tables.read_bytes(), str(folder.tables))
            if entropy_model.model != storage.weights_digest(weights):
                parts.append(StalePart("entropy model", folder.tables))
    return parts


def renewal(run: str | Path) -> str:
    """The end of a line about what is stale: how it is renewed."""
    return f"made for another state of the model; renew with: hrvqvae refresh {shlex.quote(str(run))}"


def require_current(part: Path, made_for: str, state: str, run: str | Path) -> None:
    """Raises InputError where a part of a run records another digest than that of the state of the autoencoder."""
    if made_for != state:
        raise InputError(f"{part} was {renewal(run)}")


def stale_notice(run: str | Path) -> list[str]:
    """A line that names what is stale in a run folder and how it is renewed; none where nothing is."""
    paths = [str(part.path.relative_to(locate(run).parent)) for part in stale_parts(run)]
    return [f"{', '.join(paths)}: {renewal(run)}"] if paths else []
