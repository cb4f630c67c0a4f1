"""Numbers as people read them: with their nouns, errors in decibels, times."""

from __future__ import annotations

import math


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2,000 images". The noun is one whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def psnr(mse: float) -> float:
    """In dB, for a mean squared error of values in [0, 1]; infinite where the error is 0."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def clock(seconds: float) -> str:
    """Time as h:mm:ss; what is below zero is none."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
