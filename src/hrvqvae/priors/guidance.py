"""Guidance of samples (docs/method.md): a weight for all levels, or one per level."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from hrvqvae.utils.errors import InputError

Guidance = float | Sequence[float]
"""A weight for all levels, or one per level, coarse first; the last one counts for finer levels."""


def list_weights(guidance: Guidance) -> list[float]:
    """Return the weights of guidance. Raises InputError if one is not a number from 0 to 1000."""
    weights: list[Any] = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for weight in weights or [guidance]:
        if not isinstance(weight, Real) or not 0 <= float(weight) <= 1000:
            raise InputError(
                f"guidance is {_format(weight)}; it must be from 0 to 1000 (1 is the model's own),"
                " or several such numbers, one per level"
            )
    return weights


def parse_guidance(text: str) -> Guidance:
    """Return the guidance of a text such as "5" or "4,3,1,1". Raises InputError."""
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise InputError(f"guidance is {text!r}; it must be such as 5 or 4,3,1,1") from error
    return weights[0] if len(weights) == 1 else weights


parse_guidance.__name__ = "number, or one per level such as 4,3,1,1"  # for argparse's message


def format_guidance(guidance: Guidance) -> str:
    """Return the text that `parse_guidance` reads."""
    return ",".join(map(_format, list_weights(guidance)))


def _format(weight: object) -> str:
    return f"{weight:g}" if isinstance(weight, Real) else repr(weight)
