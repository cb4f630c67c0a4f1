"""Progress of long work: a bar on a terminal, a line now and then elsewhere, both with the rate and the time left.

The logger "hrvqvae" carries the lines that are no results. At level INFO, as the command line sets it, tasks are shown
on standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TextIO, TypeVar

from hrvqvae.utils.quantities import clock

if TYPE_CHECKING:
    from rich.progress import Progress

LOG = logging.getLogger("hrvqvae")
LINE_SECONDS, SAY_AFTER_SECONDS = 15.0, 3.0
_REFRESH_SECONDS = 0.1
_running: list[str] = []  # titles of the tasks that are shown at this moment: one at most

T = TypeVar("T")
Advance = Callable[[int], None]
"""Takes the number of parts done since the last call."""


def note(line: str) -> None:
    """Log a notice."""
    LOG.warning("%s", line)


def waiting(what: str) -> None:
    """Log what begins now and takes seconds."""
    LOG.info("%s ...", what)


@cache
def told_once(line: str) -> None:
    """Log a notice once in a process."""
    LOG.warning("%s", line)


class Meter:
    """A bar on a terminal, by rich (the extra `train`); else a line every `LINE_SECONDS`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, time.monotonic()
        self._bar: Progress | None = None
        if stream.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            # A thread that refreshes it would take turns with those that compute.
            self._bar = Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=False)
            self._bar.add_task("", total=1.0, text="")

    def __enter__(self) -> Meter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, head: str, fraction: float, text: str, *, last: bool = False) -> None:
        """Show a fraction, 0 to 1, with the text before and after the bar; the last one without waiting."""
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=head, completed=fraction, text=text, refresh=True)
        elif now - self._last >= LINE_SECONDS or last:
            self._last = now
            self.say(f"{head}  {text}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


@contextmanager
def task(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Advance]:
    """Show work of `total` parts, of which `done` are done and not in the rate, unless another task is shown."""
    if _running or not LOG.isEnabledFor(logging.INFO):
        yield lambda parts: None
        return
    begun, shown_at, count = time.monotonic(), 0.0, 0
    with Meter(sys.stderr) as meter:

        def advance(parts: int) -> None:
            nonlocal count, shown_at
            count += parts
            now = time.monotonic()
            if now - shown_at < _REFRESH_SECONDS:
                return
            shown_at = now
            rate, made = count / max(now - begun, 1e-9), done + count
            left = f"{clock((total - made) / rate)} left" if count else ""
            per = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            text = f"{made:,} of {total:,} {unit}  {per} {unit}/s  {left}"
            meter.show(title, made / total if total else 1.0, text)

        def say_title() -> None:
            if not count and not sys.stderr.isatty():
                meter.say(f"{title} ...")

        waits = threading.Timer(SAY_AFTER_SECONDS, say_title)
        waits.daemon = True
        waits.start()
        _running.append(title)
        try:
            yield advance
        finally:
            waits.cancel()
            _running.remove(title)


def tracked(items: Iterable[T], title: str, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """Yield the items as a task. Each counts for `size` parts, done when the next item is asked for."""
    with task(title, total) as advance:
        for item in items:
            yield item
            advance(size(item))
