"""What every stage of training does around the loop: begin or resume, log, evaluate, save, and say how it ended."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import TrainingConfig
from hrvqvae.data.batches import worker_errors
from hrvqvae.data.image_sets import stream
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import CheckpointHook, Display, LogHook, MetricsLog, SameWeights, Say
from hrvqvae.training.loggers import opened
from hrvqvae.training.loop import Budget, Metrics, Step, StopSignal, fit
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError, NonFiniteError

B = TypeVar("B")


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        step: steps taken in all.
        signal: number of the signal that stopped it, or None where the budget was spent.
        seconds: wall-clock time of the training, over all resumptions.
        peak_bytes: most memory that the process held at once; on a GPU, that its tensors took there.
    """

    step: int
    signal: int | None
    seconds: float
    peak_bytes: int


class Evaluation(Protocol):
    """A hook that measures the averaged model and logs it as of kind "evaluation"."""

    def due(self, state: TrainState) -> bool: ...

    def __call__(self, state: TrainState, metrics: Metrics) -> None: ...


def generator(seed: int, step: int) -> torch.Generator:
    """Random draws of a step depend on (seed, step) alone."""
    return torch.Generator().manual_seed((seed << 32) + step)


def seed_step(seed: int, step: int) -> None:
    """Let what a step draws from torch's global generators, such as dropout, depend on (seed, step) alone.

    Each of several processes that train together draws other numbers, which depend on its rank as well.
    """
    rank = distributed.rank()
    others = stream("step", seed, step, rank)
    torch.manual_seed(int(others.integers(2**63)) if rank else (seed << 32) + step)


def count_parameters(model: nn.Module) -> int:
    """Trained values of a model: its parameters, and codewords that moving averages lead."""
    codewords = (buffer for name, buffer in model.named_buffers() if name.rsplit(".", 1)[-1] == "codewords")
    return sum(values.numel() for values in (*model.parameters(), *codewords))


def require_new(run: RunFolder, otherwise: str) -> None:
    """Raises InputError where the folder holds a run already; `otherwise` names the other way out."""
    if run.begun():
        raise InputError(f"{run.path} holds a run already: continue it with --resume, or {otherwise}")


def begin(
    run: RunFolder,
    training: TrainingConfig,
    compute: Compute,
    *,
    fresh: Callable[[], nn.Module],
    like: Callable[[], nn.Module],
    auxiliary: Callable[[nn.Module], Mapping[str, nn.Module]] = lambda _: {},
    resume: bool,
    say: Say,
) -> TrainState:
    """The state of the newest whole checkpoint where a run resumes, or that of a fresh model.

    Args:
        fresh: the model as training starts with it, on its device.
        like: a model of the same shapes, whose values do not matter.
        auxiliary: what is trained beside that model, on its device.
    """
    saved = distributed.on_rank_zero(lambda: run.newest(say)) if resume else None
    if saved is None:
        torch.manual_seed(training.seed)
        model = fresh()
        state = TrainState.start(model, training, auxiliary(model))
        if resume:
            say(f"no checkpoint in {run.path}: starting anew")
    else:
        model = compute.place_model(like())
        state = TrainState.start(model, training, auxiliary(model))
        state.restore(*saved)
        say(f"resuming {run.path} at step {state.step}")
        before = saved[1].get("device", state.device)
        if before != state.device:
            say(f"trained on {before} so far, and on {state.device} from here on, where sums round differently")
    distributed.broadcast(state.tensors().values())
    if compute.emulates_bf16:
        say(f"bf16 is emulated on this {compute.device.type}, which is slow: a run keeps the precision it began with")
    return state


def train_stage(
    run: RunFolder,
    training: TrainingConfig,
    compute: Compute,
    state: TrainState,
    *,
    samples: int,
    stream: Generator[B, None, None],
    step: Step[B],
    evaluation: Callable[[MetricsLog, Display], Evaluation],
    write_model: Callable[[TrainState], None],
) -> Outcome:
    """Train until the budget is spent or a signal asks to stop; leave a checkpoint and an evaluation of the end.

    Args:
        samples: of an epoch.
        stream: this process's parts of the batches from `state.step` on; closed at the end.
        write_model: called before each checkpoint, so that a kill in between leaves one from which it is written again.

    Raises:
        NonFiniteError: with the step, the terms, and the last good checkpoint.
        InputError: a checkpoint could not be written.
        DriftError: processes that train together no longer hold the same weights and codebooks.
    """
    budget = Budget.of(training, samples)
    with (
        opened(training.loggers if distributed.is_rank_zero() else "", run.path, state.step) as sinks,
        worker_errors(),
        closing(stream),
        StopSignal() as stop,
        Display(budget) as display,
    ):
        log = MetricsLog(run.metrics, state.step, sinks)
        checkpoint = CheckpointHook(training.checkpoint_every, run, write_model)
        evaluate, logging = evaluation(log, display), LogHook(training, log, display)
        started = state.step
        try:
            fit(state, stream, step, training, budget, [SameWeights(training), logging, evaluate, checkpoint], stop)
        except NonFiniteError as error:
            kept = run.saved()
            good = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
            raise NonFiniteError(
                f"{error}; no weight was updated, {good}; try a lower learning rate in a new run"
            ) from error
        logging.flush(state)
        if stop.agreed is None and not log.evaluated(state.step):
            evaluate(state, {})
        if state.step > started or not run.model.is_file():  # also with the seconds that the last hooks took
            checkpoint.save(state)
    return Outcome(state.step, stop.agreed, state.seconds, compute.peak_bytes())
