"""Checks of configuration values."""

from __future__ import annotations

from hrvqvae.errors import InputError


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Raises InputError where a value does not hold; `what` says what it must be."""
    if not holds:
        raise InputError(f"{name} is {value!r}; it must be {what}")
