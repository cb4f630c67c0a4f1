"""Configurations from files and from `--section.field VALUE`, checked by jsonargparse against the dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
import yaml

from hrvqvae.config import SYSTEMS, Config, flatten, to_dict
from hrvqvae.errors import InputError

DEFAULT_SYSTEM = "hrvqvae"


@cache
def _parser(system: str) -> jsonargparse.ArgumentParser:
    """Of a system's configurations: one model class, so that a field is never looked for in another's."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    defaults, types = Config(model=SYSTEMS[system]()), get_type_hints(Config) | {"model": SYSTEMS[system]}
    fields = [
        (name, types[name], dataclasses.field(default_factory=partial(getattr, defaults, name)))
        for name in (field.name for field in dataclasses.fields(Config))
    ]
    parser.add_class_arguments(dataclasses.make_dataclass("Config", fields, kw_only=True))
    return parser


def _error(error: Exception, where: str) -> InputError:
    text = " ".join(str(error).replace('Parser key "', '"').split())
    return InputError(f"{where}: {text}")


def _built(parser: jsonargparse.ArgumentParser, namespace: Any) -> Config:
    built = parser.instantiate(namespace)
    return Config(**{field.name: getattr(built, field.name) for field in dataclasses.fields(Config)})


def from_dict(tree: Any, where: str) -> Config:
    """A configuration from nested plain values; missing fields take their defaults.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: a configuration is a mapping with data, model and training")
    model = tree.get("model")
    system = model.get("system", DEFAULT_SYSTEM) if isinstance(model, Mapping) else DEFAULT_SYSTEM
    if system not in SYSTEMS:
        raise InputError(f"{where}: model.system is {system!r}; there are {', '.join(SYSTEMS)}")
    try:
        return _built(_parser(system), _parser(system).parse_object(dict(tree)))
    except (argparse.ArgumentError, TypeError, KeyError) as error:
        raise _error(error, where) from error


def from_file(path: Path) -> Config:
    """A configuration from a YAML or JSON file. Raises as `from_dict` does, and where the file can't be read."""
    try:
        return from_dict(yaml.safe_load(path.read_text()), str(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({type(error).__name__})") from error


def field_names() -> list[str]:
    """Dotted names of every field, of any system."""
    names = dict[str, None]()
    for kind in SYSTEMS.values():
        names |= dict.fromkeys(name for name, _ in flatten(to_dict(Config(model=kind()))))
    return list(names)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--section.field VALUE` or `--section.field=VALUE`, in pairs, to dotted name -> text.

    Raises:
        InputError: an option that is no field (near names are listed), or one without its value.
    """
    given: dict[str, str] = {}
    known = field_names()
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        name, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"; did you mean {' or '.join('--' + other for other in near)}?" if near else ""
            raise InputError(f"unknown argument {option.split('=')[0]!r}{hint}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0)
        given[name] = value
    return given


def override(base: Config, given: Mapping[str, str]) -> Config:
    """`base` with fields replaced by texts, checked. Raises InputError as `from_dict` does."""
    arguments = [f"--{name}={value}" for name, value in given.items()]
    parser = _parser(base.model.system)
    try:
        start = parser.parse_object(to_dict(base))
        return _built(parser, parser.parse_args(arguments, namespace=start))
    except argparse.ArgumentError as error:
        raise _error(error, "configuration") from error


__all__ = ["field_names", "from_dict", "from_file", "override", "parse_overrides"]
