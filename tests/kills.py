"""Simulate kills at random moments inside this process; lock a folder in another process."""

import random
import signal
import subprocess
import sys
from contextlib import contextmanager


class Killed(BaseException):
    """Stands for the end of the process."""


def before_steps(monkeypatch, task, do):
    """Call `do` with the task and the state before each step."""
    original = task.step

    def step(self, state, batch):
        do(self, state)
        return original(self, state, batch)

    monkeypatch.setattr(task, "step", step)


def at_step(monkeypatch, task, at, do):
    """Call `do` with the state at the beginning of a step of a task."""
    before_steps(monkeypatch, task, lambda _, state: state.step == at and do(state))


def stop_at_step(monkeypatch, task, at, signum=signal.SIGTERM):
    """Send this process a signal at the beginning of a step of a task."""
    at_step(monkeypatch, task, at, lambda _: signal.raise_signal(signum))


class Kills:
    """Raises Killed before or after a call that it watches."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.left = 0

    def arm(self, moments):
        """Raise at a random moment of the next `moments`; each call has two moments."""
        self.left = self.draw.randint(1, moments)

    def _passes(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def watch(self, monkeypatch, calls):
        for owner, name in calls:
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, call):
        def wrapped(*arguments, **options):
            self._passes()
            result = call(*arguments, **options)
            self._passes()
            return result

        return wrapped


_PROGRAM = """
import sys
from pathlib import Path
from hrvqvae.utils.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def in_another_process(path):
    """Lock a folder in another process; yield its process ID."""
    command = [sys.executable, "-c", _PROGRAM, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process.pid
        finally:
            process.kill()
