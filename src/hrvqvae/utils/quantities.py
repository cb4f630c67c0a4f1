"""Counts with nouns, as text for people; squared errors in decibels."""

import math


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, whose plural ends in s: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def psnr(mse: float) -> float:
    """Return the PSNR in dB of a mean squared error of values in [0, 1]; infinity for 0."""
    return -10 * math.log10(mse) if mse > 0 else math.inf
