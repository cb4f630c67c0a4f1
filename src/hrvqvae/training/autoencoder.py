"""The autoencoder stage: from a configuration to a run folder with a trained model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from hrvqvae import data
from hrvqvae.checkpoint import RunFolder, save_model
from hrvqvae.config import Config
from hrvqvae.data import Batch, ImageSet
from hrvqvae.evaluation.evaluate import LevelReport, Report, evaluate
from hrvqvae.models import VQGAN, Autoencoder, build
from hrvqvae.pictures import curves, sheets
from hrvqvae.quantize import Codes
from hrvqvae.quantize import functional as vq
from hrvqvae.training.adversarial import AdversarialObjective, partners_of
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog, Say
from hrvqvae.training.loop import Budget, Metrics, update
from hrvqvae.training.stage import Outcome, begin, count_parameters, generator, require_new, train_stage
from hrvqvae.training.state import TrainState

SHEET_IMAGES = 8
REVIVAL_SHARE = 0.9  # of the budget, in which dead codewords are revived


class Objective(Protocol):
    """One update of the state from a batch of images, in training mode; -> what is logged, and the batch's codes."""

    def __call__(self, state: TrainState, images: Tensor) -> tuple[Metrics, Codes]: ...


class SumOfLosses:
    """Minimize the sum of the losses that the model names."""

    def __init__(self, model: Autoencoder, compute: Compute) -> None:
        self.model, self.compute = model, compute

    def __call__(self, state: TrainState, images: Tensor) -> tuple[Metrics, Codes]:
        with self.compute.autocast():
            result = self.model(images)
        return update(self.model, state.optimizer, result.losses), result.codes


def objective_of(model: Autoencoder, config: Config, compute: Compute) -> Objective:
    """How a system learns."""
    if isinstance(model, VQGAN):
        return AdversarialObjective(model, config, compute)
    return SumOfLosses(model, compute)


class AutoencoderStep:
    """One update of an autoencoder; revives dead codewords every so many steps, but in the last tenth of the budget.

    What is revived later has no time to learn where it belongs, and would be left where it was drawn.
    """

    def __init__(self, model: Autoencoder, config: Config, compute: Compute, budget: Budget) -> None:
        self.model, self.config, self.compute, self.budget = model, config, compute, budget
        self.objective = objective_of(model, config, compute)
        self.broken: set[str] = set()

    def __call__(self, state: TrainState, batch: Batch) -> Metrics:
        images = self.compute.place_images(batch.images)
        self.broken.update(batch.broken)
        self.model.train()
        learned, codes = self.objective(state, images)
        metrics = dict(learned)
        every = self.config.model.quantizer.revive_every
        moved: dict[str, Tensor] = {}
        if every and (state.step + 1) % every == 0 and self.budget.fraction(state) < REVIVAL_SHARE:
            revived, moved = self._revive(state, images)
            metrics["revived"] = float(revived)
        state.averaged.update_parameters(self.model)
        averaged, own = state.averaged.module.state_dict(), self.model.state_dict()
        for name, rows in moved.items():
            averaged[name][rows] = own[name][rows]  # no mean of two places
        if (state.step + 1) % self.config.training.log_every == 0:
            metrics["usage"] = self._usage(codes)
        if self.broken:
            metrics["broken_images"] = float(len(self.broken))
        return metrics

    def _revive(self, state: TrainState, images: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Revive dead codewords; -> how many, and the rows that moved of each codebook's tensor, by name.

        Adam's moments of those rows begin anew: they belong to the place that was left.
        """
        own = self.model.state_dict()
        before = {name: one.clone() for name, one in own.items() if name.endswith(".codewords")}
        with self.compute.autocast():
            revived = self.model.revive(images, generator(self.config.training.seed, state.step))
        moved = {name: (own[name] != one).any(-1) for name, one in before.items()}
        parameters = dict(self.model.named_parameters())
        for name, rows in moved.items():
            for moment in ("exp_avg", "exp_avg_sq") if name in parameters else ():
                state.optimizer.state[parameters[name]][moment][rows] = 0
        return revived, moved

    def _usage(self, codes: tuple[Tensor, ...]) -> float:
        """Share of the finest level's codewords that a batch uses."""
        finest = self.config.model.num_codewords[-1]
        return float((vq.counts(self.model.paths(codes)[-1], finest) > 0).double().mean())


def level_rows(model: Autoencoder, images: Tensor, captions: Sequence[str]) -> list[sheets.Row]:
    """Originals above their reconstructions, a row for each prefix of the levels that the system decodes."""
    size = (images.shape[-2], images.shape[-1])
    with torch.inference_mode():
        codes = model.encode(images)
        rows = [sheets.Row("original", list(images))]
        for level, caption in zip(model.prefixes, captions, strict=True):
            rows.append(sheets.Row(caption, list(model.decode(codes, levels=level, size=size))))
    return rows


def level_captions(levels: Sequence[LevelReport]) -> list[str]:
    """A caption for each prefix of the levels that was decoded, with its MSE."""
    named = [("level 1" if number == 1 else f"levels 1-{number}", level.mse) for number, level in enumerate(levels, 1)]
    return [f"{name}: MSE {error:.2e}" for name, error in named if error is not None]


class EvaluationHook:
    """Test metrics and pictures of the averaged model, every so many steps."""

    def __init__(
        self, config: Config, run: RunFolder, images: ImageSet, log: MetricsLog, display: Display, compute: Compute
    ) -> None:
        self.config, self.run, self.images, self.log = config, run, images, log
        self.display, self.compute = display, compute

    def due(self, state: TrainState) -> bool:
        return state.step % self.config.training.evaluate_every == 0

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        report = self.evaluate(state)
        levels = report.levels
        record = {
            "kind": "evaluation", "step": state.step, "images": report.images, "mse": report.mse, "psnr": report.psnr,
            "ssim": report.ssim, "level_mse": [level.mse for level in levels],
            "usage": [level.usage for level in levels], "perplexity": [level.perplexity for level in levels],
        }  # fmt: skip
        self.log.write(record)
        used = " ".join(f"{level.used}/{level.codewords}" for level in levels)
        self.display.say(f"step {state.step}  test MSE {report.mse:.3e}  PSNR {report.psnr:.2f} dB  codewords {used}")
        self._pictures(state, report)

    def evaluate(self, state: TrainState) -> Report:
        model = self._model(state)
        batches = self._batches(self.config.training.evaluation_images, self.config.data.workers)
        return evaluate(model, self.config, batches, "test", self.compute.device)

    def _model(self, state: TrainState) -> Autoencoder:
        model = state.averaged.module
        assert isinstance(model, Autoencoder)
        return model.eval()

    def _batches(self, limit: int, workers: int) -> Generator[Batch, None, None]:
        return data.evaluation_batches(
            self.images, batch_size=self.config.training.batch_size, limit=limit,
            workers=workers, on_error=self.config.data.on_error,
        )  # fmt: skip

    def _pictures(self, state: TrainState, report: Report) -> None:
        few = next(self._batches(SHEET_IMAGES, workers=0)).images
        images = self.compute.place_images(few).float() / 255
        captions = level_captions(report.levels)
        rows = level_rows(self._model(state), images, captions)
        sheets.save(sheets.draw(rows), self.run.pictures / "reconstructions.png")
        curves.training_curves(self.log.records, self.run.pictures / "curves.png")
        curves.codeword_usage([level.counts for level in report.levels], self.run.pictures / "usage.png")


def _first_images(images: ImageSet, config: Config) -> Tensor:
    """Training images for the data-dependent start: as many as their latents are asked for."""
    rows, columns = config.model.latent_grids(config.data.size, config.data.size)[-1]
    wanted = max(1, min(len(images), config.model.quantizer.init_vectors // (rows * columns)))
    some = data.batches(
        images, batch_size=min(wanted, config.training.batch_size), seed=config.training.seed,
        workers=0, on_error=config.data.on_error,
    )  # fmt: skip
    rounds = -(-wanted // config.training.batch_size)
    return torch.cat([batch.images for batch in islice(some, rounds)])[:wanted]


def train(config: Config, run: RunFolder, *, resume: bool, say: Say = print) -> Outcome:
    """Train the autoencoder of a configuration into a run folder.

    A run that resumes goes on from its newest whole checkpoint, to the weights of a run that never stopped.

    Raises:
        InputError: bad data, a run folder that can't be written or that holds a run (without `resume`), a full disk.
        NonFiniteError: a loss or gradient is not finite, before the update; step, terms and checkpoint are named.
    """
    if not resume:
        require_new(run, "choose another --out")
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    compute = Compute.of(config.training)
    images, test_images = data.load(config.data, "train"), data.load(config.data, "test")
    run.create()
    run.write_config(config)

    def fresh() -> Autoencoder:
        model = compute.place_model(build(config))
        first = compute.place_images(_first_images(images, config))
        with compute.autocast():
            model.initialize(first, generator(config.training.seed, 0), config.training.batch_size)
        return model

    state = begin(
        run, config.training, compute, fresh=fresh, like=lambda: build(config),
        partners=lambda: partners_of(config, compute), resume=resume, say=say,
    )  # fmt: skip
    model = state.model
    assert isinstance(model, Autoencoder)
    stream = data.batches(
        images, batch_size=config.training.batch_size, seed=config.training.seed, first_step=state.step,
        workers=config.data.workers, on_error=config.data.on_error,
    )  # fmt: skip
    say(f"{config.name}: {len(images):,} training images, {count_parameters(model):,} parameters, {compute.precision}")
    return train_stage(
        run, config.training, compute, state, samples=len(images), stream=stream,
        step=AutoencoderStep(model, config, compute, Budget.of(config.training, len(images))),
        evaluation=lambda log, display: EvaluationHook(config, run, test_images, log, display, compute),
        write_model=lambda state: save_model(run.model, config, state.averaged.module.state_dict(), state.step),
    )  # fmt: skip
