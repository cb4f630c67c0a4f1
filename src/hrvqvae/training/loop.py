"""The training loop, for every stage. Only the step differs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hrvqvae import distributed
from hrvqvae.config import TrainingConfig, training_steps
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import NonFiniteError

B_contra = TypeVar("B_contra", contravariant=True)
Metrics = Mapping[str, float]


class Step(Protocol[B_contra]):
    """One update of the state from one batch; -> what is logged, by name. Raises NonFiniteError before updating."""

    def __call__(self, state: TrainState, batch: B_contra) -> Metrics: ...


class Hook(Protocol):
    """Something that is done now and then: log, picture, evaluate, save."""

    def due(self, state: TrainState) -> bool: ...

    def __call__(self, state: TrainState, metrics: Metrics) -> None: ...


@dataclass(frozen=True)
class Budget:
    """When a run ends: after `steps` or `seconds`, whichever comes first (None: no such limit)."""

    steps: int | None
    seconds: float | None

    @staticmethod
    def of(config: TrainingConfig, samples: int) -> Budget:
        limits = [config.max_steps] if config.max_steps else []
        if config.epochs:
            limits.append(max(1, training_steps(samples, config.epochs, config.batch_size)))
        return Budget(min(limits, default=None), config.max_minutes * 60 or None)

    def fraction(self, state: TrainState) -> float:
        """Share of the budget that is spent, by the limit that is nearer."""
        shares = [state.step / self.steps] if self.steps else []
        if self.seconds:
            shares.append(state.seconds / self.seconds)
        return max(shares, default=0.0)

    def spent(self, state: TrainState) -> bool:
        return self.fraction(state) >= 1


def learning_rate(config: TrainingConfig, step: int, fraction: float) -> float:
    """Rate of a step, `fraction` of the budget being spent: constant, or linear warm-up and a cosine down to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


class StopSignal:
    """SIGINT and SIGTERM ask the loop to end after the step at hand; a second one ends the process at once.

    Attributes:
        received: number of the signal that this process has got.
        agreed: the same, once all processes that train together know of it: all end at the same step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None

    def __enter__(self) -> StopSignal:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, seconds: float = 0.0) -> float:
        """Agree on the signal that any of the processes has got; -> the longest of the seconds that they give."""
        told = distributed.all_gather_numbers(self.received or 0, seconds)
        self.agreed = int(max(number for number, _ in told)) or None
        return max(spent for _, spent in told)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number


def take_gradient(model: nn.Module, optimizer: Optimizer, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the model the gradient of the sum of the losses; -> terms, their sum ("loss") and the gradient's norm.

    Where several processes train together, all of it is the mean over them, by one all-reduce.

    Raises:
        NonFiniteError: a term or the gradient is NaN or infinite, in whichever process.
    """
    terms = torch.stack(list(losses.values()))
    optimizer.zero_grad(set_to_none=True)
    terms.sum().backward()  # type: ignore[no-untyped-call]
    terms = terms.detach()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    distributed.all_reduce_mean_in_place([terms, *gradients])
    values = dict(zip(losses, terms.tolist(), strict=True))
    described = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    if not all(math.isfinite(value) for value in values.values()):
        raise NonFiniteError(f"the loss is not finite ({described})")
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise NonFiniteError(f"the gradient is not finite ({described})")
    return {**values, "loss": math.fsum(values.values()), "gradient_norm": norm}


def update(model: nn.Module, optimizer: Optimizer, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Minimize the sum of the losses by one step; -> as `take_gradient`, which raises before anything is updated."""
    metrics = take_gradient(model, optimizer, losses)
    optimizer.step()
    return metrics


def fit(
    state: TrainState,
    batches: Iterator[B_contra],
    step: Step[B_contra],
    config: TrainingConfig,
    budget: Budget,
    hooks: Sequence[Hook],
    stop: StopSignal,
) -> None:
    """Train until the budget is spent or a signal asks to stop. Hooks see the state after each step.

    Several processes that train together agree after each step on the time that is spent, which is the slowest one's,
    and on the signal: so all take the same steps at the same rates, call the same hooks, and end at the same step.
    """
    mark = time.monotonic()
    stop.agree()
    while not budget.spent(state) and stop.agreed is None:
        rate = learning_rate(config, state.step, budget.fraction(state))
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        try:
            metrics = step(state, next(batches))
        except NonFiniteError as error:
            raise NonFiniteError(f"step {state.step}: {error}") from error
        state.step += 1
        now = time.monotonic()
        spent = stop.agree(now - mark)
        state.seconds += spent
        mark = now
        for hook in hooks:
            if hook.due(state):
                hook(state, {**metrics, "learning_rate": rate, "step_seconds": spent})
        now = time.monotonic()
        state.seconds += stop.agree(now - mark)
        mark = now
