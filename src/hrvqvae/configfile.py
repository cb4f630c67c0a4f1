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

from hrvqvae.config import NETWORKS, SYSTEMS, Config, PriorConfig, flatten, to_dict
from hrvqvae.errors import InputError


def _narrowed(kind: type[Any], **types: type[Any]) -> type[Any]:
    """The dataclass with the types of some fields, which are unions, narrowed to one, and that one's defaults."""
    defaults, hints = kind(**{name: narrow() for name, narrow in types.items()}), get_type_hints(kind) | types
    fields = [
        (name, hints[name], dataclasses.field(default_factory=partial(getattr, defaults, name)))
        for name in (field.name for field in dataclasses.fields(kind))
    ]
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True, frozen=True)


@cache
def _parser(system: str, network: str) -> jsonargparse.ArgumentParser:
    """Of the configurations with that system and kind of prior, so that a field is never looked for in another's."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    prior = _narrowed(PriorConfig, network=NETWORKS[network])
    parser.add_class_arguments(_narrowed(Config, model=SYSTEMS[system], prior=prior))
    return parser


def _kind(tree: Any, section: Sequence[str], known: Mapping[str, Any], default: str, where: str) -> str:
    """The value at `section` of a nested mapping, one of those known. Raises InputError."""
    for name in section:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    found = default if tree is None else tree
    if found not in known:
        raise InputError(f"{where}: {'.'.join(section)} is {found!r}; there are {', '.join(known)}")
    return str(found)


def _error(error: Exception, where: str) -> InputError:
    text = " ".join(str(error).replace('Parser key "', '"').split())
    return InputError(f"{where}: {text}")


def _built(parser: jsonargparse.ArgumentParser, namespace: Any) -> Config:
    built = parser.instantiate(namespace)
    parts = {field.name: getattr(built, field.name) for field in dataclasses.fields(Config)}
    prior = parts.pop("prior")
    return Config(
        **parts, prior=PriorConfig(**{one.name: getattr(prior, one.name) for one in dataclasses.fields(prior)})
    )


def from_dict(tree: Any, where: str) -> Config:
    """A configuration from nested plain values; missing fields take their defaults.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: a configuration is a mapping with data, model and training")
    system = _kind(tree, ("model", "system"), SYSTEMS, "hrvqvae", where)
    network = _kind(tree, ("prior", "network", "kind"), NETWORKS, "pixelsnail", where)
    try:
        return _built(_parser(system, network), _parser(system, network).parse_object(dict(tree)))
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
        for network in NETWORKS.values():
            config = Config(model=kind(), prior=PriorConfig(network=network()))
            names |= dict.fromkeys(name for name, _ in flatten(to_dict(config)))
    return list(names)


def parse_overrides(arguments: Sequence[str], owners: Sequence[str] = ()) -> dict[str, str]:
    """`--section.field VALUE` or `--section.field=VALUE`, in pairs, to dotted name -> text.

    Args:
        owners: names that may stand before a field, `--owner.section.field`, and stay before it.

    Raises:
        InputError: an option that is no field (near names are listed), or one without its value.
    """
    given: dict[str, str] = {}
    known = [*field_names(), *(f"{owner}.{name}" for owner in owners for name in field_names())]
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
    parser = _parser(base.model.system, base.prior.network.kind)
    try:
        start = parser.parse_object(to_dict(base))
        return _built(parser, parser.parse_args(arguments, namespace=start))
    except argparse.ArgumentError as error:
        raise _error(error, "configuration") from error


__all__ = ["field_names", "from_dict", "from_file", "override", "parse_overrides"]
