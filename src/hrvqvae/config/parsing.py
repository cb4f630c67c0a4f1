"""Build a configuration from a preset or a file, a stored run and options; the later win.

The values of a file replace the defaults of its system and network of priors. A new run takes its
values from a preset or a file, a resumed run from its stored configuration. An error message names
the field, its value and valid values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS, PRIORS
from hrvqvae.config.schema import (
    BUDGET,
    DEFAULT_PRIOR,
    DEFAULT_SYSTEM,
    STAGES,
    Config,
    decide_auto,
    default_config,
)
from hrvqvae.config.section import AUTO, flatten, to_leaves
from hrvqvae.utils.errors import InputError, one_line

OWN_IMAGES = "mine"  # `data.dataset` of images that are not the published set of the preset
# Where a run computes, and how often it logs, evaluates and saves: fields that do not change its
# result.
RESULT_FREE = ("device", "threads", "log_every", "evaluate_every", "checkpoint_every", "loggers")
# Where and how a run reads its data: fields that may change when the run is resumed.
_READING = {f"data.{name}" for name in ("root", "workers", "on_error", "max_pixels", "memory_mb")}


def from_dict(tree: Any, where: str) -> Config:
    """Return a configuration from nested plain values; missing fields take their defaults.

    Raises InputError, which begins with `where`, if a field is unknown or a value has the wrong
    type or range.
    """
    try:
        if not isinstance(tree, Mapping):
            raise InputError("a configuration is a mapping with data, model and training")
        values = dict(flatten(tree))
        system = str(values.get("model.system", DEFAULT_SYSTEM))
        kind = str(values.get("prior.network.kind", DEFAULT_PRIOR))
        return override(default_config(system, kind), values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def from_file(path: Path) -> Config:
    """Read a configuration from a YAML or JSON file. Raises InputError as `from_dict`, or if it
    can't be read.
    """
    try:
        tree = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file; hrvqvae presets lists the presets"
        ) from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({one_line(error)})") from error
    return from_dict(tree, str(path))


def override(base: Config, values: Mapping[str, Any]) -> Config:
    """Return `base` with new values, plain or as text, by dotted name. Raises InputError as
    `Section.replace`.

    A new `prior.network.kind` replaces the whole section by the defaults of that network. A value
    for one field of a budget sets the other fields of the budget to 0.
    """
    system = base.model.system
    kind = str(values.get("prior.network.kind", base.prior.network.kind))
    if values.get("model.system", system) != system:
        raise InputError(
            f"--model.system can't change from {system}: give a preset of that system (hrvqvae"
            " presets)"
        )
    if kind != base.prior.network.kind:
        base = base.replace(**{"prior.network": PRIORS.get(kind).config()})
    config = base.replace(**values)
    after = to_leaves(config)
    for stage in STAGES:
        names = [f"{stage}.{name}" for name in BUDGET]
        budget = {name: after[name] if name in values else 0 for name in names}
        if any(budget.values()):
            config = config.replace(**budget)
    return config


def base_config(name: str) -> Config:
    """Return the configuration of a preset, a YAML or JSON file, or a run folder. Raises InputError
    for any other.
    """
    path = Path(name, "config.yaml") if Path(name, "config.yaml").is_file() else Path(name)
    if path.is_dir() and name not in presets.names():
        raise InputError(
            f"{name} is a folder, not a preset; give a preset, and a folder of images as --data"
            f" {name}"
        )
    return (
        from_file(path) if path.suffix in (".yaml", ".yml", ".json") else presets.get(name).config
    )


def autoencoder_config(
    name: str, options: Mapping[str, str], stored: Config | None = None
) -> Config:
    """Return the configuration of a new run from a preset or file with options, or of the `stored`
    run that resumes.

    Raises InputError if a value is invalid, or preset, file or options contradict `stored`.
    """
    base = base_config(name)
    if stored is None:
        config = override(base, options)
        config = config if "data.dataset" in options else name_own_images(config)
        return decide_auto(config, "model", "training")
    if stored.name != base.name:
        raise InputError(f"the folder holds a run of {stored.name}, not of {base.name}")
    file = dict[str, Any]()
    if Path(name).is_file():
        # An option may have replaced a default when the run began, and need not be repeated.
        default = to_leaves(default_config(stored.model.system, stored.prior.network.kind))
        file = {
            field: value
            for field, value in to_leaves(base).items()
            if value not in (AUTO, default.get(field))
        }
        if stored.data.dataset == OWN_IMAGES:
            file.pop("data.dataset", None)
    return decide_auto(_resumed(stored, options, "training", file), "model", "training")


def stage_config(
    section: str, run: Config, options: Mapping[str, str], stored: Config | None = None
) -> Config:
    """Return the configuration of a later stage of a run, "prior", "progressive" or "generation":
    new, or `stored` if it resumes.

    Raises InputError if a value is invalid, a field belongs to another stage, or options contradict
    `stored`.
    """
    for name in options:
        if not name.startswith(f"{section}.") and name not in ("data.root", "data.workers"):
            stage = {"prior": "priors", "progressive": "progressive decoder"}.get(
                section, "decoder of samples"
            )
            raise InputError(f"--{name} is no field of the {stage}: give --{section}.* and --data")
    if stored is None:
        config = override(run, options)
    else:
        config = _resumed(stored, options, f"{section}.training", {})
    levels = len(run.model.num_symbols)
    for name, values in to_leaves(getattr(config, section)).items():
        if isinstance(values, tuple) and len(values) not in (1, levels):
            raise InputError(
                f"{section}.{name} has {len(values)} values; give one, or one for each of the"
                f" {levels} levels"
            )
    return decide_auto(config, section)


def name_own_images(config: Config) -> Config:
    """Return a configuration whose `data.dataset` is OWN_IMAGES if it names a published set, but
    the images are a data set from Python or lie in a folder of another name.
    """
    name = config.data.dataset
    root = config.data.root or ""
    if not root or name not in DATASETS or "any folder" in DATASETS.get(name).how:
        return config
    is_folder_of_set = bool(DATASETS.get(name).read) or name in root.lower()
    is_from_python = root.startswith("python:")  # `data.sources.datasets.PREFIX`
    if is_folder_of_set and not is_from_python:
        return config
    return config.replace(**{"data.dataset": OWN_IMAGES})


def _resumed(
    stored: Config, options: Mapping[str, str], stage: str, file: Mapping[str, Any]
) -> Config:
    """Return a stored configuration with options. Raises InputError if options or file change the
    run's result.
    """
    may_change = {f"{stage}.{name}" for name in (*RESULT_FREE, *BUDGET, "evaluation_images")}
    may_change.discard("prior.training.evaluation_images")  # they choose the best state of a prior
    config = override(stored, options)
    before = to_leaves(stored)
    after = to_leaves(config) | {name: file[name] for name in file if name not in options}
    for name, value in after.items():
        if value != before.get(name) and name not in may_change | _READING:
            raise InputError(
                f"--resume continues the same run: --{name} is {before.get(name)} there, {value}"
                " here; give the same, or train anew in another folder"
            )
    return config
