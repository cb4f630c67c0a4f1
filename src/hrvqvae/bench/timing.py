"""Timing a call."""

from __future__ import annotations

import time
from collections.abc import Callable
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
