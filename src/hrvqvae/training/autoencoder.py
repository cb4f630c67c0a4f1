"""The autoencoder stage: from a configuration to a run folder with a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import save_model
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch, batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import load_images
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build, build_objective
from hrvqvae.models.objective import MODEL, Objective
from hrvqvae.quantize import functional as vq
from hrvqvae.training import loggers
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog, Say
from hrvqvae.training.loop import Budget, Metrics, take_gradient
from hrvqvae.training.stage import (
    Evaluation,
    Outcome,
    begin,
    count_parameters,
    generator,
    require_new,
    seed_step,
    train_stage,
)
from hrvqvae.training.start import init_model_from
from hrvqvae.training.state import TrainState
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted

FEW_STEPS = 100  # below which a person is told that little is learned
RESTART_SHARE = 0.9  # of the budget, in which dead codewords are restarted

MakeEvaluation = Callable[[Config, RunFolder, ImageSet, MetricsLog, Display, Compute], Evaluation]
"""(configuration, run, test images, log, display, compute) -> the hook that evaluates now and then."""


class StateLearner:
    """What an objective may do (`systems.objective.Learner`), done to a training state."""

    def __init__(self, state: TrainState, compute: Compute) -> None:
        self.step = state.step
        self._state, self._compute = state, compute

    def autocast(self) -> AbstractContextManager[None]:
        return self._compute.autocast()

    def take_gradient(self, losses: Mapping[str, Tensor], of: str = MODEL) -> dict[str, float]:
        return take_gradient(*self._trained(of), losses)

    def update(self, *names: str) -> None:
        for name in names:
            self._trained(name)[1].step()

    def _trained(self, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        if name == MODEL:
            return self._state.model, self._state.optimizer
        network = self._state.auxiliary[name]
        return network.module, network.optimizer


class AutoencoderStep:
    """One update of an autoencoder; restarts dead codewords every so many steps, but in the last tenth of the budget.

    What is restarted later has no time to learn where it belongs, and would be left where it was drawn.
    """

    def __init__(
        self, model: Autoencoder, objective: Objective, config: Config, compute: Compute, budget: Budget
    ) -> None:
        self.model, self.config, self.compute, self.budget = model, config, compute, budget
        self.objective = objective
        self.broken: set[str] = set()

    def __call__(self, state: TrainState, batch: Batch) -> Metrics:
        seed_step(self.config.training.seed, state.step)
        images = self.compute.place_images(batch.images)
        self.broken.update(batch.broken)
        self.model.train()
        learned, codes = self.objective(images, StateLearner(state, self.compute))
        metrics = dict(learned)
        every = self.config.model.restart_every
        moved: dict[str, Tensor] = {}
        if every and (state.step + 1) % every == 0 and self.budget.fraction(state) < RESTART_SHARE:
            restarted, moved = self._restart_dead_codes(state, images)
            metrics["restarted"] = float(restarted)
        state.averaged.update_parameters(self.model)
        averaged, own = state.averaged.module.state_dict(), self.model.state_dict()
        for name, rows in moved.items():
            averaged[name][rows] = own[name][rows]  # no mean of two places
        if (state.step + 1) % self.config.training.log_every == 0:
            metrics["usage"] = self._usage(codes)
            self.broken.update(*distributed.all_gather_object(self.broken))
        if self.broken:
            metrics["broken_images"] = float(len(self.broken))
        return metrics

    def _restart_dead_codes(self, state: TrainState, images: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Revive dead codewords; -> how many, and the rows that moved of each codebook's tensor, by name.

        Adam's moments of those rows begin anew: they belong to the place that was left.
        """
        own = self.model.state_dict()
        before = {name: one.clone() for name, one in own.items() if name.endswith(".codewords")}
        with self.compute.autocast():
            whole = self.compute.place_images(distributed.all_gather(images))  # every process restarts the same
            restarted = self.model.restart_dead_codes(whole, generator(self.config.training.seed, state.step))
        distributed.broadcast(own.values())
        moved = {name: (own[name] != one).any(-1) for name, one in before.items()}
        parameters = dict(self.model.named_parameters())
        for name, rows in moved.items():
            for moment in ("exp_avg", "exp_avg_sq") if name in parameters else ():
                state.optimizer.state[parameters[name]][moment][rows] = 0
        return restarted, moved

    def _usage(self, codes: tuple[Tensor, ...]) -> float:
        """Share of the finest level's codewords that a batch uses."""
        finest = self.config.model.num_codewords[-1]
        (counts,) = distributed.all_reduce([vq.counts(self.model.paths(codes)[-1], finest)])
        return float((counts > 0).double().mean())


def _first_images(images: ImageSet, config: Config) -> Tensor:
    """Training images for the data-dependent start: as many as their latents are asked for."""
    rows, columns = config.model.latent_grids(config.data.size, config.data.size)[-1]
    wanted = max(1, min(len(images), config.model.start_vectors // (rows * columns)))
    some = batches(
        images, batch_size=min(wanted, config.training.batch_size), seed=config.training.seed,
        workers=0, on_error=config.data.on_error,
    )  # fmt: skip
    rounds = -(-wanted // config.training.batch_size)
    return torch.cat([batch.images for batch in islice(some, rounds)])[:wanted]


def train(config: Config, run: RunFolder, *, resume: bool, evaluation: MakeEvaluation, say: Say = print) -> Outcome:
    """Train the autoencoder of a configuration into a run folder.

    Args:
        config: with everything that it left to the machine decided.
        resume: go on where the run stopped, if it has begun.
        evaluation: makes the hook that measures the averaged model now and then, and draws what it likes.

    A run that resumes goes on from its newest whole checkpoint, to the weights of a run that never stopped.

    Raises:
        InUseError: another process trains in that folder.
        InputError: bad data, a run folder that can't be written or that holds a run (without `resume`), a full disk.
        NonFiniteError: a loss or gradient is not finite, before the update; step, terms and checkpoint are named.
    """
    with distributed.context_on_rank_zero(run.locked):
        return _train(config, run, resume=resume, evaluation=evaluation, say=say)


def _train(config: Config, run: RunFolder, *, resume: bool, evaluation: MakeEvaluation, say: Say) -> Outcome:
    """As `train`, in a folder whose lock this process has, or the first of several."""
    distributed.require_equal_parts(config.training.batch_size)
    if not resume:
        distributed.on_rank_zero(lambda: require_new(run, "choose another --out"))
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    compute = Compute.of(config.training)
    loggers.require(config.training.loggers)
    waiting("reading the images")
    images, test_images = load_images(config.data, "train", say), load_images(config.data, "test", say)
    init_from = config.training.init_from
    if init_from and not distributed.on_rank_zero(run.begun):
        init_model_from(build(config), init_from)  # raises where it does not fit, before anything is written
    distributed.on_rank_zero(lambda: run.prepare(config))

    def fresh() -> Autoencoder:
        model = build(config)
        if init_from:
            say(init_model_from(model, init_from))
            return compute.place_model(model)
        model = compute.place_model(model)
        waiting("fitting the first codewords to images")
        first = compute.place_images(_first_images(images, config))
        with compute.autocast():
            model.initialize(first, generator(config.training.seed, 0), config.training.batch_size)
        return model

    objectives = list[Objective]()

    def auxiliary(model: nn.Module) -> Mapping[str, nn.Module]:
        assert isinstance(model, Autoencoder)
        objectives.append(build_objective(model, config, compute.place_model))
        return objectives[0].auxiliary

    state = begin(
        run,
        config.training,
        compute,
        fresh=fresh,
        like=lambda: build(config),
        auxiliary=auxiliary,
        resume=resume,
        say=say,
    )
    model = state.model
    assert isinstance(model, Autoencoder)
    stream = batches(
        images, batch_size=config.training.batch_size, seed=config.training.seed, first_step=state.step,
        workers=config.data.workers, on_error=config.data.on_error, part=distributed.part(),
    )  # fmt: skip
    budget = Budget.of(config.training, len(images))
    most = FEW_STEPS if budget.steps is None else budget.steps
    if most < FEW_STEPS and not state.step:
        say(f"hint: {counted(most, 'step')} of training: little is learned beyond the start")
    count, parameters = counted(len(images), "training image"), count_parameters(model)
    say(f"{config.name}: {count}, {parameters:,} parameters, {compute.precision}")
    outcome = train_stage(
        run, config.training, compute, state, samples=len(images), stream=stream,
        step=AutoencoderStep(model, objectives[0], config, compute, budget),
        evaluation=lambda log, display: evaluation(config, run, test_images, log, display, compute),
        write_model=lambda state: save_model(run.model, config, state.averaged.module.state_dict(), state.step),
    )  # fmt: skip
    if most >= FEW_STEPS and outcome.signal is None and outcome.step < FEW_STEPS:
        took = counted(outcome.step, "step")
        say(f"hint: {took} fitted into the time: little is learned; go on with more minutes and --resume")
    return outcome
