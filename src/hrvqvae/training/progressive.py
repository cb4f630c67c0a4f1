"""The prefix stage: from a run with a trained autoencoder to a decoder of its first levels.

The autoencoder is frozen. The progressive decoder begins as a copy of its own, behind a refiner that changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder, progressive_folder
from hrvqvae.checkpoints.loading import load_with_digest, save_progressive_decoder
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.data.batches import Batch, batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import load_images
from hrvqvae.models.base import unit_images
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import build_progressive_decoder, several_levels
from hrvqvae.models.one_grid import OneGrid
from hrvqvae.training import loggers
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog, Say
from hrvqvae.training.loop import Metrics, update
from hrvqvae.training.stage import Evaluation, Outcome, begin, count_parameters, require_new, seed_step, train_stage
from hrvqvae.training.start import init_progressive_decoder_from
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted

MakeEvaluation = Callable[[OneGrid, Config, RunFolder, ImageSet, MetricsLog, Display, Compute], Evaluation]
"""(model, configuration with the training of this stage, folder, test images, log, display, compute) -> the hook that
evaluates the model with the averaged progressive decoder now and then."""

_ANEW = "delete that folder to train it anew"


class ProgressiveStep:
    """One update of a progressive decoder: each image of a batch is cut to a prefix, in turn.

    The error of each prefix is divided by its own value, so that none outweighs another: the mean of their PSNR is what
    grows.
    """

    def __init__(self, model: OneGrid, seed: int, compute: Compute) -> None:
        self.model, self.seed, self.compute = model, seed, compute

    def __call__(self, state: TrainState, batch: Batch) -> Metrics:
        seed_step(self.seed, state.step)
        decoder = state.model
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder.train())
        images = unit_images(self.compute.place_images(batch.images), self.model.channels)
        prefixes = self.model.prefixes[:-1]
        which = (torch.arange(len(images), device=images.device) + state.step) % len(prefixes)
        with self.compute.autocast():
            latents = self.model.prefix_latents(self.model.encode(images), which + 1)
            decoded = self.model.prefix_pixels(latents, which + 1, (images.shape[-2], images.shape[-1]))
        errors = (decoded.float() - (images * 2 - 1)).square().mean((1, 2, 3))
        sums = torch.stack([errors[which == index].sum() for index in range(len(prefixes))])
        counts = torch.bincount(which, minlength=len(prefixes)).to(sums)
        total, number = distributed.all_reduce_mean([sums.detach(), counts])
        relative = sums / total.clamp(min=1e-12)
        losses = {f"relative_{levels}": one for levels, one in zip(prefixes, relative, strict=True)}
        norm = update(decoder, state.optimizer, losses)["gradient_norm"]
        state.averaged.update_parameters(decoder)
        means = zip(prefixes, (total / number).tolist(), strict=True)
        found = {f"reconstruction_{levels}": mean for levels, mean in means if not math.isnan(mean)}
        return {**found, "loss": math.fsum(found.values()), "gradient_norm": norm}


def train_progressive(
    path: str | Path, config: Config, *, resume: bool, evaluation: MakeEvaluation, say: Say = print
) -> Outcome:
    """Train a progressive decoder into its folder `prefixes`.

    Args:
        path: the folder, whose autoencoder is trained. A decoder for another state of it makes way.
        config: of the run, with `prefixes` as it is to be trained.
        resume: go on where the training stopped, if it has begun.
        evaluation: makes the hook that measures the model now and then; its state holds the averaged decoder.

    Raises:
        InUseError: another process trains it.
        InputError: no trained autoencoder, one that has no prefixes for a decoder of their own, no data, a decoder
            that is there already (without `resume`), a full disk.
        NonFiniteError: as the autoencoder's training does.
    """
    model, stored, digest = load_with_digest(path, progressive=False)
    whole = several_levels(model, stored)
    training = config.progressive.training.with_batch_size(config.training.batch_size)
    distributed.require_equal_parts(training.batch_size)
    loggers.require(training.loggers)
    run = progressive_folder(path)
    with distributed.context_on_rank_zero(run.locked):
        stale = distributed.on_rank_zero(lambda: run.is_stale(digest))
        if not (resume or stale):
            distributed.on_rank_zero(lambda: require_new(run, _ANEW))
        stage = _Stage(run, config, training, whole, digest, stale)
        return stage.train(resume=resume, evaluation=evaluation, say=say)


@dataclass(frozen=True)
class _Stage:
    """The training of one progressive decoder, in a folder whose lock this process has, or the first of several.

    Attributes:
        digest: of the autoencoder.
        stale: whether the folder holds what was trained for another state of it, which makes way.
    """

    run: RunFolder
    config: Config
    training: TrainingConfig
    model: OneGrid
    digest: str
    stale: bool

    def _prepare(self) -> None:
        """Make the folder, without what is stale.

        Raises:
            InputError: it holds a decoder without its training, as `export` writes it.
        """
        for path in (*self.run.saved(), self.run.model) if self.stale else ():
            path.unlink(missing_ok=True)
        if self.run.begun() and not self.run.source.is_file():
            raise InputError(f"{self.run.path} holds a decoder, but nothing of its training to go on from; {_ANEW}")
        self.run.prepare(self.config)
        write_atomic(self.run.source, self.digest.encode())

    def _start(self, decoder: ProgressiveDecoder, say: Say) -> ProgressiveDecoder:
        """The decoder as training starts with it. Raises InputError where another one does not fit it."""
        if self.training.init_from:
            say(init_progressive_decoder_from(decoder, self.training.init_from))
        return decoder

    def _write(self, state: TrainState) -> None:
        weights = state.averaged.module.state_dict()
        save_progressive_decoder(self.run.model, self.config, weights, step=state.step, autoencoder=self.digest)

    def train(self, *, resume: bool, evaluation: MakeEvaluation, say: Say) -> Outcome:
        run, config, training, model = self.run, self.config, self.training, self.model
        if training.threads:
            torch.set_num_threads(training.threads)
        compute = Compute.of(training)
        waiting("reading the images")
        images, test_images = load_images(config.data, "train", say), load_images(config.data, "test", say)

        def like() -> ProgressiveDecoder:
            return build_progressive_decoder(model, config)

        if self.stale or not distributed.on_rank_zero(run.begun):
            self._start(like(), lambda _: None)  # raises before anything is written or cleared
        distributed.on_rank_zero(self._prepare)
        if self.stale:
            say(f"what {run.path} held was trained for another state of the model, and makes way")
        compute.place_model(model)
        state = begin(
            run, training, compute, fresh=lambda: compute.place_model(self._start(like(), say)), like=like,
            resume=resume, say=say,
        )  # fmt: skip
        stream = batches(
            images, batch_size=training.batch_size, seed=training.seed, first_step=state.step,
            workers=config.data.workers, on_error=config.data.on_error, part=distributed.part(),
        )  # fmt: skip
        say(
            f"{config.name}, prefixes: {counted(len(images), 'training image')}, "
            f"{count_parameters(state.model):,} parameters, {compute.precision}"
        )
        staged = dataclasses.replace(config, training=training)
        return train_stage(
            run, training, compute, state, samples=len(images), stream=stream,
            step=ProgressiveStep(model, training.seed, compute),
            evaluation=lambda log, display: evaluation(model, staged, run, test_images, log, display, compute),
            write_model=self._write,
        )  # fmt: skip
