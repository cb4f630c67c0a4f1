"""List the run folders below a folder, for `hrvqvae runs`."""

import os
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folders
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import level_names
from hrvqvae.config.parsing import from_dict
from hrvqvae.training.loggers import read_records
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import is_locked


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return a row per run in a folder or below it, sorted by path. Raises InputError if there is
    no such folder.

    A row has run (the path), system, preset, step, budget, mse (of the last evaluation on test
    images), priors and stale (lists), in_use (another process trains there) and fault (why the run
    can't be read, or "").
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    rows = []
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        folders.sort(key=lambda name: Path(path, name).is_symlink())
        place = Path(path).resolve()
        if place in seen:  # a link leads to it, too
            folders.clear()
            continue
        seen.add(place)
        if "model.safetensors" in files or {"config.yaml", "checkpoints"} <= {*files, *folders}:
            folders.clear()
            rows.append(_describe(RunFolder(Path(path))))
    return sorted(rows, key=lambda row: Path(row["run"]))


def _describe(run: RunFolder) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(run.path)}
    row |= dict.fromkeys(("system", "preset", "step", "budget", "mse"))
    row |= {"priors": [], "stale": [], "in_use": is_locked(run.path), "fault": ""}
    try:
        meta = storage.read_meta(run.model) if run.model.is_file() else {"step": 0}
        config = (
            run.read_config() if run.config.is_file() else from_dict(meta["config"], str(run.model))
        )
        training = config.training
        limits = {"steps": training.max_steps, "epochs": training.epochs}
        budget = [f"{limit:,} {unit}" for unit, limit in limits.items() if limit]
        budget += [f"{training.max_minutes:g} minutes"] if training.max_minutes else []
        steps = [meta.get("step") or 0, *(int(path.stem[5:]) for path in run.saved())]
        errors = [float(record["mse"]) for record in read_records(run.metrics) if "mse" in record]
        folders = prior_folders(run.path).items()
        row |= {
            "system": config.model.system,
            "preset": config.name,
            "step": max(steps),
            "budget": ", ".join(budget),
            "mse": errors[-1] if errors else None,
            "priors": [level_names(levels) for levels, folder in folders if folder.model.is_file()],
        }
        if run.model.is_file():
            row["stale"] = [str(part) for part in Run(run.path).stale_artifacts()]
    except (OSError, InputError, KeyError, ValueError, TypeError) as error:
        row["fault"] = str(error)
    return row
