"""Kills at random moments inside one process: what a power cut leaves, without the cost of starting anew."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest


class Killed(BaseException):
    """Stands for the end of the process."""


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
