"""Codebooks of several processes that train together (torch.distributed): what they share, so that all stay the same.

Every function is the identity in a process that trains alone. Every process has to call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def added_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor as the sum over the processes, by one all-reduce. The same shapes in every process, one dtype."""
    if not several():
        return list(tensors)
    together = torch.cat([one.reshape(-1) for one in tensors])
    dist.all_reduce(together)
    parts = torch.split(together, [one.numel() for one in tensors])
    return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]


def gathered(vectors: Tensor) -> Tensor:
    """The vectors of all processes in the order of their ranks: (N_rank, D) -> (sum of N_rank, D)."""
    if not several():
        return vectors
    counts = [torch.zeros(1, dtype=torch.long, device=vectors.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(vectors)], device=vectors.device))
    numbers = [int(count) for count in counts]
    filled = vectors.new_zeros(max(numbers), vectors.shape[1])  # all_gather takes one shape
    filled[: len(vectors)] = vectors
    found = [torch.empty_like(filled) for _ in numbers]
    dist.all_gather(found, filled)
    return torch.cat([one[:number] for one, number in zip(found, numbers, strict=True)])


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0, since sums on a GPU are not the same to the bit twice."""
    if several():
        for one in tensors:
            dist.broadcast(one, 0)
