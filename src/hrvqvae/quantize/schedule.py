"""When codebooks start, when their dead codewords restart, and what an optimizer must then forget.

The layer (`TreeVQ`), its `fit` and the training of an autoencoder share this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hrvqvae import distributed
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.quantized import Chosen

RESTART_SHARE = 0.9  # of a training; what restarts later has no time to learn where it belongs
_PENDING = 8  # forward passes under activation checkpointing whose backward pass may still come


class CodebookSchedule(nn.Module):
    """The start and the restarts of codebooks; `state_dict` holds all that later steps depend on.

    Every value of the state is a float, and its shapes fit averages of models: an average that was made before or
    during the start takes the (1, 1) of a finished start.

    Args:
        restart_every: training steps between restarts of dead codewords; 0 for none.
        total_steps: steps of the whole training, if known: nothing restarts in the last tenth.
        start_vectors: vectors that the start waits for.
        dim: D, their width.
        group: the processes that train together.
    """

    progress: Tensor  # (2,): training steps since the start, which is 0 until it is done; vectors that wait
    waiting: Tensor  # (start_vectors, D), vectors for the start; (1, 1) after it

    def __init__(
        self, restart_every: int, total_steps: int | None = None, start_vectors: int = 1, dim: int = 1,
        group: distributed.GroupHandle | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.restart_every, self.total_steps, self.start_vectors = restart_every, total_steps, start_vectors
        self.group = group or distributed.GroupHandle()
        self.register_buffer("progress", torch.zeros(2, dtype=torch.float32))
        self.register_buffer("waiting", torch.zeros(start_vectors, dim, dtype=torch.float32))
        self._moved: dict[str, tuple[LevelCodebooks, Tensor]] = {}
        self._pending: deque[tuple[Tensor, Chosen]] = deque(maxlen=_PENDING)
        self._mirror: tuple[Tensor, int, int, int] | None = None

    def reset_parameters(self) -> None:
        """Begin anew; after `to_empty`, too."""
        self.waiting = self.waiting.new_zeros(self.start_vectors, self.waiting.shape[1])
        self._set_progress(0, 0)

    # Steps: a copy in Python, so that no training step waits for a GPU

    @property
    def steps(self) -> int:
        """Training steps since the start; 0 until it is done."""
        return self._progress()[0]

    @steps.setter
    def steps(self, steps: int) -> None:
        self._set_progress(steps, self._progress()[1])

    def _progress(self) -> tuple[int, int]:
        mirror = self._mirror
        if mirror is None or mirror[0] is not self.progress or mirror[1] != self.progress._version:
            steps, waiting = self.progress.tolist()  # of an average of models, these may be fractions
            self._mirror = mirror = (
                self.progress, self.progress._version, -int(-steps // 1), int(waiting) if waiting % 1 == 0 else 0
            )  # fmt: skip
        return mirror[2:]

    def _set_progress(self, steps: int, waiting: int) -> None:
        self.progress[0], self.progress[1] = steps, waiting
        self._mirror = (self.progress, self.progress._version, steps, waiting)

    @staticmethod
    def rng(step: int) -> torch.Generator:
        """Return the generator of a step's random draws."""
        return torch.Generator().manual_seed(step)

    # The start

    @torch.no_grad()
    def collect(self, vectors: Tensor) -> tuple[Tensor, float] | None:
        """Add a batch (N, D) to the vectors that wait for the start.

        Returns:
            Vectors to fit the codebooks to, and the weight of one in the counts: at the first batch, and when there
            are enough, which ends the start. None in between.
        """
        batch = distributed.all_gather(vectors, self.group.group)
        _, count = self._progress()
        known = torch.cat([self.waiting[:count], batch]) if count else batch
        enough = len(known) >= self.start_vectors
        if enough:
            self.finish_start()
        else:
            if self.waiting.shape != (self.start_vectors, vectors.shape[1]):
                self.waiting = known.new_zeros(self.start_vectors, vectors.shape[1])
            self.waiting[count : len(known)] = batch if count else known
            self._set_progress(0, len(known))
        if not enough and (count or not len(known)):
            return None
        drawn = torch.randperm(len(known), generator=self.rng(0))[: self.start_vectors]
        return known[drawn.to(known.device)], len(batch) / len(drawn)

    def finish_start(self) -> None:
        """Let go of the vectors that wait; the first step is taken."""
        self.waiting = self.waiting.new_zeros(1, 1)
        self._set_progress(1, 0)

    # Restarts

    def restart_due(self, step: int, share: float | None = None) -> bool:
        """Return whether dead codewords restart in a step, when a `share` of the training is done."""
        if share is None:
            share = step / self.total_steps if self.total_steps else 0.0
        return self.restart_every > 0 and step % self.restart_every == 0 and share < RESTART_SHARE

    @contextmanager
    def moving(self, module: nn.Module) -> Iterator[None]:
        """Note which codewords of a module move inside the context; all processes then have those of the first."""
        books = [(name, book) for name, book in module.named_modules() if isinstance(book, LevelCodebooks)]
        before = [book.codewords.detach().clone() for _, book in books]
        yield
        distributed.broadcast(
            (one.detach() for _, book in books for one in book.state_dict().values()), self.group.group
        )
        for (name, book), old in zip(books, before, strict=True):
            rows = (book.codewords.detach() != old).any(-1, keepdim=True)
            self._moved[name] = (book, rows | self._moved[name][1] if name in self._moved else rows)

    @torch.no_grad()
    def forget(self, optimizer: Optimizer | None = None, averaged: nn.Module | None = None) -> None:
        """Forget where codewords were that have moved since the last call.

        Args:
            optimizer: its moments of these codewords become zero.
            averaged: an average of the module given to `moving`: its codewords become the module's own.
        """
        for name, (book, rows) in self._moved.items():
            state = optimizer.state.get(book.codewords, {}) if optimizer is not None else {}
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == book.codewords.shape:
                    moment.masked_fill_(rows, 0)
            if averaged is not None:
                twin: Any = averaged.get_submodule(name)
                twin.codewords.copy_(torch.where(rows, book.codewords, twin.codewords))
        self._moved.clear()

    # Activation checkpointing: backward computes a forward pass anew, when its codebooks have changed already

    def remember(self, vectors: Tensor, chosen: Chosen) -> None:
        """Keep what vectors (N, D) got, if activation checkpointing will ask for it."""
        if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            self._pending.append((vectors.detach().sum(0), [(index, word.detach()) for index, word in chosen]))

    def recall(self, vectors: Tensor) -> Chosen | None:
        """Return what vectors (N, D) got in the forward pass that backward computes anew, once."""
        total = vectors.detach().sum(0)
        for place, (other, chosen) in enumerate(self._pending):
            if len(chosen[0][0]) == len(vectors) and (len(self._pending) == 1 or torch.equal(total, other)):
                del self._pending[place]
                return chosen
        return None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Take vectors that wait, as many as there are."""
        if (waiting := state_dict.get(f"{prefix}waiting")) is not None and waiting.shape != self.waiting.shape:
            self.waiting = self.waiting.new_zeros(waiting.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def __getstate__(self) -> dict[str, Any]:
        """Copies read their steps anew: they may be averages, which are written to unseen."""
        return {**self.__dict__, "_mirror": None, "_pending": deque(maxlen=_PENDING), "_moved": {}}
