"""The command line: parse, call, print.

A module for each group of commands. Nothing heavy is imported before a command is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hrvqvae.cli import (
    catalogue,
    compare,
    completion,
    doctor,
    figure,
    files,
    generate,
    play,
    share,
    tokens,
    train,
    trained,
)
from hrvqvae.cli.console import Parser, split_fields
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.extras import extra_of
from hrvqvae.utils.progress import shown


def _parser() -> Parser:
    parser = Parser(prog="hrvqvae", description="Hierarchical residual vector quantization of images.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for module in (catalogue, train, trained, files, tokens, generate, play, share, compare, figure, doctor):
        module.add(commands)
    completion.add(commands, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; -> exit code. Whatever a user can cause is one line on stderr and exit code 2."""
    try:
        others, fields = split_fields(sys.argv[1:] if argv is None else argv)
        arguments, unknown = _parser().parse_known_args(others)
        unknown += [f"--{name}" for name in fields if not arguments.takes_fields]
        if unknown:
            raise InputError(f"unknown argument {unknown[0]!r} (see {arguments.prog} --help)")
        arguments.fields = fields
        with shown(os.environ.get("RANK", "0") == "0"):  # of processes that train together, the first
            code: int = arguments.call(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"hrvqvae: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        print(f"hrvqvae: this needs {error.name}: pip install 'hrvqvae[{extra}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"hrvqvae: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hrvqvae: interrupted", file=sys.stderr)
        return 130
