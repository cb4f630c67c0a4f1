"""From what a person types to a configuration: presets, files, options, stored runs.

What is given later wins, and names that contradict each other are refused:

| | begins with | replaced by |
|---|---|---|
| a file, a stored configuration | the defaults of its system and of its network of priors | its fields |
| a run that begins | a preset, or a file | options |
| a run that goes on | the configuration stored with it | options, of which only some may differ |

A default budget (`epochs`, `max_steps`, `max_minutes`) is replaced as a whole by one that is given. Whatever is wrong
is one line that names the field, the value and what it must be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
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
    decide,
    default_config,
    flatten,
    to_dict,
    with_values,
)
from hrvqvae.utils.errors import InputError, near_names
from hrvqvae.utils.progress import told_once

# Where a run computes, and how often it says and saves what: nothing that decides what it finds.
_ASIDE = ("device", "threads", "log_every", "evaluate_every", "checkpoint_every", "loggers")
# What a run that goes on may change of its data: where and how it is read.
_DATA = frozenset(f"data.{name}" for name in ("root", "workers", "on_error", "max_pixels", "memory_mb"))
# Stored under these names by earlier versions.
_RENAMED = {"revive_every": "restart_every", "revive_below": "restart_below", "start_from": "init_from"}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_UNIONS = (Union, types.UnionType)


def _hints(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every field of a dataclass, and of the dataclasses inside it."""
    hints = get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            yield from _hints(value, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, hints[one.name]


def _of_union(hint: Any) -> Any:
    """The type beside None of one that may be None."""
    return next(part for part in get_args(hint) if part is not type(None))


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
    """A plain value as the type of a field. Raises ValueError or TypeError where it is none of that type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return value if value is None and type(None) in parts else _converted(value, _of_union(hint))
    if origin is tuple:
        return tuple(_converted(one, parts[0]) for one in (value if isinstance(value, (list, tuple)) else [value]))
    if origin is Literal and value in parts:
        return value
    if hint in (int, float) and type(value) in {int, str, hint}:
        return hint(value)
    if hint in (bool, str) and type(value) is hint:
        return value
    raise TypeError(hint)


def _plain(text: str, hint: Any) -> Any:
    """What a text on the command line stands for, as a file would hold it. Raises YAMLError."""
    if get_origin(hint) in _UNIONS:
        return None if text == "null" else _plain(text, _of_union(hint))
    if hint is str or get_origin(hint) is Literal:
        return text
    several = get_origin(hint) is tuple and not text.lstrip().startswith("[")
    return yaml.safe_load(f"[{text}]" if several else text)


def _build(base: Config, given: Mapping[str, Any], where: str, *, texts: bool = False) -> Config:
    """`base` with the given fields replaced.

    Args:
        given: dotted name -> plain value, or text of the command line.
        where: begins a message.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range.
    """
    hints = dict(_hints(base))
    values = {}
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"{where}unknown field {name!r} of {base.model.system}{_hint(name, hints)}")
        try:
            values[name] = _converted(_plain(value, hints[name]) if texts else value, hints[name])
        except (TypeError, ValueError, OverflowError, yaml.YAMLError):
            raise InputError(f"{where}{name} is {value!r}; it must be {_in_words(hints[name])}") from None
    try:
        return with_values(base, values)
    except InputError as error:
        raise InputError(f"{where}{error}") from error


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

    Of a field with a value a level, one value for all levels may stand alone. Fields may have the names of an earlier
    version.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    where = f"{where}: "
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}a configuration is a mapping with data, model and training")
    given = {_renamed(name): value for name, value in flatten(tree)}
    system, network = given.get("model.system", DEFAULT_SYSTEM), given.get("prior.network.kind", DEFAULT_PRIOR)
    try:
        base = default_config(str(system), str(network))
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    return _build(base, given, where)


def from_file(path: Path) -> Config:
    """A configuration from a YAML or JSON file. Raises as `from_dict` does, and where the file can't be read."""
    try:
        return from_dict(yaml.safe_load(path.read_text()), str(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({type(error).__name__})") from error


def override(base: Config, given: Mapping[str, str]) -> Config:
    """`base` with fields replaced by texts, checked.

    Of a field with a value a level, "4", "4,1,0" and "[4, 1, 0]" are texts. Another `prior.network.kind` begins with
    that network's defaults.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range.
    """
    system = base.model.system
    if given.get("model.system", system) != system:
        raise InputError(f"--model.system can't change from {system}: give a preset of that system (hrvqvae presets)")
    network = given.get("prior.network.kind", base.prior.network.kind)
    if network != base.prior.network.kind:
        prior = dataclasses.replace(base.prior, network=PRIORS.get(network).config())
        base = dataclasses.replace(base, prior=prior)
    return _build(base, given, "", texts=True)


def base_config(name: str) -> Config:
    """The configuration of a preset, or of a YAML or JSON file. Raises InputError where it is neither."""
    path = Path(name)
    return from_file(path) if path.suffix in (".yaml", ".yml", ".json") else presets.get(name).config


def decide_autoencoder(config: Config, made: Mapping[str, str] = MappingProxyType({})) -> tuple[Config, dict[str, str]]:
    """A configuration with what the autoencoder's training leaves to the machine decided, and those decisions.

    Raises:
        InputError: nothing that is needed is on this machine.
    """
    config.model.check_images(config.data.size)
    return decide(config, made, ("model.", "training."))


def decide_priors(config: Config, made: Mapping[str, str] = MappingProxyType({})) -> tuple[Config, dict[str, str]]:
    """The same for the priors' training."""
    return decide(config, made, ("prior.",))


def begin_autoencoder(name: str, given: Mapping[str, str]) -> Config:
    """The configuration of a run that begins from a preset or file. Raises InputError as its parts do."""
    return decide_autoencoder(override(base_config(name), given))[0]


def continue_autoencoder(name: str, given: Mapping[str, str], stored: Config, where: str) -> Config:
    """The configuration of a stored run that goes on; what a file says otherwise is told, and does not count.

    Raises:
        InputError: a bad value, another preset, or changes that would make it another run; `where` is named.
    """
    base = base_config(name)
    if stored.name != base.name:
        raise InputError(f"{where} holds a run of {stored.name}, not of {base.name}")
    config = decide_autoencoder(_continued(stored, given, "training"))[0]
    own = dict(flatten(to_dict(stored)))
    for field, value in flatten(to_dict(base)) if Path(name).is_file() else ():
        known = field in given or value in (AUTO, own.get(field))
        if not known and field.startswith(("data.", "model.", "training.")):
            told_once(f"{where} goes on with {field} {own.get(field)}, as it began; {name} has {value}")
    return config


def _continued(stored: Config, given: Mapping[str, str], stage: str) -> Config:
    """The stored configuration with changes that leave the run the same. Raises InputError at any other."""
    may_change = {*_DATA, *(f"{stage}.{name}" for name in (*_ASIDE, *BUDGET, "evaluation_images"))}
    if stage == "prior.training":  # the best state of a prior is that of the same held-out images
        may_change.remove("prior.training.evaluation_images")
    config = override(stored, given)
    before = dict(flatten(to_dict(stored)))
    for name, value in flatten(to_dict(config)):
        if value != before.get(name) and name not in may_change:
            raise InputError(
                f"--resume continues the same run: --{name} is {before.get(name)} there, {value} here; "
                "leave it out, or train anew in another folder"
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
    config.prior.check_levels(len(run.model.num_symbols))
    return decide_priors(config)[0]


def progressive_config(run: Config, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The same for the progressive decoder. Raises as `prior_config`."""
    return decide(_later_stage("progressive", run, given, stored, "progressive decoder"), only=("progressive.",))[0]


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
