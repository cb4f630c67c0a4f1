"""From what a person types to a configuration: presets, files, options, stored runs; what is given later wins.

A file or a stored configuration begins with the defaults of its system and of its network of priors; a run begins with
a preset or a file, and goes on with the configuration stored in it. Errors are one line: field, value, what it must be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from hrvqvae.config import presets
from hrvqvae.config.registry import PRIORS
from hrvqvae.config.schema import (
    BUDGET,
    DEFAULT_PRIOR,
    DEFAULT_SYSTEM,
    STAGES,
    Config,
    decided,
    default_config,
)
from hrvqvae.config.section import AUTO, flatten, to_dict
from hrvqvae.utils.errors import InputError, one_line

# Where a run computes, and how often it logs, evaluates and saves: nothing that changes its result.
_ASIDE = ("device", "threads", "log_every", "evaluate_every", "checkpoint_every", "loggers")
# What a resumed run may change of its data: where and how it is read.
_DATA = frozenset(f"data.{name}" for name in ("root", "workers", "on_error", "max_pixels", "memory_mb"))


def from_dict(tree: Any, where: str) -> Config:
    """Return a configuration from nested plain values; missing fields take their defaults.

    Raises:
        InputError: a field is unknown, or a value has the wrong type or is out of range; `where` begins the message.
    """
    try:
        if not isinstance(tree, Mapping):
            raise InputError("a configuration is a mapping with data, model and training")
        values = dict(flatten(tree))
        kinds = values.get("model.system", DEFAULT_SYSTEM), values.get("prior.network.kind", DEFAULT_PRIOR)
        return override(default_config(*map(str, kinds)), values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def from_file(path: Path) -> Config:
    """Return a configuration from a YAML or JSON file. Raises as `from_dict` does, and if the file can't be read."""
    try:
        tree = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; hrvqvae presets lists the presets") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({one_line(error)})") from error
    return from_dict(tree, str(path))


def override(base: Config, values: Mapping[str, Any]) -> Config:
    """Return a configuration with fields replaced, by dotted name, by plain values or texts.

    Another `prior.network.kind` begins with the defaults of that network. A stage's default budget is replaced as a
    whole.

    Raises:
        InputError: a field is unknown, or a value has the wrong type or is out of range.
    """
    system, kind = base.model.system, str(values.get("prior.network.kind", base.prior.network.kind))
    if values.get("model.system", system) != system:
        raise InputError(f"--model.system can't change from {system}: give a preset of that system (hrvqvae presets)")
    if kind != base.prior.network.kind:
        base = base.replace(**{"prior.network": PRIORS.get(kind).config()})
    config = base.replace(**values)
    before, after, usual = (dict(flatten(to_dict(some))) for some in (base, config, Config()))
    for stage in STAGES:
        budget = [f"{stage}.{name}" for name in BUDGET]
        given = {name: after[name] if name in values else 0 for name in budget}
        if any(given.values()) and all(before[name] == usual[name] for name in budget):
            config = config.replace(**given)
    return config


def base_config(name: str) -> Config:
    """Return the configuration of a preset, a YAML or JSON file, or a run folder. Raises InputError for any other."""
    path = Path(name, "config.yaml") if Path(name, "config.yaml").is_file() else Path(name)
    if path.is_dir() and name not in presets.names():
        raise InputError(f"{name} is a folder, not a preset; give a preset, and a folder of images as --data {name}")
    return from_file(path) if path.suffix in (".yaml", ".yml", ".json") else presets.get(name).config


def autoencoder_config(name: str, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The configuration of an autoencoder's run that begins from a preset or file, or of the stored one that goes on.

    Raises:
        InputError: a bad value, another preset, or options or an edited file that would make it another run.
    """
    base = base_config(name)
    if stored is None:
        return decided(override(base, given), "model", "training")
    if stored.name != base.name:
        raise InputError(f"the folder holds a run of {stored.name}, not of {base.name}")
    file: Mapping[str, Any] = {}
    if Path(name).is_file():
        # A default may have been replaced by an option when the run began, which need not be given again.
        usual = dict(flatten(to_dict(default_config(stored.model.system, stored.prior.network.kind))))
        file = {field: value for field, value in flatten(to_dict(base)) if value not in (AUTO, usual.get(field))}
    return decided(_continued(stored, given, "training", file), "model", "training")


def _continued(
    stored: Config, given: Mapping[str, str], stage: str, file: Mapping[str, Any] = MappingProxyType({})
) -> Config:
    """The stored configuration with changes that leave the run the same, of options and of the file that it began with.

    Raises InputError at any other.
    """
    may_change = {*_DATA, *(f"{stage}.{name}" for name in (*_ASIDE, *BUDGET, "evaluation_images"))}
    if stage == "prior.training":  # the best state of a prior is that of the same held-out images
        may_change.remove("prior.training.evaluation_images")
    config = override(stored, given)
    before, after = (dict(flatten(to_dict(one))) for one in (stored, config))
    for name, value in (after | {name: value for name, value in file.items() if name not in given}).items():
        if value != before.get(name) and name not in may_change:
            raise InputError(
                f"--resume continues the same run: --{name} is {before.get(name)} there, {value} here; "
                "give the same, or train anew in another folder"
            )
    return config


def _later_stage(section: str, run: Config, given: Mapping[str, str], stored: Config | None, what: str) -> Config:
    """The configuration of a stage that trains on a finished autoencoder."""
    for key in given:
        if not key.startswith(f"{section}.") and key not in ("data.root", "data.workers"):
            raise InputError(f"--{key} is no field of the {what}: give --{section}.* and --data")
    return override(run, given) if stored is None else _continued(stored, given, f"{section}.training")


def prior_config(run: Config, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The configuration of a prior of a run that begins, or of the stored one that goes on.

    Raises:
        InputError: a bad value, a field that is not the priors', or a resumed prior that would no longer be the same.
    """
    config = _later_stage("prior", run, given, stored, "priors")
    levels = len(run.model.num_symbols)
    for name, values in flatten(to_dict(config.prior), "prior."):
        if isinstance(values, tuple) and len(values) not in (1, levels):
            raise InputError(f"{name} has {len(values)} values; give one, or one for each of the {levels} levels")
    return decided(config, "prior")


def progressive_config(run: Config, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The same for the progressive decoder. Raises as `prior_config`."""
    config = _later_stage("progressive", run, given, stored, "progressive decoder")
    return decided(config, "progressive")


def digest_of(config: Config, *sections: str) -> str:
    """A name, 16 hexadecimal digits, of what decides what is found by these sections, such as "model".

    Fields that are at their defaults are left out, so that it stays when a later version has more of them.
    """
    kinds = {"model.system": config.model.system, "prior.network.kind": config.prior.network.kind}
    usual = dict(flatten(to_dict(default_config(*kinds.values()))))
    untold = {"data.root", "data.workers", *(f"{stage}.{name}" for stage in STAGES for name in _ASIDE)}
    untold.remove("prior.training.evaluate_every")  # the best state of a prior is one of those that are evaluated
    told = {
        name: value for name, value in flatten(to_dict(config))
        if name.split(".")[0] in sections and name not in untold and (name in kinds or value != usual[name])
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()
