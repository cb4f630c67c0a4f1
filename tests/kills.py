"""Kills at random moments inside one process, without the cost of starting anew; another process that has a lock."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for the end of the process."""


def at_step(monkeypatch: pytest.MonkeyPatch, task: type[Any], at: int, do: Callable[[Any], object]) -> None:
    """Have something done with the state at the beginning of a step of a task."""
    original = task.step

    def step(self: object, state: Any, batch: object) -> object:
        if state.step == at:
            do(state)
        return original(self, state, batch)

    monkeypatch.setattr(task, "step", step)


class Kills:
    """Ends the process before or after one of the calls that it watches."""

    def __init__(self, seed: int) -> None:
        self.draw, self.left = random.Random(seed), 0

    def arm(self, moments: int) -> None:
        """The next kill comes at one of so many moments from now, of which each call has two."""
        self.left = self.draw.randint(1, moments)

    def _passes(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def watch(self, monkeypatch: pytest.MonkeyPatch, calls: Iterable[tuple[object, str]]) -> None:
        """Watch functions, each an attribute of its owner."""
        for owner, name in calls:
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            self._passes()
            result = call(*arguments, **options)
            self._passes()
            return result

        return wrapped


_PROGRAM = """
import sys
from pathlib import Path
from hrvqvae.utils import locks, outputs
with getattr(outputs if sys.argv[2] == "create_folder" else locks, sys.argv[2])(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def in_another_process(path: Path, lock: str = "lock_folder") -> Iterator[int]:
    """Another process has the lock of a folder, or by "lock_file" of a file, until the block ends; -> its number."""
    command = [sys.executable, "-c", _PROGRAM, str(path), lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield process.pid
        finally:
            process.kill()
