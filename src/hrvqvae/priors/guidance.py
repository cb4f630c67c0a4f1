"""Guidance of samples (docs/method.md): a weight for all positions, or from first to last."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from hrvqvae.utils.errors import InputError

Guidance = float | Sequence[float]
"""A weight for all positions, or those of the first and of the last position."""


def list_weights(guidance: Guidance) -> list[float]:
    """Return the one or two weights of guidance. Raises InputError if there are more, or one is not
    a number from 0 to 1000.
    """
    weights: list[Any] = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    are_valid = all(isinstance(weight, Real) and 0 <= float(weight) <= 1000 for weight in weights)
    if not are_valid or len(weights) not in (1, 2):
        raise InputError(
            f"guidance is {guidance!r}; it must be from 0 to 1000 (1 is the model's own), or two"
            " such numbers, for the first and the last position"
        )
    return weights


def parse_guidance(text: str) -> Guidance:
    """Return the guidance of a text such as "3" or "1,5". Raises InputError."""
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise InputError(f"guidance is {text!r}; it must be such as 3 or 1,5") from error
    return weights[0] if len(weights) == 1 else weights


parse_guidance.__name__ = "number, or first and last such as 1,5"  # for argparse's message


def format_guidance(guidance: Guidance) -> str:
    """Return the text that `parse_guidance` reads."""
    return ",".join(f"{weight:g}" for weight in list_weights(guidance))
