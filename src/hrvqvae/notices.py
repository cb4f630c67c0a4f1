"""Lines for a person who waits at a terminal."""

from __future__ import annotations

import sys


def waiting(what: str) -> None:
    """Say on stderr what takes seconds from here on, if it is a terminal: programs and log files need no such line."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
