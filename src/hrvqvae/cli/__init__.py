"""The command line: parse, call, print. Heavy modules are imported by the command that needs
them.
"""

import argparse
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType

from hrvqvae.cli import catalogue, files, share, train, trained
from hrvqvae.cli.console import Command, Parser, split_fields
from hrvqvae.utils.errors import InputError, near_names
from hrvqvae.utils.progress import LOG
from hrvqvae.version import __version__

GROUPS = {
    "Use a model": "sample complete reconstruct plant play",
    "Train": "presets data train train-prior train-decoder demo",
    "Measure": "evaluate",
    "Files of codes": "compress decompress tokenize",
    "Share": "export",
}
"""Commands by purpose, in the order of `hrvqvae --help`."""


def _parser() -> Parser:
    parser = Parser(
        prog="hrvqvae",
        usage="hrvqvae COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Compress images to discrete codes by a tree of codebooks, and draw new ones from the"
            " codes."
        ),
    )
    parser.add_argument("--version", action="version", version=f"hrvqvae {__version__}")
    commands = parser.add_subparsers(
        prog="hrvqvae",
        metavar="COMMAND",
        required=True,
        help=argparse.SUPPRESS,
        parser_class=Parser,
    )
    for module in (catalogue, train, trained, files, share):
        for entry in module.COMMANDS:
            entry.add_to(commands)
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:18} {commands.choices[name].description}" for name in names.split()]
        lines.append("")
    parser.epilog = "\n".join([*lines, "hrvqvae COMMAND --help shows the options of a command."])
    return parser


def run(argv: Sequence[str]) -> int:
    """Run a command and return its exit code. Raises InputError."""
    words, fields = split_fields(argv)
    if not argv:
        _parser().print_help(sys.stderr)
        return 2
    arguments, unknown = _parser().parse_known_args(words)
    parser: Parser = arguments.parser
    command: Command = arguments.command
    if unknown:  # perhaps an argument after an option: `export mnist --compact small`
        # the words after the command; `prog` is "hrvqvae export" or "hrvqvae data get"
        rest = words[len(parser.prog.split()) - 1 :]
        arguments, unknown = parser.parse_known_intermixed_args(rest)
    unknown += [f"--{name}" for name in fields if not command.fields]
    if unknown:
        near = near_names(unknown[0], command.list_options())
        hint = f"did you mean {near}? " if near else ""
        raise InputError(f"unknown argument {unknown[0]!r}: {hint}{parser.see_help}")
    arguments.fields = fields
    code = command.call(arguments)
    sys.stdout.flush()
    return code or 0


def _find_extra(module: str) -> str:
    """Return the extra that installs a module, such as "figures" for "matplotlib.figure"; "" if no
    extra does.
    """
    package = re.sub("[-_]", "[-_]", module.partition(".")[0])
    for requirement in metadata.requires("hrvqvae") or []:
        # such as: onnx>=1.18; extra == "onnx"
        if found := re.match(rf"{package}\b[^-].*extra == .([\w-]+)", requirement):
            return found[1]
    return ""


def _explain(error: Exception) -> str:
    """Return the one-line message of an error that a user can cause; "" for any other error."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        extra = _find_extra(error.name or "")
        return f"this needs {error.name}: pip install '.[{extra}]'" if extra else ""
    names = ("MemoryError", "OutOfMemoryError")
    if type(error).__name__ in names or "DefaultCPUAllocator" in str(error):
        return (
            "out of memory: take a smaller batch (--training.batch_size,"
            " --prior.training.batch_size of priors, --generation.training.batch_size of"
            " train-decoder) in a new run, smaller images, or fewer workers (--data.workers)"
        )
    if isinstance(error, OSError):
        causes = {
            FileNotFoundError: "there is no such file",
            IsADirectoryError: "is a folder, not a file",
        }
        cause = causes.get(type(error), error.strerror or error)
        return f"{error.filename!r}: {cause}" if error.filename else f"{cause}"
    return ""


@contextmanager
def _end_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as an error would, so that it deletes its temporary
    files.
    """

    def end(signum: int, _: FrameType | None) -> None:
        for ignored in signals:  # until the files are deleted
            signal.signal(ignored, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows: one
    signals = [signum for signum in known if signum and signal.getsignal(signum) is signal.SIG_DFL]
    if (
        threading.current_thread() is not threading.main_thread()
        or os.environ.get("WORLD_SIZE", "1") != "1"
    ):
        # of processes that train together, one may wait for another in a call that no handler
        # interrupts
        signals = []
    for signum in signals:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in signals:
            signal.signal(signum, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Logs an error that a user can cause as one line, and
    returns 2.
    """
    # A closed stream is None, and an output file could get its file descriptor.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # notices about its own cache
    handler = logging.StreamHandler()
    level = LOG.level
    handler.setFormatter(logging.Formatter("hrvqvae: %(message)s"))
    # A name that the encoding can't express must not end a command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    LOG.addHandler(handler)
    # Of several processes that train together, only the first logs progress and notices.
    LOG.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        with _end_cleanly():
            return run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not (line := _explain(error)):
            raise
        LOG.error("%s", line)
        return 2
    except KeyboardInterrupt:
        LOG.error("interrupted")
        return 130
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
