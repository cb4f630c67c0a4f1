"""Configurations from files and from `--section.field VALUE`, checked by jsonargparse against the dataclasses.

A file or an option names fields, whose names are checked here; jsonargparse turns texts into values and checks types;
the dataclasses check ranges. Whatever is wrong is one line that names the field, the value and what it must be.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from hrvqvae.config.checks import near_names
from hrvqvae.config.data import DataConfig
from hrvqvae.config.entries import PRIORS, SYSTEMS
from hrvqvae.config.prior import PriorConfig
from hrvqvae.config.progressive import ProgressiveConfig
from hrvqvae.config.registry import Registry
from hrvqvae.config.schema import DEFAULT_PRIOR, DEFAULT_SYSTEM, Config, flatten, nested, to_dict
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.utils.errors import InputError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_OF_PRIORS = (
    ("held_out", float, PriorConfig.held_out), ("codes", str | None, PriorConfig.codes),
    ("class_dropout", float, PriorConfig.class_dropout),
)  # fmt: skip


class _Form:
    """The fields of the configurations with one system and one network of priors.

    Attributes:
        types: dotted name -> type.
        parser: turns texts and plain values into a configuration.
    """

    def __init__(self, system: str, network: str) -> None:
        model = SYSTEMS.get(system).config
        sections: dict[str, type[Any]] = {
            "data": DataConfig,
            "model": type(model),
            "training": TrainingConfig,
            "prior.network": PRIORS.get(network).config,
            "prior.training": PriorTrainingConfig,
            "progressive": ProgressiveConfig,
        }
        self.parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
        self.parser.add_argument("--name", type=str, default=Config.name)
        self.types: dict[str, Any] = {"name": str}
        for name, kind in sections.items():
            self.parser.add_class_arguments(kind, name)
            self.types |= dict(_types(kind, f"{name}."))
        self.parser.set_defaults({f"model.{name}": value for name, value in flatten(to_dict(model))})
        for name, hint, default in _OF_PRIORS:
            self.parser.add_argument(f"--prior.{name}", type=hint, default=default)
            self.types[f"prior.{name}"] = hint

    def build(self, parse: Callable[[], Any], given: Mapping[str, Any], where: str) -> Config:
        """What the parser gives, as a configuration.

        Args:
            parse: calls the parser.
            given: dotted name -> what was given, for messages.
            where: begins a message.

        Raises:
            InputError: a value is of the wrong type or out of range.
        """
        try:
            built = self.parser.instantiate(parse())
            own = {name: getattr(built.prior, name) for name, _, _ in _OF_PRIORS}
            prior = PriorConfig(network=built.prior.network, training=built.prior.training, **own)
            return Config(
                name=built.name, data=built.data, model=built.model, training=built.training, prior=prior,
                progressive=built.progressive,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{where}{error}") from error
        except (argparse.ArgumentError, TypeError) as error:
            text = " ".join(str(error).split())
            named = re.search(r'key "([^"]+)":', text)
            name = "" if named is None else named[1]
            if name in given and name in self.types:
                text = f"{name} is {given[name]!r}; it must be {_in_words(self.types[name])}"
            raise InputError(f"{where}{text}") from error

    def near(self, name: str, mark: str = "") -> str:
        """A hint at the fields whose names are most like an unknown one; "" where none is."""
        near = near_names(mark + name, [mark + known for known in self.types])
        return f"; did you mean {near}?" if near else ""


_form = cache(_Form)


def _types(kind: type[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every field of a dataclass, and of the dataclasses inside it."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _types(hint, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, hint


def _in_words(hint: Any) -> str:
    """A type for people, such as "stop or skip" or "a whole number"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin is tuple:
        return f"{_in_words(parts[0])}, or one for each level"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    return _WORDS.get(hint) or str(hint)


def _at(tree: Mapping[str, Any], section: Sequence[str]) -> Any:
    """What lies at `section` of a nested mapping; None where there is nothing."""
    found: Any = tree
    for name in section:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _named(tree: Mapping[str, Any], section: Sequence[str], known: Registry[Any], default: str, where: str) -> str:
    """The name at `section` of a nested mapping, one that the registry knows. Raises InputError."""
    found = _at(tree, section)
    if found is None:
        return default
    if not isinstance(found, str) or found not in known:
        raise InputError(f"{where}{'.'.join(section)} is {found!r}; there are {', '.join(known)}")
    return found


def _fields(tree: Mapping[str, Any], known: Container[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what a nested mapping gives, down to the names that are known."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            yield from _fields(value, known, f"{name}.")
        else:
            yield name, value


_RENAMED = {"revive_every": "restart_every", "revive_below": "restart_below", "start_from": "init_from"}


def _renamed(name: str) -> str:
    """The name that a field of a stored configuration has today."""
    section, _, rest = name.partition(".")
    if section == "prefixes":
        return _renamed(f"progressive.{rest}")
    parents, _, leaf = name.rpartition(".")
    return f"{parents}.{_RENAMED[leaf]}" if leaf in _RENAMED else name


def from_dict(tree: Any, where: str) -> Config:
    """A configuration from nested plain values; missing fields take their defaults.

    Of a field with a value a level, one value for all levels may stand alone.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    where = f"{where}: "
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}a configuration is a mapping with data, model and training")
    system = _named(tree, ("model", "system"), SYSTEMS, DEFAULT_SYSTEM, where)
    network = _named(tree, ("prior", "network", "kind"), PRIORS, DEFAULT_PRIOR, where)
    form = _form(system, network)
    given = {_renamed(name): value for name, value in _fields(tree, form.types)}
    for name, value in given.items():
        if name not in form.types:
            if any(known.startswith(f"{name}.") for known in form.types):
                raise InputError(f"{where}{name} is {value!r}; it must be a mapping")
            raise InputError(f"{where}unknown field {name!r}{form.near(name)}")
        if value is None and type(None) not in get_args(form.types[name]):
            raise InputError(f"{where}{name} is null; it must be {_in_words(form.types[name])}")
        if get_origin(form.types[name]) is tuple and not isinstance(value, Sequence):
            given[name] = [value]
    if not any(name.startswith("training.") for name in given):
        given["training.epochs"] = 1
    return form.build(lambda: form.parser.parse_object(nested(given)), given, where)


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
    form = _form(system, network)
    arguments = []
    for name, value in given.items():
        if name not in form.types:
            raise InputError(f"unknown argument '--{name}' of {base.name}{form.near(name, '--')}")
        several = get_origin(form.types[name]) is tuple and not value.lstrip().startswith("[")
        arguments.append(f"--{name}=[{value}]" if several else f"--{name}={value}")
    start = to_dict(base)
    return form.build(
        lambda: form.parser.parse_args(arguments, namespace=form.parser.parse_object(start)), given, where=""
    )
