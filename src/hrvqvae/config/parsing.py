"""Configurations from files and from `--section.field VALUE`, checked by jsonargparse against the dataclasses."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from hrvqvae.config.data import DataConfig
from hrvqvae.config.entries import PRIORS, SYSTEMS
from hrvqvae.config.prior import PriorConfig
from hrvqvae.config.registry import Registry
from hrvqvae.config.schema import DEFAULT_PRIOR, DEFAULT_SYSTEM, Config, flatten, to_dict
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.errors import InputError


@cache
def _parser(system: str, network: str) -> jsonargparse.ArgumentParser:
    """Of the configurations with that system and network of priors."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--name", type=str, default=Config.name)
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(SYSTEMS.get(system).config, "model")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(PRIORS.get(network).config, "prior.network")
    parser.add_class_arguments(PriorTrainingConfig, "prior.training")
    parser.add_argument("--prior.held_out", type=float, default=PriorConfig.held_out)
    return parser


def _config(parser: jsonargparse.ArgumentParser, values: Any) -> Config:
    built = parser.instantiate_classes(values)
    prior = PriorConfig(network=built.prior.network, training=built.prior.training, held_out=built.prior.held_out)
    return Config(name=built.name, data=built.data, model=built.model, training=built.training, prior=prior)


def _named(tree: Any, section: Sequence[str], known: Registry[Any], default: str, where: str) -> str:
    """The name at `section` of a nested mapping, one that the registry knows. Raises InputError."""
    for name in section:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    found = default if tree is None else tree
    if found not in known:
        raise InputError(f"{where}: {'.'.join(section)} is {found!r}; there are {', '.join(known)}")
    return str(found)


def _error(error: Exception, where: str) -> InputError:
    text = " ".join(str(error).replace('Parser key "', '"').split())
    return InputError(f"{where}: {text}")


def from_dict(tree: Any, where: str) -> Config:
    """A configuration from nested plain values; missing fields take their defaults.

    Raises:
        InputError: an unknown field, or a value of the wrong type or out of range; `where` is named.
    """
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: a configuration is a mapping with data, model and training")
    system = _named(tree, ("model", "system"), SYSTEMS, DEFAULT_SYSTEM, where)
    network = _named(tree, ("prior", "network", "kind"), PRIORS, DEFAULT_PRIOR, where)
    given = dict(tree)
    if "training" not in given:
        given["training"] = {"epochs": 1}
    parser = _parser(system, network)
    try:
        return _config(parser, parser.parse_object(given))
    except (argparse.ArgumentError, TypeError, KeyError) as error:
        raise _error(error, where) from error


def from_file(path: Path) -> Config:
    """A configuration from a YAML or JSON file. Raises as `from_dict` does, and where the file can't be read."""
    try:
        return from_dict(yaml.safe_load(path.read_text()), str(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON ({type(error).__name__})") from error


def field_names() -> list[str]:
    """Dotted names of every field, of any system and any network of priors."""
    names = dict[str, None]()
    for system in SYSTEMS:
        for network in PRIORS:
            defaults = _parser(system, network).get_defaults()
            names |= dict.fromkeys(name for name, _ in flatten(defaults.as_dict()))
    return list(names)


def check_fields(fields: Mapping[str, str], owners: Sequence[str] = ()) -> None:
    """Raises InputError where a name is no field; near names are listed.

    Args:
        owners: names that may stand before a field, `owner.section.field`.
    """
    known = field_names()
    known += [f"{owner}.{name}" for owner in owners for name in known]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"; did you mean {' or '.join('--' + other for other in near)}?" if near else ""
            raise InputError(f"unknown argument '--{name}'{hint}")


def override(base: Config, given: Mapping[str, str]) -> Config:
    """`base` with fields replaced by texts, checked. Of a field with a value a level, "4" and "4,1,0" are texts.

    Raises:
        InputError: as `from_dict`.
    """
    plain = to_dict(base)
    several = {name for name, value in flatten(plain) if isinstance(value, tuple)}
    arguments = [
        f"--{name}=[{value}]" if name in several and not value.lstrip().startswith(("[", "(")) else f"--{name}={value}"
        for name, value in given.items()
    ]
    parser = _parser(base.model.system, base.prior.network.kind)
    try:
        return _config(parser, parser.parse_args(arguments, namespace=parser.parse_object(plain)))
    except argparse.ArgumentError as error:
        raise _error(error, "configuration") from error
