"""What processes tell each other by Python's objects, by way of the CPU; each must pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from hrvqvae.distributed.ranks import is_distributed, is_rank_zero, rank, world_size
from hrvqvae.utils.errors import InputError

T = TypeVar("T")
_CPU = torch.device("cpu")


def all_gather_object(value: T) -> list[T]:
    """What each process gives, in the order of their ranks. It must pickle."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def gather_object(value: T) -> list[T]:
    """In rank 0 what each process gives, in the order of their ranks; elsewhere only its own."""
    if not is_distributed():
        return [value]
    found: list[Any] | None = [None] * world_size() if is_rank_zero() else None
    dist.gather_object(value, found)
    return found or [value]


def all_gather_numbers(*values: float) -> list[tuple[float, ...]]:
    """The numbers of each process, in the order of their ranks; as `all_gather_object`, and fast."""
    if not is_distributed():
        return [values]
    found = torch.zeros(world_size(), len(values), dtype=torch.float64)
    found[rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return [tuple(row) for row in found.tolist()]


def on_rank_zero(call: Callable[[], T]) -> T:
    """Call in rank 0 alone; -> what it gives, in every process. It must pickle.

    Raises:
        InputError: the call raised one, which every process raises.
    """
    if not is_distributed():
        return call()
    told: list[Any] = [None, None]
    if is_rank_zero():
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
def context_on_rank_zero(resource: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """What rank 0 enters and leaves for all of them. Raises InputError in every process where it can't be entered."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(resource())

        on_rank_zero(enter)
        yield
