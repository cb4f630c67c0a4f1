"""Ranks and collectives of the processes that train together.

In a single process every collective is the identity. Several processes must call it at the same
point. Only rank 0 writes and prints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import lock_folder

T = TypeVar("T")

_is_alone = ContextVar("is_alone", default=False)


@contextmanager
def working_alone() -> Iterator[None]:
    """Make all collectives of this process the identity, as in a single process."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


def is_distributed() -> bool:
    """Return whether this process is one of several."""
    if _is_alone.get() or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size() > 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


@dataclass(frozen=True)
class RankSlice:
    """The share of a process in the common work: slice `rank` of `count` contiguous slices."""

    rank: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """Return the positions of this slice in `total`. Slices are disjoint, and their lengths
        differ by at most 1.
        """
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)


WHOLE = RankSlice()


def rank_slice() -> RankSlice:
    """Return the slice of this process."""
    return RankSlice(rank(), world_size())


def raise_first(error: Exception | None) -> None:
    """Raise in every process the error of the first process that has one, if any."""
    errors: list[Any] = [error] * world_size()
    if is_distributed():
        dist.all_gather_object(errors, error)
    for first in filter(None, errors):
        raise first


def all_gather_numbers(*values: float) -> list[tuple[float, ...]]:
    """Return the values of all processes, by rank, in every process."""
    if not is_distributed():
        return [values]
    rows = torch.zeros(world_size(), len(values), dtype=torch.float64)
    rows[rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(rows)
    return [tuple(row) for row in rows.tolist()]


def on_rank_zero(call: Callable[[], T]) -> T:
    """Call a function in rank 0; return its result, or raise its InputError, in every process.

    Collectives that the function calls are the identity.
    """
    if not is_distributed():
        return call()
    outcome: list[Any] = [None, None]  # result, error
    if rank() == 0:
        try:
            with working_alone():
                outcome[0] = call()
        except InputError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    result, raised = outcome
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]


@contextmanager
def lock_on_rank_zero(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of a folder in rank 0. Raises as `lock_folder`, in every process."""
    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(lock_folder(folder, wait)))
        yield


def all_reduce(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the sum of each tensor over the processes, by one all-reduce of tensors of the same
    dtype.
    """
    if not tensors or not is_distributed():
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    sums = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [summed.view_as(tensor) for summed, tensor in zip(sums, tensors, strict=True)]


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of each tensor over the processes, by one all-reduce."""
    return [total / world_size() for total in all_reduce(tensors)]


class _PassLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(network.parameters())  # without buffers: they are not sent

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_gradients(network: nn.Module) -> nn.Module:
    """Return a module that maps a loss to itself. The backward pass of the returned loss leaves the
    mean gradients of all processes in the parameters of the network.

    The network may be called in any way, also several times, before the loss is passed on.
    """
    if not is_distributed():
        return nn.Identity()

    # DistributedDataParallel prepares the exchange of gradients in its forward pass, and starts it
    # in hooks of the parameters. So its forward pass may take the loss instead of the inputs.
    # The warning is about filters of one channel, whose strides have no meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(_PassLoss(network), init_sync=False, static_graph=True)


def all_gather(vectors: Tensor) -> Tensor:
    """Return the rows of all processes in order of rank: (n, ...), with any n per process, becomes
    (N, ...).
    """
    if not is_distributed():
        return vectors
    counts = [torch.zeros(1, dtype=torch.long, device=vectors.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.full_like(counts[0], len(vectors)))
    lengths = torch.cat(counts).tolist()

    # all_gather takes tensors of one shape: add rows, and remove them afterwards
    padded = vectors.new_zeros(max(lengths), *vectors.shape[1:])
    padded[: len(vectors)] = vectors
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0, because sums on a GPU may differ in the last bits."""
    if is_distributed():
        for tensor in tensors:
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)
