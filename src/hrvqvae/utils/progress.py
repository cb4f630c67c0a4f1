"""Progress of long tasks: a bar of tqdm, or lines every 15 seconds where there is no terminal.

Notices go to the logger "hrvqvae". If its level is INFO, as in the command line, progress is shown
on standard error. Standard output is for results alone.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

LOG = logging.getLogger("hrvqvae")
LINE_SECONDS = 15.0

T = TypeVar("T")
Advance = Callable[[int], Any]
"""Called with the number of parts done since the last call."""
Say = Callable[[str], None]
"""Prints a message."""


def note(line: str) -> None:
    """Log a notice."""
    LOG.warning("%s", line)


def waiting(activity: str) -> None:
    """Log an activity that begins now and takes some seconds."""
    LOG.info("%s ...", activity)


def say(line: str) -> None:
    """Print a line, if it can be written."""
    with suppress(OSError, ValueError):  # the terminal may be closed
        print(line, flush=True)


note_once = cache(note)
"""Log a notice, but only once in each process."""


class _Bar(tqdm):  # type: ignore[misc]  # tqdm comes without types
    """A bar without tqdm's thread, which would disturb processes that fork."""

    monitor_interval = 0


_Bar.set_lock(threading.RLock())


class Meter:
    """Progress of a training: a bar on a terminal, otherwise lines every `LINE_SECONDS`."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        self._bar: Any = None
        if stream is not None and stream.isatty():
            form = "{desc}  {bar}  {postfix}"
            self._bar = _Bar(total=1.0, file=stream, leave=False, bar_format=form)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            with suppress(OSError):  # the terminal may be closed
                self._bar.close()

    def show(self, head: str, fraction: float, text: str, *, last: bool = False) -> None:
        """Set the bar to a fraction from 0 to 1. Without a bar, print a line if `LINE_SECONDS` have
        passed since the last line, or if `last` is true.
        """
        now = time.monotonic()
        if self._bar is not None:
            self._bar.n = fraction
            self._bar.desc = head
            self._bar.postfix = text
            with suppress(OSError):
                self._bar.refresh()
        elif now - self._last_line_at >= LINE_SECONDS or last:
            self._last_line_at = now
            self.say(f"{head}  {text}")

    def say(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        with suppress(OSError, ValueError):  # ValueError: a closed stream
            if self._bar is not None:
                _Bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)


@contextmanager
def task(title: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Show the progress of a task.

    Args:
        title: Name of the task.
        total: Number of parts of the task.
        unit: Name of the parts.
    """
    if sys.stderr is None or not LOG.isEnabledFor(logging.INFO):
        yield lambda parts: None
        return

    # without a terminal, a short task shows nothing
    delay = 0.0 if sys.stderr.isatty() else LINE_SECONDS
    with _Bar(
        total=total,
        desc=title,
        unit=f" {unit}",
        file=sys.stderr,
        leave=False,
        delay=delay,
        mininterval=max(0.1, delay),
        miniters=1,
    ) as bar:
        yield bar.update


def tracked(items: Iterable[T], title: str, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """Yield the items, and show the progress. An item of `size(item)` images is done when the next
    is requested.
    """
    with task(title, total) as advance:
        for item in items:
            yield item
            advance(size(item))
