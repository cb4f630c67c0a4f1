"""From what a person types to a configuration: presets, files, options, stored runs; what is given later wins.

A file or a stored configuration begins with the defaults of its system and of its network of priors; a run begins with
a preset or a file, and goes on with the configuration stored in it. Errors are one line: field, value, what it must be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hrvqvae.config import presets
from hrvqvae.config.model import AUTO
from hrvqvae.config.registry import PRIORS
from hrvqvae.config.schema import (
    BUDGET,
    DEFAULT_PRIOR,
    DEFAULT_SYSTEM,
    STAGES,
    Config,
    decided,
    default_config,
    fields_of,
    flatten,
    replaced,
    to_dict,
)
from hrvqvae.utils.errors import InputError, near_names

# Where a run computes, and how often it logs, evaluates and saves: nothing that changes its result.
_ASIDE = ("device", "threads", "log_every", "evaluate_every", "checkpoint_every", "loggers")
# What a resumed run may change of its data: where and how it is read.
_DATA = frozenset(f"data.{name}" for name in ("root", "workers", "on_error", "max_pixels", "memory_mb"))
# Stored under these names by earlier versions.
_RENAMED = {"revive_every": "restart_every", "revive_below": "restart_below", "start_from": "init_from"}
# One level of a tree, as an earlier version stored it.
_LINKED, _LEVELS, _BETAS = (f"model.quantizer.{name}" for name in ("linked", "levels", "level_betas"))
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
_UNIONS = (Union, types.UnionType)
_hints = cache(get_type_hints)


def _in_words(hint: Any) -> str:
    """A type for people, such as "stop or skip" or "a whole number"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        return f"{_in_words(parts[0])}, or one for each level"
    if origin in _UNIONS:
        return " or ".join(map(_in_words, parts))
    return _WORDS.get(hint) or str(hint)


def _converted(value: Any, hint: Any) -> Any:
    """A plain value of a file, or a text of the command line, as the type of a field.

    Raises:
        TypeError, ValueError, YAMLError: it is no value of that type.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        if value in (None, "null") and NoneType in parts:
            return None
        return _converted(value, next(part for part in parts if part is not NoneType))
    if origin is tuple:
        if isinstance(value, str):
            value = yaml.safe_load(value if value.lstrip().startswith("[") else f"[{value}]")
        return tuple(_converted(one, parts[0]) for one in (value if isinstance(value, (list, tuple)) else [value]))
    if hint is bool and isinstance(value, str):
        value = yaml.safe_load(value)
    if origin is Literal and value in parts:
        return value
    if hint in (int, float) and type(value) in {int, str, hint}:
        return hint(value)
    if hint in (bool, str) and type(value) is hint:
        return value
    raise TypeError(hint)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    """What to do about an unknown field; "" where nothing is like it."""
    if _renamed(name) in known:
        return f"; it is called {_renamed(name)} now"
    if any(field.startswith(f"{name}.") for field in known):
        return "; it must be a mapping of fields"
    near = near_names(name, known)
    return f"; did you mean {near}?" if near else ""


def _renamed(name: str) -> str:
    """The name that a field of an earlier version has today."""
    parents, _, leaf = name.rpartition(".")
    parents = "progressive" + parents.removeprefix("prefixes") if parents.split(".")[0] == "prefixes" else parents
    return f"{parents}.{_RENAMED.get(leaf, leaf)}" if parents else name


def from_dict(tree: Any, where: str) -> Config:
    """A configuration from nested plain values; missing fields take their defaults.

    Of a field with a value for each level, one value for all levels may stand alone. Fields may have the names of an
    earlier version.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: a configuration is a mapping with data, model and training")
    given = {_renamed(name): value for name, value in flatten(tree)}
    if _LINKED not in given and (given.get(_LEVELS), given.get(_BETAS)) == (1, []):  # it had beta's term twice
        given[_BETAS] = given.get("model.quantizer.beta", [])
    system, network = given.get("model.system", DEFAULT_SYSTEM), given.get("prior.network.kind", DEFAULT_PRIOR)
    if PRIORS.removal(str(network)):  # the autoencoder of such a run is used still
        given = {name: value for name, value in given.items() if not name.startswith("prior.network.")}
    try:
        base = default_config(str(system), str(network))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return override(base, given, f"{where}: ")


def from_file(path: Path) -> Config:
    """A configuration from a YAML or JSON file. Raises as `from_dict` does, and where the file can't be read."""
    try:
        tree = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({type(error).__name__})") from error
    return from_dict(tree, str(path))


def override(base: Config, given: Mapping[str, Any], where: str = "") -> Config:
    """`base` with fields replaced, by dotted name, by plain values or texts.

    Of a field with a value for each level, "4", "4,1,0" and "[4, 1, 0]" are texts. Another `prior.network.kind` begins
    with that network's defaults.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; the message begins with `where`.
    """
    system, network = base.model.system, given.get("prior.network.kind", base.prior.network.kind)
    if given.get("model.system", system) != system:
        raise InputError(f"--model.system can't change from {system}: give a preset of that system (hrvqvae presets)")
    if network != base.prior.network.kind:
        prior = dataclasses.replace(base.prior, network=PRIORS.get(network).config())
        base = dataclasses.replace(base, prior=prior)
    hints = {name: _hints(of.__class__)[one.name] for name, of, one in fields_of(base)}
    values = {}
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"{where}unknown field {name!r} of {system}{_hint(name, hints)}")
        try:
            values[name] = _converted(value, hints[name])
        except (TypeError, ValueError, OverflowError, yaml.YAMLError):
            raise InputError(f"{where}{name} is {value!r}; it must be {_in_words(hints[name])}") from None
    try:
        return replaced(base, values)
    except InputError as error:
        raise InputError(f"{where}{error}") from error


def base_config(name: str) -> Config:
    """Return the configuration of a preset, a YAML or JSON file, or a run folder. Raises InputError for any other."""
    path = Path(name, "config.yaml") if Path(name, "config.yaml").is_file() else Path(name)
    return from_file(path) if path.suffix in (".yaml", ".yml", ".json") else presets.get(name).config


def autoencoder_config(name: str, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The configuration of an autoencoder's run that begins from a preset or file, or of the stored one that goes on.

    Raises:
        InputError: a bad value, another preset, or options or an edited file that would make it another run.
    """
    base = base_config(name)
    if stored is None:
        config = override(base, given)
        PRIORS.get(config.prior.network.kind)  # raises where it was removed
        return decided(config, "model", "training")
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
    PRIORS.get(config.prior.network.kind)  # raises where it was removed
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
