"""The processes that decode images: how they take signals, and how their end is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hrvqvae.utils.errors import InputError


def quiet_worker(_: int) -> None:
    """A signal to the whole process group is the main process's to answer: it ends its workers when it has saved."""

    def once(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raises InputError where a worker was ended from outside, for which torch has a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that decodes images was ended from outside, perhaps for want of memory; "
            "try fewer with --data.workers 0"
        ) from error


def at_most_cores(workers: int) -> int:
    """So many processes, but no more than this one may use cores: more only take turns, and torch warns of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cores)
