"""Processes that train together (torchrun, torch.distributed), and what they tell each other.

Every function is the identity in a process that trains alone, so nothing else asks whether there are several. Where
there are, every process has to call it, at the same place. Rank 0, the first one, is the one that writes and prints.
"""

from hrvqvae.processes.joining import LostProcessError, goes_on, job, joined
from hrvqvae.processes.objects import everywhere, held_by_first, numbers, on_first, to_first
from hrvqvae.processes.ranks import WHOLE, Part, first, part, rank, require_equal_parts, several, world
from hrvqvae.processes.tensors import (
    DriftError,
    added_up,
    average_in_place,
    averaged,
    gathered,
    require_same,
    summed,
    take_from_first,
)

__all__ = [
    "WHOLE",
    "DriftError",
    "LostProcessError",
    "Part",
    "added_up",
    "average_in_place",
    "averaged",
    "everywhere",
    "first",
    "gathered",
    "goes_on",
    "held_by_first",
    "job",
    "joined",
    "numbers",
    "on_first",
    "part",
    "rank",
    "require_equal_parts",
    "require_same",
    "several",
    "summed",
    "take_from_first",
    "to_first",
    "world",
]
