"""From what a person types to a configuration: a preset or file, overrides, and the run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hrvqvae import presets
from hrvqvae.checkpoint import RunFolder
from hrvqvae.config import Config, flatten, to_dict
from hrvqvae.configfile import from_file, override
from hrvqvae.errors import InputError

# What a resumed run may change: how long, where and how often, never what it computes.
RESUMABLE = frozenset(
    {
        "training.epochs", "training.max_steps", "training.max_minutes", "training.device", "training.threads",
        "training.log_every", "training.evaluate_every", "training.checkpoint_every", "training.evaluation_images",
        "data.root", "data.workers",
    }
)  # fmt: skip


def base_config(name: str) -> Config:
    """The configuration of a preset, or of a YAML or JSON file. Raises InputError where it is neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return from_file(path)
    return presets.get(name).config


def resolve(name: str, given: Mapping[str, str], run: RunFolder, *, resume: bool) -> Config:
    """The configuration of a run that starts, or of the one in the run folder that goes on.

    Raises:
        InputError: unknown preset, bad value, or a resumed run that would no longer be the same run.
    """
    base = base_config(name)
    if not (resume and run.begun()):
        return override(base, given)
    stored = run.read_config()
    if stored.name != base.name:
        raise InputError(f"{run.path} holds a run of {stored.name}, not of {base.name}")
    config = override(stored, given)
    before, after = dict(flatten(to_dict(stored))), dict(flatten(to_dict(config)))
    changed = [key for key in after if after[key] != before[key] and key not in RESUMABLE]
    if changed:
        key = changed[0]
        raise InputError(
            f"--resume continues the same run: --{key} is {before[key]} there, {after[key]} here; "
            "leave it out, or train anew with another --out"
        )
    return config
