"""Errors that a user can cause: each is one clear line, and the command line turns it into exit
code 2.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A request can't be fulfilled; one line says what is wrong and what to do. Base of the other
    errors.
    """


class NonFiniteError(InputError):
    """A loss, a gradient or a latent is NaN or infinite; raised before anything is updated."""


class DamagedFileError(InputError):
    """A file on disk is not what was written: cut short, changed, or of another kind."""


def require(holds: bool, name: str, value: object, requirement: str) -> None:
    """Raise InputError unless `holds`; the message gives the value of `name` and the requirement in
    words.
    """
    if not holds:
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be {requirement}")


def require_made_for(path: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise InputError if a file or folder was made for something else than is there now.

    Args:
        path: The file or folder.
        made: What it was made for, such as the digest of the autoencoder, by name.
        wanted: What is there now, by the same names.
    """
    for name, value in wanted.items():
        if made.get(name) != value:
            raise InputError(
                f"{path} was made for another state of the {name}; move it away, and make it again"
            )


@contextmanager
def explain_write_errors(target: object, advice: str = "") -> Iterator[None]:
    """Turn an OSError into an InputError with the target that can't be written, the reason and
    advice.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target} can't be written ({error.strerror or error}){advice}"
        ) from error


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder in place of ~, or the same path if there is no home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib would raise RuntimeError


def near_names(name: str, names: Iterable[str]) -> str:
    """Return up to three names close to a misspelt name, joined by "or"; "" if none is close."""
    return " or ".join(difflib.get_close_matches(name, list(names)))
