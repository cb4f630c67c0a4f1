"""The entropy model of a run, RUN/tables.hrvt. It belongs to the weights alone, and stays when a run is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.codemaps import CodeMaps, extract, moved_copies, stored_or_extracted
from hrvqvae.checkpoints.folder import RunFolder, locate
from hrvqvae.checkpoints.loading import load_with_digest
from hrvqvae.checkpoints.stale import require_current
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.learning import fit
from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import DamagedFileError, explain_write_errors
from hrvqvae.utils.outputs import write_atomic


def _without_networks(name: str, model: Autoencoder, config: Config) -> EntropyModel:
    weights = storage.weights_digest(model.state_dict())
    return EntropyModel(name, weights, config.model.geometry, config.model.num_symbols)


def load_entropy_model(run: str | Path, model: Autoencoder, config: Config) -> EntropyModel:
    """The entropy model of a run; one without networks where none was fitted. Raises InputError: stale or damaged."""
    bare = _without_networks(str(run), model, config)
    path = RunFolder(locate(run).parent).tables
    if not path.is_file():
        return bare
    found = read_entropy_model(path.read_bytes(), str(path))
    require_current(path, found.model, bare.model, run)
    if (found.geometry, found.symbols) != (bare.geometry, bare.symbols):
        raise DamagedFileError(f"{path} is damaged: it has other grids or symbols than the model beside it")
    return found


def fit_entropy_model(
    run: str | Path, root: str | None = None, effort: float = 1.0, shifts: int = 0, device: torch.device | None = None,
    say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Fit the entropy model of a run to the codes of its training split, and write it beside its weights; -> its file.

    Where the model was trained on mirror images too, it is fitted to the codes of these as well.

    One of these weights is kept, since what was compressed by it can be read by no other.

    Args:
        root: where the data is, if it has moved since training.
        effort: how long to learn; 1 is usual.
        shifts: so many copies of the images, each shifted by some pixels, are learned from as well.
        say: gets the bits a code of each level that held-out images take.

    Raises:
        InputError: the run or its data is missing, or the file can't be written.
    """
    model, config, digest = load_with_digest(run)
    config = config.with_root(root)
    folder, bare = RunFolder(locate(run).parent), _without_networks(config.name, model, config)
    path = folder.tables
    if path.is_file() and read_entropy_model(path.read_bytes(), str(path)).model == bare.model:
        say(f"{path} is of these weights already; without it, files that were made by it can't be read")
        return path
    maps = list[CodeMaps]()
    for name, move in moved_copies(config.data.flip, shifts):
        if folder.config.is_file():
            of = (model, digest, config, "train", device, say)
            maps.append(stored_or_extracted(folder.codes.with_name(name), *of, move))
        else:
            maps.append(extract(model, config, "train", device, move=move))
    levels = [np.concatenate(copies) for copies in zip(*(one.levels for one in maps), strict=True)]
    with explain_write_errors(path):
        write_atomic(path, fit(bare, levels, effort, say, len(maps)).content)
    return path
