"""Which of the processes that train together this one is, and what its share is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import distributed as dist

from hrvqvae.utils.errors import InputError


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
