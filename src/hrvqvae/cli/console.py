"""What the commands have in common: how they are added, and how they print."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hrvqvae.utils.errors import InputError

if TYPE_CHECKING:
    from hrvqvae.config.registry import Registry

Arguments = argparse.Namespace
Group = Any  # what argparse's add_subparsers gives
Call = Callable[[Arguments], int]
_OPTION = re.compile(r"-[^\d.]")  # and not a negative number


class Parser(argparse.ArgumentParser):
    """Errors in the form of every other error: one line, exit code 2."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see {self.prog} --help)")


def command(under: Group, name: str, about: str, call: Call) -> Any:
    """Add a command that calls `call` with its arguments and gives its exit code; -> its parser."""
    added = under.add_parser(name, help=about, description=about, allow_abbrev=False)
    added.set_defaults(call=call, takes_fields=False, prog=added.prog)
    return added


def group(under: Group, name: str, about: str, what: str) -> Group:
    """Add a command that has commands of its own; -> what they are added to."""
    return under.add_parser(name, help=about).add_subparsers(metavar=what, required=True, parser_class=Parser)


def _for_json(value: Any) -> Any:
    """Plain values as JSON knows them, which has no infinity and no NaN: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _for_json(inner) for key, inner in value.items()}
    return [_for_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def print_json(value: Any) -> None:
    """Print plain values for programs. What is not finite is null."""
    print(json.dumps(_for_json(value), indent=2, allow_nan=False))


def warn_of_faults(*registries: Registry[Any]) -> None:
    """Say on stderr which entries of other packages can't be used, a line each."""
    for registry in registries:
        for fault in registry.faults():
            print(f"hrvqvae: {fault}", file=sys.stderr)


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns, the heads first."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def at_least(value: int, least: int, name: str) -> None:
    """Raises InputError where the value of that option is below `least`."""
    if value < least:
        raise InputError(f"{name} is {value}; it must be at least {least}")


def add_beam(parser: Any) -> None:
    """--beam, of commands that encode images."""
    what = "keep N paths of the tree at each level when images are encoded (default: as in training)"
    parser.add_argument("--beam", type=int, metavar="N", help=what)


def add_guidance(parser: Any) -> None:
    """--guidance, of commands that draw images."""
    what = "above 1: codes that speak for the class, of priors trained with class dropout"
    parser.add_argument("--guidance", type=float, default=1.0, metavar="W", help=what)


def add_lmbda(parser: Any) -> None:
    """--lmbda, of commands that encode images."""
    what = "weigh error against bits: the squared error of pixel values in [0, 1] that a bit is worth, such as 0.005"
    parser.add_argument("--lmbda", type=float, metavar="X", help=what)


def split_fields(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--section.field VALUE` and `--section.field=VALUE` out of a command line, wherever they stand.

    Returns:
        The other arguments in order, and dotted name -> text; the names are not checked yet. Whatever follows `--` is
        no field.

    Raises:
        InputError: a field has no value.
    """
    others: list[str] = []
    fields: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            others += [argument, *rest]
            break
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in name:
            others.append(argument)
            continue
        if not equals:
            if not rest or _OPTION.match(rest[0]):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0)
        fields[name] = value
    return others, fields
