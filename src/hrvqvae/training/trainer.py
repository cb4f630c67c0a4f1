"""The trainer: begin or resume a task, take its steps, log, save checkpoints and evaluate.

The trainer writes a checkpoint before it evaluates. So no step is lost if the evaluation fails or
is killed, and a resumed run repeats the evaluation.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from hrvqvae import distributed
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.data.batches import explain_worker_errors, make_rng
from hrvqvae.models.objective import Metrics
from hrvqvae.training.loggers import MetricsLog, Record
from hrvqvae.training.optimizers import compute_learning_rate
from hrvqvae.training.state import TrainState, copy_weights, count_parameters
from hrvqvae.utils.device import Compute, exact_float32
from hrvqvae.utils.errors import InputError, explain_write_errors, require_made_for
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.progress import Meter, say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # they stop a training


class Evaluation(NamedTuple):
    """The results of an evaluation."""

    record: Record  #: the logged values
    line: str  #: a summary in one line


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    step: int  #: steps taken over all resumptions
    signal: int | None  #: the signal that stopped the training, if any
    seconds: float  #: wall-clock time over all resumptions


class Task(ABC):
    """The training of one network: its folder, batches, steps, evaluation and model file.

    Args:
        config: The configuration, which is written to the folder.
        run: The folder.
        training: The section of the configuration for this network (default: `config.training`).

    Raises InputError if the processes can't have equal parts of a batch.
    """

    # set by `read_data`
    num_samples: int  #: number of samples in an epoch
    data_digest: str  #: digest of the samples
    description: str  #: the name of the network and the amount of data, for a message

    parent_run: Path | None = None  #: the autoencoder's run, if the network is another
    autoencoder_digest = ""  #: digest of the autoencoder in the parent run

    def __init__(
        self, config: Config, run: RunFolder, training: TrainingConfig | None = None
    ) -> None:
        self.config = config
        self.run = run
        self.training = training or config.training
        self.compute = Compute(self.training)
        require_divisible("batch", self.training.batch_size)

    def open_data(self) -> None:  # noqa: B027
        """Open the data before the folder is made. Raises InputError if there is none."""

    @abstractmethod
    def read_data(self) -> None:
        """Read the data, and set the attributes that describe it. Raises InputError if there is
        none.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the untrained network on the CPU, with weights drawn from torch's global
        generator.
        """

    def init_from(self, model: Any) -> None:
        """Copy the weights of the same network in the run `training.init_from`. Raises InputError
        as `copy_weights`, or if there are none.
        """
        assert self.parent_run is not None
        place = self.run.path.relative_to(self.parent_run)
        source = RunFolder(open_run(self.training.init_from).path / place).model
        copy_weights(model, storage.read(source)[0], str(source))

    def initialize(self, model: Any) -> None:  # noqa: B027
        """Initialize parts of an untrained network, such as codebooks, from the data. The network
        is on its device.
        """

    def build_objective(self) -> Mapping[str, nn.Module]:
        """Build the objective on the device; return its auxiliary networks (a discriminator) by
        name.
        """
        return {}

    @abstractmethod
    def batches(self, first_step: int) -> Generator[Any, None, None]:
        """Yield this process's share of each batch, from the batch of `first_step` on, forever."""

    @abstractmethod
    def step(self, state: TrainState, batch: Any) -> Metrics:
        """Update the networks and the moving average; return the values to log, by name.

        Raises NonFiniteError on a CPU, before a weight is updated. On a GPU the trainer checks the
        logged values.
        """

    @abstractmethod
    def evaluate(self, state: TrainState, records: Sequence[Record]) -> Evaluation:
        """Measure the averaged model, in every process; `records` is the log so far."""

    @abstractmethod
    def draw(self, state: TrainState, records: Sequence[Record]) -> None:
        """Draw the pictures of an evaluation. Called in rank 0 after `evaluate`."""

    def is_finished(self, records: Sequence[Record]) -> bool:
        """Return whether the training ends before its budget is spent, by its log."""
        return False

    @abstractmethod
    def save(self, state: TrainState) -> None:
        """Write the model file. Called in rank 0 after each checkpoint. Raises OSError."""


@dataclass
class Trainer:
    """Trains a task into its run folder, in one process or in several that train together.

    A run resumes from its newest intact checkpoint, and ends with the same weights as an
    uninterrupted run.
    """

    task: Task
    resume: bool = False  #: continue a training that has begun; False refuses it (InputError)
    force: bool = False  #: also if other networks or files were made for the weights
    pictures: bool = True  #: draw pictures after each evaluation
    saved_step = -1  # of the newest checkpoint

    def train(self) -> Outcome:
        """Train until the budget is spent or a signal asks to stop; then save a checkpoint and
        evaluate.

        Raises:
            InputError: the data is bad, the folder can't be written, is in use or holds another
                training, the disk is full, or the numbers of images of the processes differ.
            NonFiniteError: a loss or gradient is not finite. The step is not saved, but codebooks
                in memory may have changed if their update is "ema".
        """
        task = self.task
        device = task.compute.device
        task.open_data()
        with ExitStack() as stack:
            stack.enter_context(distributed.lock_on_rank_zero(task.run.path))

            # restore the caller's threads, TF32 and random state at the end
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            stack.enter_context(exact_float32())
            gpus = [device] if device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(gpus))

            # report a full disk in one line
            advice = "; make room, and continue with --resume"
            stack.enter_context(explain_write_errors(task.run.path, advice))
            state = self._prepare_state()
            stack.enter_context(explain_worker_errors())
            self.batches = stack.enter_context(closing(task.batches(state.step)))
            self.processes = ProcessSync()
            if threading.current_thread() is threading.main_thread():
                for signum in _SIGNALS:
                    handler = signal.signal(signum, self.processes.receive)
                    stack.callback(signal.signal, signum, handler)
            self.meter = Meter(sys.stdout)
            stack.callback(self.meter.close)
            tensorboard = bool(task.training.loggers)
            self.log = MetricsLog(task.run.metrics, state.step, tensorboard=tensorboard)
            stack.callback(self.log.close)

            # Metrics are logged at the end of a training, and its last checkpoint may hold them
            # too: do not log them twice.
            if self.log.has("train", state.step):
                state.unlogged.clear()

            # repeat an evaluation that a kill interrupted
            if state.step and state.step % task.training.evaluate_every == 0:
                self._evaluate(state)
            self._take_steps(state)
            self._end(state)

        return Outcome(state.step, self.processes.signal, state.seconds)

    # ---- before the first step ----

    def prepare_folder(self) -> bool:
        """Write the configuration of a new run; return whether the run is new. Called in rank 0.

        Raises InputError if the folder must not be overwritten, or the run of its autoencoder is in
        use.
        """
        task = self.task
        run = task.run
        if task.parent_run is not None:
            with lock_folder(task.parent_run):
                pass  # the autoencoder is not being trained
            if run.model.is_file():
                wanted = {"autoencoder": task.autoencoder_digest}
                require_made_for(run.path, storage.read_meta(run.model), wanted)
        if not run.begun():
            run.prepare(task.config)
            return True
        if self.resume:
            return False
        raise InputError(
            f"{run.path} holds a run already: continue it with --resume, or move the folder away"
        )

    def _prepare_state(self) -> TrainState:
        """Prepare the folder; return the state of the newest intact checkpoint, or that of a new
        training.
        """
        task = self.task
        run = task.run
        training = task.training
        is_new = distributed.on_rank_zero(self.prepare_folder)
        if training.threads:
            torch.set_num_threads(training.threads)
        task.read_data()
        counts = {int(count) for (count,) in distributed.all_gather_numbers(task.num_samples)}
        if len(counts) > 1:
            raise InputError(
                f"the processes found {min(counts):,} to {max(counts):,} training images: give"
                " every machine the same data"
            )

        # build the network
        torch.manual_seed(training.seed)
        model = task.build()
        if is_new and training.init_from:
            task.init_from(model)
            say(f"beginning with the weights of {training.init_from}")
        task.compute.place_model(model)
        if is_new and not training.init_from:
            task.initialize(model)
        state = TrainState.start(model, training, task.build_objective(), task.num_samples)

        # continue a run that has begun
        if not is_new:
            self._restore(state)
            distributed.on_rank_zero(partial(run.prepare, task.config))
        distributed.broadcast(state.tensors().values())
        say(f"{task.description}, {count_parameters(model):,} parameters, {task.compute.precision}")
        return state

    def _restore(self, state: TrainState) -> None:
        """Restore the newest intact checkpoint."""
        task = self.task
        run = task.run
        tensors, meta = distributed.on_rank_zero(lambda: run.load_newest(say))
        if meta["data"] != task.data_digest:
            raise InputError(
                f"{run.path} was trained on other images: give those images, or begin another run"
                " with its weights, by --init-from"
            )
        state.restore(tensors, meta)
        self.saved_step = state.step
        distributed.on_rank_zero(partial(self._save_restored, state))
        say(f"resuming {run.path} at step {state.step}")

    def _save_restored(self, state: TrainState) -> None:
        """Write the model file of a restored state, since a kill may have left an earlier one.

        The weights stay as they are if anything was made for them. Raises InputError if the
        training would change such weights. Called in rank 0.
        """
        run = self.task.run
        made = run.list_made() if run.model.is_file() and not self.force else []
        if not made:
            self.task.save(state)
        elif state.fraction < 1 or storage.read_meta(run.model)["step"] != state.step:
            path = shlex.quote(str(run.path))
            raise InputError(
                f"{run.path} is finished: other weights would make {', '.join(made)} void, and its"
                f" files of codes unreadable; begin with its weights (hrvqvae train {path}"
                f" --init-from {path} --out NEW), or go on all the same with --force"
            )

    # ---- steps ----

    def _take_steps(self, state: TrainState) -> None:
        """Take steps until the budget is spent, the task is finished, or a process gets a signal or
        can't read a batch.
        """
        task = self.task
        training = task.training
        processes = self.processes
        batch = self._read(state)
        processes.sync()  # begin to measure the time
        while not (processes.signal or processes.failed or state.fraction >= 1):
            if task.is_finished(self.log.records):
                break

            # set the learning rate
            rate = compute_learning_rate(training, state.step, state.fraction)
            for network in state.networks.values():
                for group in network.optimizer.param_groups:
                    group["lr"] = rate

            # seed torch's global generators, for dropout; each rank draws other numbers
            seed = (training.seed << 32) + state.step
            if rank := distributed.rank():
                seed = int(make_rng("step", training.seed, state.step, rank).integers(2**63))
            torch.manual_seed(seed)

            # take a step
            state.model.train()
            metrics = task.step(state, batch)
            state.step += 1
            batch = self._read(state)
            seconds = processes.sync()
            state.seconds += seconds
            state.unlogged.append({**metrics, "learning_rate": rate, "step_seconds": seconds})

            # log, save and evaluate
            is_evaluated = state.step % training.evaluate_every == 0
            if state.step % training.log_every == 0:
                self._log(state)
            if is_evaluated or state.step % training.checkpoint_every == 0:
                self._save(state)
            if is_evaluated:
                self._evaluate(state)
            state.seconds += processes.sync()

    def _read(self, state: TrainState) -> Any:
        """Return the next batch; None after the last step, or if it can't be read."""
        if state.fraction < 1:
            try:
                return next(self.batches)
            except InputError as error:
                self.processes.error = error  # raised after a checkpoint is saved
        return None

    def _end(self, state: TrainState) -> None:
        """Log and save what is not yet saved; then evaluate, or raise the error of `_read`."""
        if state.unlogged:
            self._log(state)
        if state.step != self.saved_step:
            self._save(state)
        if self.processes.failed:
            distributed.raise_first(self.processes.error)
        if self.processes.signal is None:
            self._evaluate(state)

    def _log(self, state: TrainState) -> None:
        """Log and show the mean metrics since the last log."""
        metrics = state.read_unlogged()
        mean = self.log.write_means(state.step, metrics, self.task.training.batch_size)
        state.unlogged.clear()
        remaining = state.seconds / state.fraction - state.seconds
        time_left = timedelta(seconds=max(0, int(remaining)))
        summary = (
            f"loss {mean['loss']:.5f}  {mean['images_per_second']:,.0f} images/s  {time_left} left"
        )
        self.meter.show(f"step {state.step}", state.fraction, summary, last=state.fraction >= 1)

    def _save(self, state: TrainState) -> None:
        """Write a checkpoint and then the model file.

        Raises NonFiniteError before writing.
        """
        meta = {**state.meta(), "data": self.task.data_digest}
        if distributed.rank() == 0:
            self.task.run.save(state.step, state.tensors(), meta)
            self.task.save(state)
        self.saved_step = state.step

    def _evaluate(self, state: TrainState) -> None:
        """Evaluate the step, unless the log has its evaluation already."""
        if self.log.has("evaluation", state.step):
            return
        evaluation = self.task.evaluate(state, self.log.records)
        self.meter.say(f"step {state.step}  {evaluation.line}")
        if self.pictures and distributed.rank() == 0:
            record = {"kind": "evaluation", "step": state.step, **evaluation.record}
            self.task.draw(state, [*self.log.records, record])
        # last, so that a run that is killed before draws its pictures when it resumes
        self.log.write("evaluation", state.step, evaluation.record)


class ProcessSync:
    """Shares the time spent, signals and errors among the processes that train together.

    All processes then use the same learning rate and end at the same step.
    """

    signal: int | None = None  #: a signal that some process received before the last `sync`
    failed = False  #: whether some process had an error before the last `sync`
    error: InputError | None = None  #: the error of this process
    _received = 0  # a signal that this process received
    _synced_at = 0.0

    def sync(self) -> float:
        """Exchange signals, errors and the times since the last `sync` with all processes; return
        the longest time.
        """
        now = time.monotonic()
        gathered = distributed.all_gather_numbers(
            self._received, self.error is not None, now - self._synced_at
        )
        self._synced_at = now
        signals, errors, seconds = zip(*gathered, strict=True)
        self.signal = int(max(signals)) or None
        self.failed = any(errors)
        return max(seconds)

    def receive(self, signum: int, _: FrameType | None) -> None:
        """Handle a first signal: end the training after the current step. A second signal ends the
        process at once.
        """
        self._received = signum
        for handled in _SIGNALS:
            signal.signal(handled, signal.SIG_DFL)


def require_divisible(name: str, size: int) -> None:
    """Raise InputError unless all processes can have equal parts of a batch."""
    processes = distributed.world_size()
    if size % processes:
        raise InputError(
            f"{processes} processes can't share a {name} of {size} equally; choose a size that is a"
            f" multiple of {processes}"
        )
