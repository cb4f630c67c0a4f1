"""When codebooks start, when dead codewords restart, and what an average must follow then."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize.codebook import LevelCodebooks

# share of a training after which nothing restarts: codewords would have no time to adapt
RESTART_SHARE = 0.9


class CodebookSchedule(nn.Module):
    """The start and the restarts of codebooks; `state_dict` holds all that later steps depend on.

    The arguments are those of `TreeVQ`, but `start_vectors` is a number, and `processes` holds the
    process group. All buffers are floats, so that averages of models (`AveragedModel`, timm) can
    hold them.
    """

    progress: Tensor  # (2,): `steps`, and number of vectors in `waiting`
    waiting: Tensor  # (start_vectors, D), vectors for the start; (1, 1) after it

    def __init__(
        self,
        restart_every: int,
        total_steps: int | None = None,
        start_vectors: int = 1,
        dim: int = 1,
        processes: distributed.GroupHandle | None = None,
    ) -> None:
        super().__init__()
        self.restart_every = restart_every
        self.total_steps = total_steps
        self.start_vectors = start_vectors
        self.dim = dim
        self.processes = processes or distributed.GroupHandle()
        progress = torch.zeros(2, dtype=torch.float32)
        waiting = torch.zeros(start_vectors, dim, dtype=torch.float32)
        self.register_buffer("progress", progress)
        self.register_buffer("waiting", waiting)
        # which codewords of each level have moved since the last `copy_moved`
        self._moved: dict[LevelCodebooks, Tensor] = {}
        # `progress`, its version and its two values, when they were last read or written
        self._copy: tuple[Tensor, int, int, int] | None = None

    def reset_parameters(self) -> None:
        """Reset to the state before the first step."""
        self.waiting = self.waiting.new_zeros(self.start_vectors, self.dim)
        self.set_progress(0)

    @property
    def steps(self) -> int:
        """Training steps: 0 until the start is finished, then 1, 2, ..."""
        return self.read_progress()[0]

    def read_progress(self) -> tuple[int, int]:
        """Return `steps` and the number of waiting vectors, from a copy in Python, so that no
        training step waits for a GPU.
        """
        copy = self._copy
        version = self.progress._version
        if copy is None or copy[0] is not self.progress or copy[1] != version:
            # In an average of models these are fractions: a share of a model that has started
            # counts as started, and waiting vectors are mixtures, which are dropped.
            steps, waiting = self.progress.tolist()
            count = int(waiting) if waiting.is_integer() else 0
            copy = (self.progress, version, math.ceil(steps), count)
            self._copy = copy
        return copy[2:]

    def set_progress(self, steps: int, waiting: int = 0) -> None:
        self.progress[0] = steps
        self.progress[1] = waiting
        self._copy = (self.progress, self.progress._version, steps, waiting)

    def collect(self, vectors: Tensor) -> tuple[Tensor, float] | None:
        """Add a batch (N, D) to the waiting vectors.

        Return the vectors for a fit of the codebooks and the weight of each in the counts, or None.
        The first batch is fitted at once, and `start_vectors` of all waiting vectors as soon as
        there are so many; in one fit, if the first batch is large enough.
        """
        batch = distributed.all_gather(vectors, self.processes.group)
        is_finite = batch.square().sum(1).isfinite()
        batch = batch[is_finite]  # k-means would keep the others
        _, num_waiting = self.read_progress()
        collected = batch
        if num_waiting:
            collected = torch.cat([self.waiting[:num_waiting], batch])
        missing = self.start_vectors - len(collected)
        if missing > 0:
            self.waiting = nn.functional.pad(collected, (0, 0, 0, missing))
            self.set_progress(0, len(collected))
            # as long as vectors are missing, only the first batch is fitted
            if num_waiting or not len(collected):
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

    @contextmanager
    def track_moves(self, module: nn.Module) -> Iterator[None]:
        """Record for `copy_moved` which codewords the block moves, and copy the codebooks of rank
        0 to all ranks.
        """
        books = _codebooks_of(module)
        before = [book.codewords.clone() for book in books]
        yield
        for book, old in zip(books, before, strict=True):
            distributed.broadcast(book.state_dict().values(), self.processes.group)
            moved = (book.codewords != old).any(-1)
            earlier = self._moved.get(book, moved)
            self._moved[book] = moved | earlier.to(moved.device)

    @torch.no_grad()
    def copy_moved(self, averaged: nn.Module) -> None:
        """Copy the codewords that have moved since the last call to an average of the model."""
        pairs = zip(_codebooks_of(averaged), self._moved.items(), strict=False)
        for copy, (book, moved) in pairs:
            state = copy.state_dict()
            for name, values in book.state_dict().items():
                average = state[name]
                rows = moved.to(average.device)
                if values.ndim == 3:  # codewords and sums, not counts
                    rows = rows.unsqueeze(-1)
                kept = torch.where(rows, values.to(average.device), average)
                average.copy_(kept)
        self._moved.clear()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Give `waiting` the shape that it has in the state, and load."""
        waiting = state_dict.get(f"{prefix}waiting", self.waiting)
        if waiting.shape != self.waiting.shape:
            self.waiting = self.waiting.new_zeros(waiting.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this module alone.

        In a deep copy, `_copy` would name the new module's `progress`. The version of that tensor
        begins anew, so it could reach the noted one with other values.
        """
        return {**self.__dict__, "_copy": None, "_moved": {}}


def _codebooks_of(module: nn.Module) -> list[LevelCodebooks]:
    return [book for book in module.modules() if isinstance(book, LevelCodebooks)]
