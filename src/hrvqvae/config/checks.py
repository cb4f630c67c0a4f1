"""Checks of configuration values and of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hrvqvae.utils.errors import InputError


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Raises InputError where a value does not hold; `what` says what it must be."""
    if not holds:
        raise InputError(f"{name} is {value!r}; it must be {what}")


def near_names(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known names that are most like an unknown one, such as "kernel or stride"; "" where none is.

    Args:
        cutoff: how like a name must be, from 0 (not at all) to 1 (the same).
    """
    return " or ".join(difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff))
