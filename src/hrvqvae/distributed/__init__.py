"""Processes that train together (torchrun, torch.distributed), and what they tell each other.

Every function is the identity in a process that trains alone, so nothing else asks whether there are several. Where
there are, every process has to call it, at the same place. Rank 0, the first one, is the one that writes and prints.
"""

from hrvqvae.distributed.joining import LostProcessError, is_restarted, job_id, process_group
from hrvqvae.distributed.objects import (
    all_gather_numbers,
    all_gather_object,
    context_on_rank_zero,
    gather_object,
    on_rank_zero,
)
from hrvqvae.distributed.ranks import (
    WHOLE,
    Part,
    is_distributed,
    is_rank_zero,
    part,
    rank,
    require_equal_parts,
    world_size,
)
from hrvqvae.distributed.tensors import (
    DriftError,
    all_gather,
    all_reduce,
    all_reduce_mean,
    all_reduce_mean_in_place,
    all_reduce_with_gradient,
    broadcast,
    require_same,
)

__all__ = [
    "WHOLE",
    "DriftError",
    "LostProcessError",
    "Part",
    "all_gather",
    "all_gather_numbers",
    "all_gather_object",
    "all_reduce",
    "all_reduce_mean",
    "all_reduce_mean_in_place",
    "all_reduce_with_gradient",
    "broadcast",
    "context_on_rank_zero",
    "gather_object",
    "is_distributed",
    "is_rank_zero",
    "is_restarted",
    "job_id",
    "on_rank_zero",
    "part",
    "process_group",
    "rank",
    "require_equal_parts",
    "require_same",
    "world_size",
]
