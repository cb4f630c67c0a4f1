"""Completion of commands, options, files and names in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hrvqvae.cli.console import Arguments, Group, command

SHELLS = ("bash", "zsh")
_FOLDERS = ("DIR",)
_FILES = ("MODEL", "RUN")


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Arguments of all commands below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell runs to complete the commands of a parser, whose arguments are told what completes them.

    Args:
        parser: of the whole command line; an argument's metavar says what it takes.
        shell: one of `SHELLS`.
    """
    import shtab

    from hrvqvae.config import presets
    from hrvqvae.config.registry import DATASETS

    names = {"PRESET": list(presets.names()), "DATASET": list(DATASETS)}
    for action in _actions(parser):
        if action.metavar in names:
            action.choices = names[action.metavar]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY
        elif action.type is Path or action.metavar in _FILES:
            action.complete = shtab.FILE
    return shtab.complete(parser, shell)


def add(commands: Group, parser: argparse.ArgumentParser) -> None:
    """completion, of the whole command line that `parser` reads."""

    def call(arguments: Arguments) -> int:
        print(script(parser, arguments.shell))
        return 0

    about = 'print a script by which a shell completes commands: eval "$(hrvqvae completion bash)"'
    completion = command(commands, "completion", about, call)
    completion.add_argument("shell", choices=SHELLS)
