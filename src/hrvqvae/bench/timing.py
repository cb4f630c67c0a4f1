"""Timing a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

Timing = dict[str, Any]
"""What was timed and how long it took, by name: a row of a bench's table."""


def median_seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """Median seconds of a call, after a first one that does not count: it allocates, and loads compiled code."""
    call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return median(times)


def side_by_side(calls: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each call, all of them by turns, so that a busy machine meets each alike.

    As in `median_seconds`, a first round does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: median(spent[1:]) for name, spent in times.items()}
