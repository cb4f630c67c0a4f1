"""Errors that a user can cause: each is one clear line, and the command line turns it into exit
code 2.
"""

from __future__ import annotations

import difflib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
                f"{path} was made for another state of the {name}; delete it, and make it again"
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


# annotation -> its kind, and its name in messages. A kind is a type, a tuple of the types of a
# list's entries (empty for numbers, also in an array), or the name of an attribute.
_KINDS: Mapping[str, tuple[Any, str]] = {
    "None": (NoneType, "None"),
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a text"),
    "Path": (PathLike, "a path"),
    "bytes": (bytes, "bytes"),
    "Sequence[int]": ((), "a list of whole numbers"),
    "Sequence[float]": ((), "a list of numbers"),
    "Sequence[str]": ((str,), "a list of texts"),
    "Sequence[bytes]": ((bytes, bytearray), "a list of bytes"),
    "Grid": ((Integral,), "height and width"),
    "Tensor": ("is_floating_point", "a tensor"),
    "SamplingParams": ("guidance", "SamplingParams"),
}


def _is_of_kind(value: Any, name: str) -> bool:
    kind, _ = _KINDS[name]
    if isinstance(kind, str):
        return hasattr(value, kind)
    if kind == ():  # numbers, also in an array
        return getattr(value, "ndim", 1) == 1
    if isinstance(kind, tuple):
        is_list = isinstance(value, list | tuple) and (name != "Grid" or len(value) == 2)
        return is_list and all(isinstance(entry, kind) for entry in value)
    is_of_type = isinstance(value, kind)
    if kind is Integral and is_of_type:
        return not isinstance(value, bool) and abs(value) < 2**63
    return is_of_type


def check_kinds(annotations: Mapping[str, str], values: Mapping[str, object]) -> None:
    """Raise InputError for a value of another type than its annotation, if this has plain types."""
    for name, value in values.items():
        kinds = str(annotations[name]).split(" | ")
        if {*kinds} <= _KINDS.keys() and not any(_is_of_kind(value, kind) for kind in kinds):
            require(False, name, value, " or ".join(_KINDS[kind][1] for kind in kinds))


def name_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Check the types of arguments as `check_kinds`, and let errors name arguments in place of
    options: "resume=True" for "--resume".
    """
    signature = inspect.signature(function)
    annotations = function.__annotations__

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = signature.bind(*args, **kwargs).arguments
        check_kinds(annotations, {name: arguments[name] for name in arguments.keys() & annotations})
        try:
            return function(*args, **kwargs)
        except InputError as error:
            # A command in the advice, such as `hrvqvae data get NAME`, keeps its options.
            sentence, prompt, command = str(error).partition("hrvqvae ")
            # An option begins a word; `--` inside a path stays.
            sentence = re.sub(r"(?<![^\s(])--resume\b", "resume=True", sentence)
            sentence = re.sub(
                r"(?<![^\s(])--([a-z][\w.-]*)",
                lambda match: match[1].replace("-", "_"),
                sentence,
            )
            raise type(error)(f"{sentence}{prompt}{command}") from error.__cause__

    return call


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder in place of ~. Raises InputError if there is no such
    folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no home folder here; give a path without ~") from error


def printable(text: object) -> str:
    """Escape unprintable characters, such as control codes of a terminal and bytes of a name that
    is not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(error: Exception) -> str:
    """Return the text of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def near_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return up to three names close to a misspelt name, joined by "or"; "" if none is close."""
    return " or ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=cutoff))
