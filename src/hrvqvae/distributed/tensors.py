"""What processes tell each other by tensors: sums, means, and whether they hold the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from hrvqvae.distributed.ranks import is_distributed, world_size
from hrvqvae.utils.errors import InputError


class DriftError(InputError):
    """Processes that must hold the same values do not."""


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
