"""The prior stage: from a run with a trained autoencoder to the priors that cover its levels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps, stored_or_extracted
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, prior_folders
from hrvqvae.checkpoints.loading import load_with_digest, save_prior
from hrvqvae.checkpoints.stale import renewal
from hrvqvae.config import Config, Levels, level_names
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, bits, build_prior, code_loss
from hrvqvae.tokens.maps import maps_of_shards
from hrvqvae.training import loggers
from hrvqvae.training.class_dropout import require_classes, withheld
from hrvqvae.training.code_batches import CodeBatch, CodeBatches
from hrvqvae.training.device import Compute
from hrvqvae.training.held_out import HeldOutHook, held_out_split
from hrvqvae.training.hooks import Say, saving_errors
from hrvqvae.training.loop import Metrics, update
from hrvqvae.training.stage import Outcome, begin, count_parameters, require_new, seed_step, train_stage
from hrvqvae.training.start import init_prior_from
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.quantities import counted

Evaluated = Callable[[RunFolder, Sequence[Mapping[str, Any]]], None]


class PriorStep:
    """One update of a prior."""

    def __init__(self, model: Prior, seed: int, compute: Compute, class_dropout: float = 0.0) -> None:
        self.model, self.seed, self.compute, self.class_dropout = model, seed, compute, class_dropout

    def __call__(self, state: TrainState, batch: CodeBatch) -> Metrics:
        seed_step(self.seed, state.step)
        self.model.train()
        placed = batch.to(self.compute.device)
        label = withheld(placed.label, self.model.level, self.class_dropout, self.seed, state.step)
        with self.compute.autocast():
            loss = code_loss(self.model, placed.codes, placed.coarser, label)
        metrics = update(self.model, state.optimizer, {"nats_per_code": loss})
        state.averaged.update_parameters(self.model)
        return {**metrics, "bits_per_code": bits(metrics["loss"])}


class PriorStage:
    """The training of one prior: its codes, its folder, and what is kept of it."""

    def __init__(
        self, run: RunFolder, config: Config, maps: CodeMaps, model: Autoencoder, model_digest: str, levels: Levels,
        evaluated: Evaluated,
    ) -> None:  # fmt: skip
        self.run, self.config, self.maps, self.levels = run, config, maps, levels
        self.training = config.prior.training_of(levels.start)
        self.codes = CodeBatches(maps, model, levels)
        self.kept, self.held_out = held_out_split(len(maps), config.prior.held_out, self.training.seed)
        self.model_digest, self.evaluated = model_digest, evaluated

    def held_out_batches(self) -> Iterator[CodeBatch]:
        """This process's part of the held-out codes; as many images as `training.evaluation_images` in all, at most."""
        held_out = self.held_out[: self.training.evaluation_images]
        return self.codes.in_order(held_out[distributed.part().of(len(held_out))], self.training.batch_size)

    def write(self, state: TrainState, bits_per_code: Sequence[float]) -> None:
        """Write the averaged prior for sampling."""
        counts = np.bincount(self.maps.labels, minlength=max(1, len(self.maps.classes)))
        with saving_errors(self.run, state):
            save_prior(
                self.run.model, self.config, state.averaged.module.state_dict(), levels=self.levels, step=state.step,
                autoencoder=self.model_digest, classes=self.maps.classes, class_counts=counts.tolist(),
                bits_per_code=bits_per_code,
            )  # fmt: skip

    def like(self) -> Prior:
        """A network of these levels' shapes, whose weights are drawn."""
        return build_prior(self.config, self.levels, len(self.maps.classes))

    def start(self, init_from: str) -> tuple[Prior, str]:
        """A network with the weights of that model's prior of these levels, and a line that says so.

        Raises:
            InputError: it has no prior of them, or one of other shapes.
        """
        prior = self.like()
        return prior, init_prior_from(prior, self.config, self.levels, self.maps.classes, init_from)

    def _prepare(self) -> None:
        """Make the prior's folder. Raises InputError where it holds a prior of another state of the autoencoder."""
        if self.run.is_stale(self.model_digest):
            raise InputError(f"{self.run.path} was {renewal(self.run.path.parent.parent)}")
        self.run.prepare(self.config)
        write_atomic(self.run.source, self.model_digest.encode())

    def train(self, compute: Compute, *, resume: bool, say: Say) -> Outcome:
        """Train into the prior's folder.

        Raises:
            InputError: it holds a prior of another state of the autoencoder.
            NonFiniteError: as `train_stage` does.
        """
        run, init_from = self.run, self.training.init_from
        distributed.require_equal_parts(self.training.batch_size)
        if init_from and not distributed.on_rank_zero(run.begun):
            self.start(init_from)  # raises where it does not fit, before anything is written
        distributed.on_rank_zero(self._prepare)

        def fresh() -> Prior:
            if not init_from:
                return compute.place_model(self.like())
            model, told = self.start(init_from)
            say(told)
            return compute.place_model(model)

        state = begin(run, self.training, compute, fresh=fresh, like=self.like, resume=resume, say=say)
        prior = state.model
        assert isinstance(prior, Prior)
        say(
            f"{self.config.name}, prior of {level_names(self.levels)}: {counted(len(self.kept), 'image')}, "
            f"{len(self.held_out):,} held out, {count_parameters(prior):,} parameters, {compute.precision}"
        )
        return train_stage(
            run, self.training, compute, state, samples=len(self.kept),
            stream=self.codes.stream(self.kept, self.training.batch_size, self.training.seed, state.step),
            step=PriorStep(prior, self.training.seed, compute, self.config.prior.class_dropout),
            evaluation=lambda log, display: HeldOutHook(
                self.held_out_batches, self.training.evaluate_every, log, display, compute, self.write,
                lambda: self.evaluated(run, log.records),
            ),
            write_model=lambda state: None,
        )  # fmt: skip


def train_priors(
    path: str | Path, configs: dict[Levels, Config], *, resume: bool, evaluated: Evaluated = lambda *_: None,
    say: Say = print,
) -> dict[Levels, Outcome]:  # fmt: skip
    """Train priors of a run, one after the other; -> how each ended.

    Ends early where a signal stopped one.

    Args:
        path: the run folder, whose autoencoder is trained.
        configs: the levels that a prior covers -> its configuration.
        evaluated: called with a prior's folder and the records of its log after each evaluation, to draw them.

    Raises:
        InUseError: another process trains one of them.
        InputError: no trained autoencoder, no data, a prior that is there already (without `resume`), or another one
            that covers one of the levels.
        NonFiniteError: as the autoencoder's training does.
    """
    folders = {levels: prior_folder(path, *levels) for levels in configs}
    run = RunFolder(Path(path))
    model, config, digest = load_with_digest(path)
    first = next(iter(configs.values()))
    loggers.require(first.prior.training.loggers)
    config = dataclasses.replace(config, data=first.data)
    device = Compute.of(first.prior.training).device
    outcomes = {}

    def prepare() -> None:
        """What was asked for holds for priors that a signal keeps from beginning."""
        for levels, folder in folders.items():
            folder.prepare(configs[levels])

    def require_apart() -> None:
        for levels, folder in folders.items():
            found = prior_folders(path)
            others = [one for one in found if one != levels and set(one) & set(levels)]
            if others:
                names, paths = ", ".join(map(level_names, others)), ", ".join(str(found[one].path) for one in others)
                raise InputError(f"there is a prior of {names}: delete {paths} to train one of {level_names(levels)}")
            if not resume:
                require_new(folder, "delete that folder to train it anew")

    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(distributed.context_on_rank_zero(folder.locked))
        distributed.on_rank_zero(require_apart)
        if first.prior.codes is None:
            maps = stored_or_extracted(run.codes, model, digest, config, "train", device, say)
        else:
            maps = maps_of_shards(run.codes, Path(first.prior.codes), model, config, say)
        require_classes(first.prior.class_dropout, maps.classes)
        distributed.on_rank_zero(prepare)
        for levels, folder in folders.items():
            training = configs[levels].prior.training
            if training.threads:
                torch.set_num_threads(training.threads)
            stage = PriorStage(folder, configs[levels], maps, model, digest, levels, evaluated)
            outcomes[levels] = stage.train(Compute.of(training), resume=resume, say=say)
            if outcomes[levels].signal is not None:
                break
    return outcomes
