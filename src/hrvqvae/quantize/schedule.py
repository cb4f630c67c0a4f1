"""When codebooks start, when dead codewords restart, and what an average must follow then."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize.codebook import LevelCodebooks

# share of a training after which nothing restarts: codewords would have no time to adapt
RESTART_SHARE = 0.9

Moved = list[tuple[LevelCodebooks, Tensor]]  # which codewords of each level have moved


class CodebookSchedule(nn.Module):
    """The start and the restarts of codebooks; `state_dict` holds all that later steps depend on.

    The arguments are those of `TreeVQ`, but `start_vectors` is a number. All buffers are floats, so
    that averages of models (`AveragedModel`, timm) can hold them.
    """

    progress: Tensor  # (2,): `steps` and `num_waiting`
    waiting: Tensor  # (start_vectors, D), vectors for the start; (1, 1) after it

    def __init__(
        self,
        restart_every: int,
        total_steps: int | None = None,
        start_vectors: int = 1,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.restart_every = restart_every
        self.total_steps = total_steps
        self.start_vectors = start_vectors
        self.dim = dim
        # what `progress` holds, in Python, so that no training step waits for a GPU
        self.steps = 0  # training steps: 0 until the start is finished, then 1, 2, ...
        self.num_waiting = 0  # vectors in `waiting`
        progress = torch.zeros(2, dtype=torch.float32)
        waiting = torch.zeros(start_vectors, dim, dtype=torch.float32)
        self.register_buffer("progress", progress)
        self.register_buffer("waiting", waiting)

    def reset_parameters(self) -> None:
        """Reset to the state before the first step."""
        self.waiting = self.waiting.new_zeros(self.start_vectors, self.dim)
        self.set_progress(0)

    def set_progress(self, steps: int, num_waiting: int = 0) -> None:
        self.steps = steps
        self.num_waiting = num_waiting
        self.progress[0] = steps
        self.progress[1] = num_waiting

    def collect(self, vectors: Tensor) -> tuple[Tensor, float] | None:
        """Add a batch (N, D) to the waiting vectors.

        Return the vectors for a fit of the codebooks and the weight of each in the counts, or None.
        The first batch is fitted at once, and `start_vectors` of all waiting vectors as soon as
        there are so many; in one fit, if the first batch is large enough.
        """
        batch = distributed.all_gather(vectors)
        is_finite = batch.square().sum(1).isfinite()
        batch = batch[is_finite]  # k-means would keep the others
        is_first = self.num_waiting == 0
        collected = batch
        if not is_first:
            collected = torch.cat([self.waiting[: self.num_waiting], batch])
        missing = self.start_vectors - len(collected)
        if missing > 0:
            self.waiting = nn.functional.pad(collected, (0, 0, 0, missing))
            self.set_progress(0, len(collected))
            # as long as vectors are missing, only the first batch is fitted
            if not is_first or not len(collected):
                return None
        rng = torch.Generator().manual_seed(0)
        order = torch.randperm(len(collected), generator=rng, device="cpu")
        chosen = order[: self.start_vectors].to(collected.device)
        return collected[chosen], len(batch) / len(chosen)

    def finish_start(self) -> None:
        """Drop the waiting vectors and count the first step."""
        self.waiting = self.waiting.new_zeros(1, 1)
        self.set_progress(1)

    def restart_due(self, step: int, share: float | None = None) -> bool:
        """Return whether dead codewords restart at this step.

        `share` is the part of the training that is done; None: by `total_steps`.
        """
        if share is None:
            share = step / self.total_steps if self.total_steps else 0.0
        if self.restart_every == 0 or share >= RESTART_SHARE:
            return False
        return step % self.restart_every == 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Give `waiting` the shape that it has in the state, and load."""
        waiting = state_dict.get(f"{prefix}waiting", self.waiting)
        if waiting.shape != self.waiting.shape:
            self.waiting = self.waiting.new_zeros(waiting.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

        # In an average of models these are fractions: a share of a model that has started counts as
        # started, and waiting vectors are mixtures, which are dropped.
        steps, num_waiting = self.progress.tolist()
        self.steps = math.ceil(steps)
        self.num_waiting = int(num_waiting) if num_waiting.is_integer() else 0


@contextmanager
def track_moves(module: nn.Module) -> Iterator[Moved]:
    """Yield a list, which gets the codewords that the block moves; copy the codebooks of rank 0 to
    all ranks.
    """
    books = _codebooks_of(module)
    before = [book.codewords.clone() for book in books]
    moved: Moved = []
    yield moved
    for book, old in zip(books, before, strict=True):
        distributed.broadcast(book.state_dict().values())
        rows = (book.codewords != old).any(-1)
        moved.append((book, rows))


@torch.no_grad()
def copy_moved(moved: Moved, averaged: nn.Module) -> None:
    """Copy moved codewords, with their counts and sums, to an average of their model."""
    for (book, rows), copy in zip(moved, _codebooks_of(averaged), strict=False):
        state = copy.state_dict()
        for name, values in book.state_dict().items():
            state[name][rows] = values[rows]


def _codebooks_of(module: nn.Module) -> Sequence[LevelCodebooks]:
    return [book for book in module.modules() if isinstance(book, LevelCodebooks)]
