"""Errors that a user can cause: each is one clear line, and the command line turns it into exit code 2."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A request can't be fulfilled; the message says in one line what is wrong and what to do."""


class NonFiniteError(InputError):
    """A loss, a gradient or a latent is NaN or infinite; raised before anything is updated."""


class DamagedFileError(InputError):
    """A file on disk is not what was written: cut short, changed, or of another kind."""


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Raise InputError unless a condition on a value holds; `what` says what the value must be."""
    if not holds:
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be {what}")


@contextmanager
def explain_write_errors(what: object, advice: str = "") -> Iterator[None]:
    """Turn an OSError into an InputError that says what can't be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} can't be written ({error.strerror or error}){advice}") from error


def printable(text: object) -> str:
    """Return a text that can't control a terminal: control characters, also of a name that is not UTF-8, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(error: Exception) -> str:
    """Return the text of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def near_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return close matches for a typo, such as "kernel or stride"; "" for none."""
    return " or ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=cutoff))
