"""Lines on standard error that are no results."""

from __future__ import annotations

import sys
from functools import cache


def waiting(what: str) -> None:
    """Say on stderr what takes seconds from here on, if it is a terminal: programs and log files need no such line."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)


@cache
def told_once(line: str) -> None:
    """Say on stderr what a person should know of a result, once in a process, however often it comes up."""
    if sys.stderr is not None:
        print(f"hrvqvae: {line}", file=sys.stderr, flush=True)
