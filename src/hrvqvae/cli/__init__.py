"""The command line: parse, call, print. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from hrvqvae.cli import catalogue, files, share, train, trained
from hrvqvae.cli.console import Parser, split_fields
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import LOG

_RENAMED = {
    "tables": "fit-entropy-model", "train-judge": "train-classifier", "train-prefixes": "train-progressive",
    "--start-from": "--init-from", "--rate-weight": "--lmbda", "--priors": "--prior-steps N",
}  # fmt: skip


def _parser() -> Parser:
    parser = Parser(prog="hrvqvae", description="Hierarchical residual vector quantization of images.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for module in (catalogue, train, trained, files, share):
        module.add(commands)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run a command; -> exit code. Raises InputError."""
    others, fields = split_fields(argv)
    if others and others[0] in _RENAMED:
        raise InputError(f"the command {others[0]} has another name: {_RENAMED[others[0]]}")
    arguments, unknown = _parser().parse_known_args(others)
    unknown += [f"--{name}" for name in fields if not arguments.takes_fields]
    if unknown:
        new = _RENAMED.get(unknown[0].partition("=")[0])
        hint = f"it is called {new} now" if new else f"see {arguments.prog} --help"
        raise InputError(f"unknown argument {unknown[0]!r} ({hint})")
    arguments.fields = fields
    code: int = arguments.call(arguments)
    sys.stdout.flush()
    return code


def _is_out_of_memory(error: Exception) -> bool:
    """Of Python and numpy, of torch on a GPU, or of torch on a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; -> exit code. An error that a user can cause is one line on stderr and exit code 2."""
    handler, level = logging.StreamHandler(), LOG.level
    handler.setFormatter(logging.Formatter("hrvqvae: %(message)s"))
    handler.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    LOG.addHandler(handler)
    # Of processes that train together, the first logs.
    LOG.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        LOG.error("%s", error)
        return 2
    except ModuleNotFoundError as error:
        from hrvqvae.utils.extras import extra_of

        extra = extra_of(error.name or "")
        if not extra:
            raise
        LOG.error("this needs %s: pip install 'hrvqvae[%s]'", error.name, extra)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        LOG.error(
            "out of memory: take a smaller batch (--training.batch_size, --prior.training.batch_size of priors) in a "
            "new run, smaller images, or fewer workers (--data.workers)"
        )
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        LOG.error("%s%s", f"{error.filename}: " if error.filename else "", error.strerror or error)
        return 2
    except KeyboardInterrupt:
        LOG.error("interrupted")
        return 130
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
