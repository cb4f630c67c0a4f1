"""What processes tell each other by Python's objects, by way of the CPU; each must pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from hrvqvae.errors import InputError
from hrvqvae.processes.ranks import first, rank, several, world

T = TypeVar("T")
_CPU = torch.device("cpu")


def everywhere(value: T) -> list[T]:
    """What each process gives, in the order of their ranks. It must pickle."""
    if not several():
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def to_first(value: T) -> list[T]:
    """In rank 0 what each process gives, in the order of their ranks; elsewhere only its own."""
    if not several():
        return [value]
    found: list[Any] | None = [None] * world() if first() else None
    dist.gather_object(value, found)
    return found or [value]


def numbers(*values: float) -> list[tuple[float, ...]]:
    """The numbers of each process, in the order of their ranks; as `everywhere`, and fast."""
    if not several():
        return [values]
    found = torch.zeros(world(), len(values), dtype=torch.float64)
    found[rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return [tuple(row) for row in found.tolist()]


def on_first(call: Callable[[], T]) -> T:
    """Call in rank 0 alone; -> what it gives, in every process. It must pickle.

    Raises:
        InputError: the call raised one, which every process raises.
    """
    if not several():
        return call()
    told: list[Any] = [None, None]
    if first():
        try:
            told[0] = call()
        except InputError as error:
            told[1] = error
    dist.broadcast_object_list(told, 0, device=_CPU)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


@contextmanager
def held_by_first(resource: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """What rank 0 enters and leaves for all of them. Raises InputError in every process where it can't be entered."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(resource())

        on_first(enter)
        yield
