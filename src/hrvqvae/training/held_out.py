"""Images whose codes a prior never trains on: they say how good it is, and which state of it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hrvqvae import distributed
from hrvqvae.data.image_sets import stream
from hrvqvae.priors.base import Prior, total_bits
from hrvqvae.training.code_batches import CodeBatch
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog
from hrvqvae.training.loop import Metrics
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError


def held_out_split(images: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(trained on, held out): numbers of images, at least one of each; the held-out ones in an order drawn by the seed.

    Raises:
        InputError: there is only one image.
    """
    if images < 2:
        raise InputError("a prior needs at least 2 training images: one is held out")
    order = stream("held out", seed, images).permutation(images)
    count = min(images - 1, max(1, round(images * share)))
    return np.sort(order[count:]), order[:count]


class HeldOutHook:
    """Bits that held-out codes take under the averaged prior; keeps the state that needs fewest for sampling.

    Args:
        batches: gives this process's part of the held-out codes, once through.
        every: steps between evaluations.
        keep: writes the averaged prior, whose bits a code of each level are given.
        done: called in the first process after each evaluation.
    """

    def __init__(
        self, batches: Callable[[], Iterator[CodeBatch]], every: int, log: MetricsLog, display: Display,
        compute: Compute, keep: Callable[[TrainState, Sequence[float]], None], done: Callable[[], None],
    ) -> None:  # fmt: skip
        self.batches, self.every, self.log, self.display, self.compute = batches, every, log, display, compute
        self.keep, self.done = keep, done
        known = [record["bits_per_code"] for record in log.records if record["kind"] == "evaluation"]
        self.best = min(known, default=math.inf)

    def due(self, state: TrainState) -> bool:
        return state.step % self.every == 0

    def _measured(self, prior: Prior) -> tuple[list[float], int]:
        """(bits an image of each level, positions of an image), over all processes."""
        spent, images = torch.zeros(len(prior.levels), dtype=torch.float64), 0
        for batch in self.batches():
            placed = batch.to(self.compute.device)
            with self.compute.autocast():
                spent += torch.tensor(total_bits(prior, placed.codes, placed.coarser, placed.label))
            images += len(batch)
        *levels, counted = (
            sum(each) for each in zip(*distributed.all_gather_numbers(*spent.tolist(), images), strict=True)
        )
        return [bits / counted for bits in levels], math.prod(prior.level.grid)

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        prior = state.averaged.module
        assert isinstance(prior, Prior)
        an_image, positions = self._measured(prior.eval())
        levels = [bits / positions for bits in an_image]
        found = sum(levels) / len(levels)
        better = found <= self.best
        if better:  # before the log: a kill in between leaves an evaluation to be made again
            self.best = found
            if distributed.is_rank_zero():
                self.keep(state, levels)
        record = {"kind": "evaluation", "step": state.step, "bits_per_code": found, "bits_per_image": sum(an_image)}
        if len(levels) > 1:
            record["level_bits_per_code"] = levels
        self.log.write(record)
        self.display.say(
            f"step {state.step}  held out: {found:.4f} bits a code, {sum(an_image):.1f} bits an image"
            + ("  (best so far, kept)" if better else f"  (best: {self.best:.4f})")
        )
        if distributed.is_rank_zero():
            self.done()
