"""Processes that train together: the rank of this one; objects, sums and means of tensors over all of them.

Every function is the identity in a process that trains alone. Where there are several, each has to call it, at the same
place. Rank 0 is the one that writes and prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from hrvqvae.utils.errors import InputError

T = TypeVar("T")


class GroupHandle:
    """A process group, or all processes (None), in a module that is copied or pickled: copies have the same group."""

    def __init__(self, group: Any = None) -> None:
        self.group = group

    def __deepcopy__(self, _: object) -> GroupHandle:
        return self

    def __reduce__(self) -> Any:
        return GroupHandle, ()  # a group means nothing in another process


def is_distributed(group: Any = None) -> bool:
    """Return whether this process is one of several, of a process group or of all."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _group_on(device: torch.device, group: Any) -> Any:
    """Return the group, or a gloo group of the same processes if the group has no backend for the device."""
    if device.type in str(dist.get_backend_config(group)):
        return group
    return _gloo_twin(group or dist.group.WORLD)


@cache
def _gloo_twin(group: Any) -> Any:
    ranks = dist.get_process_group_ranks(group)
    return dist.new_group(ranks, backend="gloo", use_local_synchronization=True)


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
    dist.all_reduce(found, group=_group_on(found.device, None))
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


def all_reduce(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """Return the sum over the processes of each tensor, by one all-reduce. All have one dtype."""
    if not is_distributed(group):
        return list(tensors)
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(together, group=_group_on(together.device, group))
    sums = torch.split(together, [tensor.numel() for tensor in tensors])
    return [summed.view_as(tensor) for summed, tensor in zip(sums, tensors, strict=True)]


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the processes of each tensor; as `all_reduce`."""
    return [one / world_size() for one in all_reduce(tensors)] if is_distributed() else list(tensors)


class _Sum(torch.autograd.Function):
    """The sum over the processes, and the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed, group=_group_on(summed.device, None))
        return summed

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        summed = outer[0].clone()
        dist.all_reduce(summed, group=_group_on(summed.device, None))
        return summed


def all_reduce_with_gradient(value: Tensor) -> Tensor:
    """The sum over the processes of a contiguous tensor, with its gradient."""
    if not is_distributed():
        return value
    found: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return found


def all_gather(vectors: Tensor, group: Any = None) -> Tensor:
    """Return the rows of all processes in the order of their ranks: (N_rank, ...) becomes (sum of N_rank, ...)."""
    if not is_distributed(group):
        return vectors
    size, members = dist.get_world_size(group), _group_on(vectors.device, group)
    counts = [torch.zeros(1, dtype=torch.long, device=vectors.device) for _ in range(size)]
    dist.all_gather(counts, torch.full_like(counts[0], len(vectors)), group=members)
    lengths = torch.cat(counts).tolist()
    filled = vectors.new_zeros(max(lengths), *vectors.shape[1:])  # all_gather takes one shape
    filled[: len(vectors)] = vectors
    gathered = [torch.empty_like(filled) for _ in range(size)]
    dist.all_gather(gathered, filled, group=members)
    return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])


def broadcast(tensors: Iterable[Tensor], group: Any = None) -> None:
    """Overwrite tensors with those of the first process, since sums on a GPU are not the same to the bit twice."""
    if is_distributed(group):
        first = dist.get_process_group_ranks(group)[0]
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, first, group=_group_on(whole.device, group))
            tensor.copy_(whole)


def require_same(named: Mapping[str, Tensor], when: str) -> None:
    """Raises InputError where a checksum of a tensor differs between processes; `when` is such as "at step 50"."""
    if not is_distributed():
        return
    sums = torch.stack([_checksum(one) for one in named.values()]).cpu()
    both = torch.cat([sums, ~sums])  # the greatest of the complements is the complement of the least
    dist.all_reduce(both, dist.ReduceOp.MAX, group=_group_on(both.device, None))
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
