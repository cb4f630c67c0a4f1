"""Streams of random numbers, each for one purpose."""

from __future__ import annotations

import zlib

import numpy as np


def stream(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on its purpose and numbers alone.

    The purpose and the count of numbers are part of the seed: numpy takes (seed, epoch) and (seed, epoch, 0) for one.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), len(numbers), *numbers))
