"""Progress of long tasks: a bar on a terminal, otherwise a line every 15 seconds, with the rate and
the time left.

Notices go to the logger "hrvqvae". If its level is INFO, as in the command line, progress is shown
on standard error. Standard output is for results alone.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, TextIO, TypeVar

from hrvqvae.utils.quantities import clock

if TYPE_CHECKING:
    from rich.progress import Progress

LOG = logging.getLogger("hrvqvae")
LINE_SECONDS = 15.0
SAY_AFTER_SECONDS = 3.0
_REFRESH_SECONDS = 0.1
_running: list[str] = []  # title of the task that is shown now, if any

T = TypeVar("T")
Advance = Callable[[int], None]
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


class Meter:
    """Progress as a bar of rich (the extra `train`) or lines every `LINE_SECONDS`; what can't be
    written is lost.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        self._bar: Progress | None = None
        if stream is not None and stream.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            # No automatic refresh: its thread would take time from the threads that compute.
            self._bar = Progress(
                *columns, console=Console(file=stream), transient=True, auto_refresh=False
            )
            self._bar.add_task("", total=1.0, text="")
            self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            with suppress(OSError):
                self._bar.stop()

    def show(self, head: str, fraction: float, text: str, *, last: bool = False) -> None:
        """Set the bar to a fraction from 0 to 1. Without a bar, print a line if `LINE_SECONDS` have
        passed since the last line, or if `last` is true.
        """
        now = time.monotonic()
        if self._bar:
            with suppress(OSError):
                self._bar.update(
                    self._bar.task_ids[0],
                    description=head,
                    completed=fraction,
                    text=text,
                    refresh=True,
                )
        elif now - self._last_line_at >= LINE_SECONDS or last:
            self._last_line_at = now
            self.say(f"{head}  {text}")

    def say(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        with suppress(OSError, ValueError):  # ValueError: a closed stream
            if self._bar:
                self._bar.console.print(text, highlight=False)
            else:
                print(text, file=self._stream, flush=True)


@contextmanager
def task(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Advance]:
    """Show the progress of a task, unless another task is shown.

    Args:
        title: Name of the task.
        total: Number of parts of the task.
        unit: Name of the parts.
        done: Number of parts that an earlier call did; the rate leaves them out.
    """
    if _running or not LOG.isEnabledFor(logging.INFO):
        yield lambda parts: None
        return
    started_at = time.monotonic()
    shown_at = 0.0
    count = 0
    with closing(Meter(sys.stderr)) as meter:

        def advance(parts: int) -> None:
            nonlocal count, shown_at
            count += parts
            now = time.monotonic()
            if now - shown_at < _REFRESH_SECONDS:
                return
            shown_at = now
            rate = count / max(now - started_at, 1e-9)
            finished = done + count
            left = f"{clock((total - finished) / rate)} left" if count else ""
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            text = f"{finished:,} of {total:,} {unit}  {speed} {unit}/s  {left}"
            meter.show(title, finished / total if total else 1.0, text)

        # A task may take long until its first parts are done. A log names it meanwhile.
        def say_title() -> None:
            is_terminal = sys.stderr and sys.stderr.isatty()
            if not (count or is_terminal):
                meter.say(f"{title} ...")

        timer = threading.Timer(SAY_AFTER_SECONDS, say_title)
        timer.daemon = True
        timer.start()
        _running.append(title)
        try:
            yield advance
        finally:
            timer.cancel()
            _running.remove(title)


def tracked(items: Iterable[T], title: str, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """Yield the items, and show the progress. An item of `size(item)` images is done when the next
    is requested.
    """
    with task(title, total) as advance:
        for item in items:
            yield item
            advance(size(item))
