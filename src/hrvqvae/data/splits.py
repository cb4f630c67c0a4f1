"""How names are divided into train and test, and the words that name a split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

TRAIN = "train"
HELD_OUT = ("test", "val", "validation")  # names of a given test split, in the order in which they are taken
WORDS = (TRAIN, *HELD_OUT)


def _is_test(name: str, test_fraction: float) -> bool:
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return draw < test_fraction * 2**64


def held_out(names: Iterable[str], test_fraction: float) -> NDArray[np.bool_]:
    """Which of the names, in their order, are for test: (N,).

    A hash of each name alone decides, so that a name that is added later moves no other. Of two names, one is each.
    """
    chosen = np.fromiter((_is_test(name, test_fraction) for name in names), np.bool_)
    if len(chosen) > 1 and not chosen.any():
        chosen[-1] = True
    if len(chosen) > 1 and chosen.all():
        chosen[0] = False
    return chosen


def split_names(names: Sequence[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """(train, test), each sorted, as `held_out` divides the sorted names."""
    ordered = sorted(names)
    test = held_out(ordered, test_fraction)
    train, tested = ([ordered[place] for place in np.flatnonzero(part)] for part in (~test, test))
    return train, tested


def given_split(words: Collection[str]) -> tuple[str, str] | None:
    """(word of the train split, word of the test split) of a given split; None where one of the two is missing."""
    test = next((word for word in HELD_OUT if word in words), None)
    return (TRAIN, test) if TRAIN in words and test is not None else None
