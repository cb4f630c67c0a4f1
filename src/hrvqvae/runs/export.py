"""What others need of a run, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrvqvae.config.parsing import from_dict
from hrvqvae.errors import InputError
from hrvqvae.runs import storage
from hrvqvae.runs.folder import RunFolder, prior_folder
from hrvqvae.runs.loading import read_prior
from hrvqvae.runs.locating import locate


def export(run: str | Path, out: Path) -> list[Path]:
    """Write what others need of a run, and nothing else: the model, and its priors in half precision; -> the files.

    Paths of the data are left out. Written whole or not at all.

    Raises:
        InputError: the run has no model, a prior is of another state of it, `out` exists or can't be written.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder")
    source = locate(run)
    weights, meta, digest = storage.read_with_digest(source)
    partial = out.with_name(f"{storage.TEMPORARY}{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        storage.write(RunFolder(partial).model, weights, {**meta, "config": _without_paths(meta["config"])})
        autoencoder = storage.digest(RunFolder(partial).model)
        for level in range(len(from_dict(meta["config"], str(source)).model.num_symbols)):
            path = prior_folder(source.parent, level).model
            if path.is_file():
                weights, about = read_prior(path, digest, run, level)
                half = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
                prior_folder(partial, level).path.mkdir(parents=True)
                about |= {"config": _without_paths(about["config"]), "autoencoder": autoencoder}
                storage.write(prior_folder(partial, level).model, half, about)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "data": {**config["data"], "root": None}}
