"""What the commands have in common: how they are declared, and how they print."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hrvqvae.utils.errors import InputError

Arguments = argparse.Namespace
Group = Any  # what argparse's add_subparsers gives
Call = Callable[[Arguments], int]
Option = tuple[tuple[str, ...], dict[str, Any]]
_OPTION = re.compile(r"-[^\d.]")  # and not a negative number


class Parser(argparse.ArgumentParser):
    """Errors in the form of every other error: one line, exit code 2."""

    def error(self, message: str) -> Any:
        message = re.sub("^argument ([^:]+): is ", r"\1 is ", message)  # of `whole`
        raise InputError(f"{message} (see {self.prog} --help)")


def option(*names: str, **settings: Any) -> Option:
    """An argument of a command, by what argparse's `add_argument` takes."""
    return names, settings


def flag(name: str, about: str) -> Option:
    """An option without a value."""
    return option(name, action="store_true", help=about)


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least `least`."""

    def convert(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"is {text}; it must be at least {least}")
        return int(text)

    convert.__name__ = "whole number"  # in argparse's message of a text that is none
    return convert


COMMON: Mapping[str, Option] = {
    "run": option("run", metavar="RUN"),
    "model": option("model", metavar="MODEL", help="a run, or a model inside the package"),
    "--json": flag("--json", "for programs"),
    "--device": option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N"),
    "--data": option("--data", metavar="DIR", help="where the data is, if it has moved since training"),
    "--force": flag("--force", "overwrite files that exist"),
    "--levels": option("--levels", type=int, metavar="K", help="use levels 1..K only"),
    "--model": option("--model", metavar="RUN", help="by which they were made, if it is not inside the package"),
    "--beam": option(
        "--beam", type=int, metavar="N",
        help="keep N paths of the tree at each level when images are encoded (default: as in training)",
    ),
    "--lmbda": option(
        "--lmbda", type=float, metavar="X",
        help="minimize error + X * bits, the squared error of an image's pixel values in [0, 1], with X such as 0.005",
    ),
}  # fmt: skip
"""What several commands take."""


def command(under: Group, name: str, about: str, call: Call, *options: Option | str, fields: str = "") -> Any:
    """Add a command that calls `call` with its arguments and gives its exit code; -> its parser.

    Args:
        options: its arguments, or names of `COMMON` ones.
        fields: help on `--section.field VALUE`, where the command takes these.
    """
    added = under.add_parser(name, help=about, description=about, epilog=fields, allow_abbrev=False)
    added.set_defaults(call=call, takes_fields=bool(fields), prog=added.prog)
    for one in options:
        names, settings = COMMON[one] if isinstance(one, str) else one
        added.add_argument(*names, **settings)
    return added


def group(under: Group, name: str, about: str, what: str = "ACTION") -> Group:
    """Add a command that has commands of its own; -> what they are added to."""
    return under.add_parser(name, help=about).add_subparsers(metavar=what, required=True, parser_class=Parser)


def import_training() -> None:
    """Import what needs the extra `train`, so that it is named where it is missing, and not `figures`, a part of it."""
    importlib.import_module("hrvqvae.training.trainer")


def split_fields(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments but `--section.field VALUE` and `--section.field=VALUE` before `--`, and these: name -> text.

    Raises:
        InputError: a field has no value, or two.
    """
    others, fields, rest = list[str](), dict[str, str](), list(arguments)
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
        give(fields, name, value, f"--{name}")
    return others, fields


def give(fields: dict[str, str], name: str, value: str, option: str) -> None:
    """Add the value of a field that an option gives. Raises InputError where it has another already."""
    if fields.get(name, value) != value:
        raise InputError(f"{option} {value} contradicts --{name} {fields[name]}: give one of them")
    fields[name] = value


def print_json(value: Any) -> None:
    """Print plain values as JSON, in which a number that is not finite is null."""
    print(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=2))


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns, the heads first."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
