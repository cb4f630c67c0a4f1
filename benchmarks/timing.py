"""Timing a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Timing = dict[str, Any]
"""What was timed and how long it took, by name: a row of a bench's table."""

CPU = torch.device("cpu")


def seconds(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of a call until its device has done the work: a GPU is waited for before and after."""
    _wait(device)
    begun = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], rounds: int = 5, device: torch.device = CPU) -> float:
    """Median seconds of a call, after a first one that does not count: it allocates, and loads compiled code."""
    return side_by_side({"": call}, rounds, device)[""]


def side_by_side(
    calls: Mapping[str, Callable[[], object]], rounds: int = 5, device: torch.device = CPU
) -> dict[str, float]:
    """Median seconds of each call, all of them by turns, so that a busy machine meets each alike.

    As in `median_seconds`, a first round does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: median(spent[1:]) for name, spent in times.items()}
