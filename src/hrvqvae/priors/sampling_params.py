"""Drawing a code from logits: guidance, temperature, top-k, top-p. One function for every sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.errors import InputError, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How codes are drawn from a distribution over m symbols.

    Attributes:
        temperature: logits are divided by it; below 1 makes likely codes likelier. From 1e-6 to 1e6, so that no logit
            that a network gives is divided to infinity.
        top_k: only the k likeliest codes are drawn (0: all).
        top_p: only the likeliest codes that together reach this probability are drawn (1: all).
        guidance: w of the logits u + w (c - u), where c are those given the class and u those without it (1: given the
            class), from 0 to 1000; see `guidance.guidance_of`.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not 1e-6 <= self.temperature <= 1e6:
            raise InputError(f"temperature is {self.temperature:g}; it must be from 1e-6 to 1e6 (1 is the model's own)")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; it must be at least 1")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if not 0 <= self.guidance <= 1000:
            raise InputError(f"guidance is {self.guidance:g}; it must be from 0 to 1000 (1 is the model's own)")

    def check(self, symbols: int) -> None:
        """Raises InputError where top_k exceeds the number of symbols."""
        if self.top_k > symbols:
            raise InputError(f"top-k is {self.top_k}, but a code has only {symbols} symbols; give 1 to {symbols}")

    def values(self) -> tuple[float, int, float]:
        """(temperature, top_k, top_p) for `draw_code`."""
        return self.temperature, self.top_k, self.top_p


NO_CODE = -1


def no_distribution(level: int, row: int, column: int) -> NonFiniteError:
    """The error of a sampler that got `NO_CODE`, at a position of a level (1 is the coarsest)."""
    return NonFiniteError(
        f"the prior of level {level} gives logits that are NaN or infinite at row {row}, column {column}; "
        "train it again, or look at its weights"
    )


@compiled(error_model="numpy")
def draw_code(logits: NDArray[np.float32], uniform: float, temperature: float, top_k: int, top_p: float) -> int:
    """The code that a uniform number in [0, 1) picks by the inverse distribution, in float64.

    Of codes that are equally likely, those of the lower number stay in the first k, or in p. Where a logit is NaN or
    +inf, or all are -inf, there is no distribution: the code is `NO_CODE`.
    """
    number = len(logits)
    weights = np.empty(number, np.float64)
    largest: Any = -np.inf
    for k in range(number):
        weights[k] = logits[k] / temperature
        largest = max(largest, weights[k])
    total = 0.0
    for k in range(number):
        weights[k] = np.exp(weights[k] - largest)
        total += weights[k]
    if np.isnan(total):
        return NO_CODE
    if 0 < top_k < number or top_p < 1:
        order = np.argsort(-weights, kind="mergesort")
        kept = number if top_k == 0 else min(top_k, number)
        mass = 0.0
        for rank in range(kept):
            mass += weights[order[rank]]
        if top_p < 1:
            reached, rank = 0.0, 0
            while rank < kept and reached < top_p * mass:
                reached += weights[order[rank]]
                rank += 1
            kept = max(rank, 1)
        for rank in range(kept, number):
            weights[order[rank]] = 0.0
    total = 0.0
    for k in range(number):
        total += weights[k]
    target, below, last = uniform * total, 0.0, 0
    for k in range(number):
        if weights[k] > 0:
            below += weights[k]
            last = k
            if below > target:
                return k
    return last
