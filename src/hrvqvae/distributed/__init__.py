"""What processes that train together ask each other: which one this is, objects, sums and means of tensors.

Every function is the identity in a process that trains alone, so nothing else asks whether there are several. Where
there are, every process has to call it, at the same place. Rank 0 is the one that writes and prints.
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


class DriftError(InputError):
    """Processes that must hold the same values do not."""


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
class Part:
    """The share of one process in what all of them do: the `number`-th of `count` contiguous slices."""

    number: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """Its places among `total` places; those of all numbers are disjoint, and differ by one in length at most."""
        return range(total * self.number // self.count, total * (self.number + 1) // self.count)


WHOLE = Part()


def part() -> Part:
    """The share of this process."""
    return Part(rank(), world_size())


def require_equal_parts(batch_size: int) -> None:
    """Raises InputError where a batch can't be divided into parts of one size; sizes that can be are named."""
    count = world_size()
    if batch_size % count:
        below = batch_size - batch_size % count
        sizes = " or ".join(str(size) for size in (below, below + count) if size)
        raise InputError(
            f"{count} processes can't share a batch of {batch_size} equally; "
            f"choose a batch size of {sizes}, or another number of processes"
        )


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
    dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
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


def all_reduce(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor as the sum over the processes, by one all-reduce. The same shapes in every process, one dtype."""
    if not is_distributed():
        return list(tensors)
    together = torch.cat([one.reshape(-1) for one in tensors])
    dist.all_reduce(together)
    parts = torch.split(together, [one.numel() for one in tensors])
    return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor as the mean over the processes; as `all_reduce`."""
    return [one / world_size() for one in all_reduce(tensors)] if is_distributed() else list(tensors)


def all_reduce_mean_in_place(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with their mean over the processes, by one all-reduce. They keep their memory format."""
    if is_distributed():
        for one, mean in zip(tensors, all_reduce_mean(tensors), strict=True):
            one.copy_(mean)


class _Sum(torch.autograd.Function):
    """The sum over the processes; the gradient of every process's losses by what each of them gave."""

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
    counts = [torch.zeros(1, dtype=torch.long, device=vectors.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(vectors)], device=vectors.device))
    numbers = [int(count) for count in counts]
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
    """Compare a checksum of each named tensor over the processes.

    Args:
        when: for the message, such as "at step 50".

    Raises:
        DriftError: one differs; the first is named.
    """
    if not is_distributed():
        return
    sums = torch.stack([_checksum(one) for one in named.values()]).cpu()
    both = torch.cat([sums, ~sums])  # the greatest of the complements is the complement of the least
    dist.all_reduce(both, dist.ReduceOp.MAX)
    differs = both[: len(sums)] != ~both[len(sums) :]
    if differs.any():
        names = [name for name, one in zip(named, differs.tolist(), strict=True) if one]
        raise DriftError(
            f"the processes have drifted apart {when}: {names[0]} is not the same in all of them "
            f"({len(names)} of {len(named)} tensors); give every process the same kind of device"
        )


def _checksum(values: Tensor) -> Tensor:
    """The sum of a tensor's values, their bits read as whole numbers: (), int64."""
    flat = values.detach().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.view(whole).sum(dtype=torch.int64)
