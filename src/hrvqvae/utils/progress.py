"""Progress of long tasks: a bar of tqdm, or lines every 15 seconds where there is no terminal.

Notices go to the logger "hrvqvae". If its level is INFO, as in the command line, progress is shown
on standard error. Standard output is for results alone.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TextIO, TypeVar

from tqdm import tqdm

LOG = logging.getLogger("hrvqvae")
LINE_SECONDS = 15.0

T = TypeVar("T")
Say = Callable[[str], None]
"""Prints a message."""


def note(line: str) -> None:
    """Log a notice."""
    LOG.warning("%s", line)


note_once = cache(note)
"""Log a notice, but only once in each process."""


def waiting(activity: str) -> None:
    """Log an activity that begins now and takes some seconds."""
    LOG.info("%s ...", activity)


def say(line: str) -> None:
    """Print a line at once, also where the output is a file."""
    with suppress(OSError):  # a training outlives its terminal
        print(line, flush=True)


class _Bar(tqdm):  # type: ignore[misc]  # tqdm comes without types
    """A bar without tqdm's thread, which would disturb processes that fork."""

    monitor_interval = 0


_Bar.set_lock(threading.RLock())


class Meter:
    """Progress of a training: a bar on a terminal, otherwise lines every `LINE_SECONDS`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        # with disable=None, tqdm shows the bar on a terminal only
        form = "{desc}  {bar}  {postfix}"
        self._bar = _Bar(total=1.0, file=stream, leave=False, bar_format=form, disable=None)

    def close(self) -> None:
        """Remove the bar."""
        with suppress(OSError):
            self._bar.close()

    def show(self, head: str, fraction: float, text: str, *, last: bool = False) -> None:
        """Set the bar to a fraction from 0 to 1. Without a bar, print a line if `LINE_SECONDS` have
        passed since the last line, or if `last` is true.
        """
        now = time.monotonic()
        if not self._bar.disable:
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
        with suppress(OSError), _Bar.external_write_mode(file=self._stream):
            print(text, file=self._stream, flush=True)


def tracked(items: Iterable[T], title: str, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """Yield the items, and show the progress. An item is `size(item)` of `total` parts, which are
    done when the next item is requested.
    """
    # without a terminal, a short task shows nothing
    interval = 0.1 if sys.stderr.isatty() else LINE_SECONDS
    with _Bar(
        total=total,
        desc=title,
        unit="",
        file=sys.stderr,
        leave=False,
        disable=not LOG.isEnabledFor(logging.INFO),
        delay=interval,
        mininterval=interval,
        miniters=1,
    ) as bar:
        for item in items:
            yield item
            bar.update(size(item))
