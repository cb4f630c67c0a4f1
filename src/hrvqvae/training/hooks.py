"""What happens now and then while training: log and progress, evaluation with pictures, checkpoints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import TrainingConfig
from hrvqvae.training.loggers import Sink
from hrvqvae.training.loop import Budget, Metrics
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.progress import Meter
from hrvqvae.utils.quantities import clock

Say = Callable[[str], None]


class MetricsLog:
    """metrics.jsonl: a JSON object a line, with kind ("train" or "evaluation") and step."""

    def __init__(self, path: Path, first_step: int, sinks: Sequence[Sink] = ()) -> None:
        """Keeps the records up to `first_step`; what a killed run wrote after its checkpoint is dropped.

        Of several processes that train together the first writes; all of them know the records.

        Args:
            sinks: what gets each record that is written, as well.
        """
        self.path, self.sinks = path, sinks
        records = distributed.on_rank_zero(lambda: read_records(path)) if first_step else []
        self.records = [record for record in records if record["step"] <= first_step]
        if distributed.is_rank_zero():
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in self.records).encode())

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation of that step."""
        return any(record["kind"] == "evaluation" and record["step"] == step for record in self.records)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record. Raises OSError where the disk is full."""
        self.records.append(dict(record))
        if not distributed.is_rank_zero():
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for sink in self.sinks:
            sink.write(record)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a last line cut short by a kill is dropped."""
    records = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record and "kind" in record:
                records.append(record)
    return records


class Display:
    """Progress for a person: a bar on a terminal, a line now and then elsewhere. Only the first process shows it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._meter = Meter(sys.stdout) if distributed.is_rank_zero() else None

    def __enter__(self) -> Display:
        if self._meter:
            self._meter.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._meter:
            self._meter.__exit__()

    def show(self, state: TrainState, text: str) -> None:
        """A new state of things."""
        if self._meter:
            self._meter.show(f"step {state.step}", self.budget.fraction(state), text, last=self.budget.spent(state))

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._meter:
            self._meter.say(text)


class SameWeights:
    """Compares what is trained over the processes that train together, before it is logged or saved.

    Raises:
        DriftError: it is not the same in all of them.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self.every = (training.log_every, training.checkpoint_every)

    def due(self, state: TrainState) -> bool:
        return any(state.step % every == 0 for every in self.every)

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        distributed.require_same(state.tensors(), f"at step {state.step}")


class LogHook:
    """Mean of each metric since the last log, to metrics.jsonl and to the display."""

    def __init__(self, training: TrainingConfig, log: MetricsLog, display: Display) -> None:
        self.every, self.batch_size = training.log_every, training.batch_size
        self.log, self.display = log, display
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._last: Metrics = {}

    def due(self, state: TrainState) -> bool:
        return True

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._last = metrics
        if state.step % self.every == 0:
            self.flush(state)

    def flush(self, state: TrainState) -> None:
        """Log what has come since the last log, if anything."""
        if not self._sums:
            return
        mean = {name: total / self._counts[name] for name, total in self._sums.items()}
        mean |= {name: self._sums[name] for name in ("restarted",) if name in mean}  # counts, not means
        mean |= {name: self._last[name] for name in ("broken_images",) if name in self._last}
        rate = self.batch_size / mean.pop("step_seconds")
        self.log.write({"kind": "train", "step": state.step, **mean, "images_per_second": rate})
        self._sums, self._counts = {}, {}
        used = f"  usage {mean['usage']:.0%}" if "usage" in mean else ""
        self.display.show(state, f"loss {mean['loss']:.5f}{used}  {rate:,.0f} images/s  {self._left(state)} left")

    def _left(self, state: TrainState) -> str:
        fraction = self.display.budget.fraction(state)
        return clock(state.seconds * (1 - fraction) / fraction if fraction else 0)  # minutes may be overdrawn


@contextmanager
def saving_errors(run: RunFolder, state: TrainState) -> Iterator[None]:
    """Turns an OSError while something is saved into an InputError with the step and the last good checkpoint."""
    try:
        yield
    except OSError as error:
        kept = run.saved()
        good = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"step {state.step} could not be saved ({reason}); {good}: make room and continue with --resume"
        ) from error


class CheckpointHook:
    """Resume state every so many steps, and whatever `write_model` writes for others to load."""

    def __init__(self, every: int, run: RunFolder, write_model: Callable[[TrainState], None]) -> None:
        self.every, self.run, self.write_model = every, run, write_model

    def due(self, state: TrainState) -> bool:
        return state.step % self.every == 0

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        self.save(state)

    def save(self, state: TrainState) -> None:
        """Write both now, in the first process.

        Raises:
            InputError: the disk is full or not writable; the checkpoints from before stay good.
        """
        if not distributed.is_rank_zero():
            return
        with saving_errors(self.run, state):
            # the model first: a kill in between leaves a checkpoint from which it is written again
            self.write_model(state)
            self.run.save(state.step, state.tensors(), state.meta())
