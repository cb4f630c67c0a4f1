"""When codebooks start, when dead codewords restart, and what an average must follow then."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.quantize.codebook import LevelCodebooks

Moved = list[tuple[LevelCodebooks, Tensor]]  # which codewords of each level have moved


def restart_due(step: int, every: int, share: float) -> bool:
    """Return whether dead codewords restart at a step, when `share` of the training is done.

    In the last tenth none do: they would have no time to adapt.
    """
    return every > 0 and share < 0.9 and step % every == 0


class CodebookSchedule(nn.Module):
    """The vectors for the start of a layer's codebooks, and the number of its training steps.

    The number is a float in the state, so that averages of models (`AveragedModel`, timm) can hold
    it. The vectors are not in the state: a layer that is loaded before the end of the start begins
    the start anew.
    """

    def __init__(self, start_vectors: int) -> None:
        super().__init__()
        self.start_vectors = start_vectors
        self.waiting: list[Tensor] = []  # vectors (n, D) of earlier batches
        # `progress` in Python, so that no training step waits for a GPU: 0 until the start is
        # finished, then 1, 2, ...
        self.steps = 0
        self.progress = nn.Buffer(torch.zeros((), dtype=torch.float32))

    def set_steps(self, steps: int) -> None:
        """Set the number of steps, 1 or more: the start is finished."""
        self.waiting = []
        self.steps = steps
        self.progress.fill_(steps)

    def collect(self, vectors: Tensor) -> tuple[Tensor, float] | None:
        """Add a batch (N, D) to the waiting vectors.

        Return the vectors for a fit of the codebooks and the weight of each in the counts, or None.
        The first batch is fitted at once, and `start_vectors` of all waiting vectors as soon as
        there are so many; in one fit, if the first batch is large enough.
        """
        batch = distributed.all_gather(vectors)
        batch = batch[batch.square().sum(1).isfinite()]  # k-means would keep the others
        collected = torch.cat([*self.waiting, batch])
        if len(collected) < self.start_vectors:
            self.waiting = [collected]
            # as long as vectors are missing, only the first batch is fitted
            is_first = len(collected) == len(batch) > 0
            if not is_first:
                return None
        rng = torch.Generator().manual_seed(0)
        order = torch.randperm(len(collected), generator=rng, device="cpu")
        chosen = order[: self.start_vectors].to(collected.device)
        return collected[chosen], len(batch) / len(chosen)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        # in an average of models a fraction: a share of a model that has started counts as started
        self.steps = math.ceil(float(self.progress))
        self.waiting = []


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
        distributed.broadcast(book.buffers())
        moved.append((book, (book.codewords != old).any(-1)))


@torch.no_grad()
def copy_moved(moved: Moved, averaged: nn.Module) -> None:
    """Copy moved codewords, with their counts and sums, to an average of their model."""
    for (book, rows), copy in zip(moved, _codebooks_of(averaged), strict=False):
        for values, averages in zip(book.buffers(), copy.buffers(), strict=True):
            averages[rows] = values[rows]


def _codebooks_of(module: nn.Module) -> Sequence[LevelCodebooks]:
    return [book for book in module.modules() if isinstance(book, LevelCodebooks)]
