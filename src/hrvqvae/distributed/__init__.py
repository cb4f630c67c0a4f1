"""Processes that train together: the rank of this one; objects, sums and means of tensors over all of them.

Every function is the identity in a process that trains alone. Where there are several, each has to call it, at the same
place. Rank 0 is the one that writes and prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from hrvqvae.utils.errors import InputError

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, 0 for the first."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_rank_zero() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@dataclass(frozen=True)
class RankSlice:
    """The share of one process in common work: the `number`-th of `count` contiguous slices."""

    number: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """Its places among `total`; the parts are disjoint, and differ by one in length at most."""
        return range(total * self.number // self.count, total * (self.number + 1) // self.count)


WHOLE = RankSlice()


def rank_slice() -> RankSlice:
    """The share of this process."""
    return RankSlice(rank(), world_size())


def gather_object(value: T) -> list[T]:
    """In rank 0 the values, which must pickle, of all processes by their ranks; elsewhere only the own one."""
    if not is_distributed():
        return [value]
    found: list[Any] | None = [None] * world_size() if is_rank_zero() else None
    dist.gather_object(value, found)
    return found or [value]


def all_gather_numbers(*values: float) -> list[tuple[float, ...]]:
    """The numbers of all processes in the order of their ranks: a fast `gather_object` to all."""
    if not is_distributed():
        return [values]
    found = torch.zeros(world_size(), len(values), dtype=torch.float64)
    found[rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return [tuple(row) for row in found.tolist()]


def on_rank_zero(call: Callable[[], T]) -> T:
    """Call in rank 0 alone; -> its result, which must pickle, in every process. An InputError is raised in all."""
    if not is_distributed():
        return call()
    told: list[Any] = [None, None]
    if is_rank_zero():
        try:
            told[0] = call()
        except InputError as error:
            told[1] = error
    dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
    found, raised = told
    if raised is not None:
        raise raised
    return found  # type: ignore[no-any-return]


@contextmanager
def context_on_rank_zero(resource: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """A context that rank 0 enters and leaves. Its InputError is raised in every process."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(resource())

        on_rank_zero(enter)
        yield


def all_reduce(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the processes of each tensor, by one all-reduce. All are of one dtype."""
    if not is_distributed():
        return list(tensors)
    together = torch.cat([one.reshape(-1) for one in tensors])
    dist.all_reduce(together)
    parts = torch.split(together, [one.numel() for one in tensors])
    return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the processes of each tensor; as `all_reduce`."""
    return [one / world_size() for one in all_reduce(tensors)] if is_distributed() else list(tensors)


class _Sum(torch.autograd.Function):
    """The sum over the processes, and the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        summed = outer[0].clone()
        dist.all_reduce(summed)
        return summed


def all_reduce_with_gradient(value: Tensor) -> Tensor:
    """The sum over the processes of a contiguous tensor, with its gradient."""
    if not is_distributed():
        return value
    found: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return found


def all_gather(vectors: Tensor) -> Tensor:
    """The entries of all processes in the order of their ranks: (N_rank, ...) -> (sum of N_rank, ...)."""
    if not is_distributed():
        return vectors
    numbers = [int(number) for (number,) in all_gather_numbers(len(vectors))]
    filled = vectors.new_zeros(max(numbers), *vectors.shape[1:])  # all_gather takes one shape
    filled[: len(vectors)] = vectors
    found = [torch.empty_like(filled) for _ in numbers]
    dist.all_gather(found, filled)
    return torch.cat([one[:number] for one, number in zip(found, numbers, strict=True)])


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0, since sums on a GPU are not the same to the bit twice."""
    if is_distributed():
        for one in tensors:
            whole = one.contiguous()
            dist.broadcast(whole, 0)
            one.copy_(whole)


def require_same(named: Mapping[str, Tensor], when: str) -> None:
    """Raises InputError where a checksum of a tensor differs between processes; `when` is such as "at step 50"."""
    if not is_distributed():
        return
    sums = torch.stack([_checksum(one) for one in named.values()]).cpu()
    both = torch.cat([sums, ~sums])  # the greatest of the complements is the complement of the least
    dist.all_reduce(both, dist.ReduceOp.MAX)
    differs = both[: len(sums)] != ~both[len(sums) :]
    if differs.any():
        names = [name for name, one in zip(named, differs.tolist(), strict=True) if one]
        raise InputError(
            f"the processes have drifted apart {when}: {names[0]} is not the same in all of them "
            f"({len(names)} of {len(named)} tensors); give every process the same kind of device"
        )


def _checksum(values: Tensor) -> Tensor:
    """The sum of a tensor's values, their bits read as whole numbers: (), int64."""
    flat = values.detach().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.view(whole).sum(dtype=torch.int64)
