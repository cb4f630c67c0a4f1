"""Helpers of all commands: declare a command, read `--section.field VALUE`, print."""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hrvqvae.utils.errors import InputError

Arguments = argparse.Namespace
Call = Callable[[Arguments], int | None]
Option = tuple[tuple[str, ...], dict[str, Any]]
_OPTION = re.compile(r"-[^\d.]")  # not a negative number
_FIELDS = "--section.field VALUE sets any field, such as {} (see hrvqvae presets)"


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError, so that its errors look like all other errors."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} ({self.see_help})")

    @property
    def see_help(self) -> str:
        """Where the options are explained."""
        return f"see {self.prog} --help"


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text)


def option(usage: str, about: str, **settings: Any) -> Option:
    """Return an argument of a command, such as `option("-o --out OUT", "write to OUT")`.

    `settings` are for argparse's `add_argument`.
    """
    *names, last = usage.split()
    if last.startswith("-"):
        names.append(last)
    else:
        settings["metavar"] = last
    if settings.get("type") is Path:
        settings["type"] = _path
    return tuple(names), {**settings, "help": about}


def flag(name: str, about: str) -> Option:
    """Return an option without a value."""
    return option(name, about, action="store_true")


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `least` to `most`."""
    limits = f"at least {least}" if most is None else f"{least} to {most}"

    def convert(text: str) -> int:
        if int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"it must be {limits}, not {text}")
        return int(text)

    convert.__name__ = "whole number"  # for argparse's message
    return convert


def _find_run(text: str) -> str:
    return text.removesuffix("model.safetensors") or "."


_RUN = "run folder or the model.safetensors in it, or a model of the package such as mnist"
COMMON: Mapping[str, Option] = {
    "run": option("run RUN", _RUN, type=_find_run),
    "model": option("model MODEL", _RUN, type=_find_run),
    "--json": flag("--json", "print JSON"),
    "--device": option(
        "--device NAME", "auto, cpu, cuda or cuda:N (default: auto)", default="auto"
    ),
    "--data": option("--data DIR", "read the data from DIR (default: where it was in training)"),
    "--on-error": option(
        "--on-error",
        "stop at an unreadable image, or skip it (default: stop, or as the run was trained)",
        choices=("stop", "skip"),
    ),
    "--force": flag("--force", "overwrite files that exist"),
    "--levels": option("--levels K", "use levels 1 to K only (default: all)", type=integer(1)),
    "--model": option(
        "--model RUN", "run that encoded the files (default: the models of the package)"
    ),
    "--beam": option(
        "--beam N",
        "keep the N best partial sums per level in the search for the codes of an image, up to the"
        " last level (default: as in training)",
        type=integer(1),
    ),
    "--effort": option(
        "--effort",
        "0: take the nearest codewords; 1, 2: look at the decoded image too, for less error, in"
        " 2 and 7 times the time (default: 0)",
        type=int,
        default=0,
        choices=(0, 1, 2),
    ),
}
"""Arguments of several commands."""


class Command:
    """A command, or an action of a `Group`.

    Args:
        call: Takes the parsed arguments and returns the exit code (None: 0).
        options: The arguments, or their names in `COMMON`.
        alternatives: Further options, of which a call may have one.
        fields: Example of `--section.field VALUE` for the help; "" if the command takes none.
    """

    def __init__(
        self,
        name: str,
        about: str,
        call: Call,
        *options: Option | str,
        alternatives: Sequence[Option] = (),
        fields: str = "",
    ) -> None:
        self.name = name
        self.about = about
        self.call = call
        self.options = [COMMON[entry] if isinstance(entry, str) else entry for entry in options]
        self.alternatives = alternatives
        self.fields = fields

    def list_options(self) -> list[str]:
        """Return all options, and `--section.field` of all fields that the command takes."""
        listed = [name for names, _ in (*self.options, *self.alternatives) for name in names]
        if self.fields:
            from hrvqvae.config import Config, flatten

            listed += [f"--{name}" for name in flatten(Config())]
        return listed

    def add_to(self, commands: Any) -> None:
        """Add a parser to subparsers of argparse."""
        parser = commands.add_parser(
            self.name,
            help=self.about,
            description=self.about,
            epilog=self.fields and _FIELDS.format(self.fields),
            allow_abbrev=False,
        )
        parser.set_defaults(command=self, parser=parser)
        for names, settings in self.options:
            parser.add_argument(*names, **settings)
        if self.alternatives:
            exclusive = parser.add_mutually_exclusive_group()
            for names, settings in self.alternatives:
                exclusive.add_argument(*names, **settings)


class Group:
    """A command with actions, such as `data list` and `data get`."""

    def __init__(self, name: str, about: str, *actions: Command) -> None:
        self.name = name
        self.about = about
        self.actions = actions

    def add_to(self, commands: Any) -> None:
        """Add a parser to subparsers of argparse."""
        parser = commands.add_parser(self.name, help=self.about, description=self.about)
        subparsers = parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
        for action in self.actions:
            action.add_to(subparsers)


def pick(arguments: Arguments, names: str) -> dict[str, Any]:
    """Return arguments by name, as keyword arguments of a function; spaces separate the names."""
    return {name: getattr(arguments, name) for name in names.split()}


def split_fields(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split arguments into those without `--section.field VALUE`, and the values by dotted name.
    Stops at `--`.

    Raises InputError if a field has no value, or two different values.
    """
    words = list[str]()
    fields = dict[str, str]()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            words += [argument, *rest]
            break
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in name:
            words.append(argument)
            continue
        if not equals:
            if not rest or _OPTION.match(rest[0]):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0)
        set_field(fields, name, value, f"--{name}")
    return words, fields


def set_field(fields: dict[str, str], name: str, value: str, option: str) -> None:
    """Set a field to the value of an option. Raises InputError if the field has another value
    already.
    """
    if fields.get(name, value) != value:
        raise InputError(f"{option} {value} contradicts --{name} {fields[name]}: give one of them")
    fields[name] = value


def print_json(value: Any) -> None:
    """Print plain values as JSON; infinity and NaN are null."""
    print(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=2))


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(
                str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)
            ).rstrip()
        )
