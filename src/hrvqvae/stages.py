"""The stages as people run them: training with evaluation and pictures, from names, fields and folders."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder, prior_folders, progressive_folder
from hrvqvae.checkpoints.loading import described_config
from hrvqvae.config import Config, Levels
from hrvqvae.config.parsing import begin_autoencoder, continue_autoencoder, prior_config, progressive_config
from hrvqvae.data.batches import Batch, evaluation_batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.distributed import WHOLE, Part
from hrvqvae.evaluation.distortion import Report, evaluate
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.one_grid import OneGrid
from hrvqvae.plots import curves, sheets
from hrvqvae.plots.images import level_captions, level_rows
from hrvqvae.training import autoencoder, prior, progressive
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog, Say
from hrvqvae.training.loop import Metrics
from hrvqvae.training.stage import Outcome
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError

_SHEET_IMAGES = 8


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
        self.display.say(f"step {state.step}  test {self._told(report)}")
        if distributed.is_rank_zero():
            self._draw(state, report)

    def evaluate(self, state: TrainState) -> Report:
        """The averaged model on the test images that an evaluation takes."""
        batches = self._batches(self.config.training.evaluation_images, self.config.data.workers, distributed.part())
        return evaluate(self._model(state), self.config, batches, "test", self.compute.device)

    def _told(self, report: Report) -> str:
        used = " ".join(f"{level.used}/{level.codewords}" for level in report.levels)
        return f"MSE {report.mse:.3e}  PSNR {report.psnr:.2f} dB  codewords {used}"

    def _model(self, state: TrainState) -> Autoencoder:
        model = state.averaged.module
        assert isinstance(model, Autoencoder)
        return model.eval()

    def _batches(self, limit: int, workers: int, part: Part = WHOLE) -> Generator[Batch, None, None]:
        return evaluation_batches(
            self.images, batch_size=self.config.training.batch_size, limit=limit,
            workers=workers, on_error=self.config.data.on_error, part=part,
        )  # fmt: skip

    def _draw(self, state: TrainState, report: Report) -> None:
        few = next(self._batches(_SHEET_IMAGES, workers=0)).images
        images = self.compute.place_images(few).float() / 255
        rows = level_rows(self._model(state), images, level_captions(report.levels))
        sheets.save(sheets.draw(rows), self.run.pictures / "reconstructions.png")
        curves.training_curves(self.log.records, self.run.pictures / "curves.png")
        curves.codeword_usage([level.counts for level in report.levels], self.run.pictures / "usage.png")


class ProgressiveEvaluationHook(EvaluationHook):
    """The same of a model whose prefixes the averaged decoder decodes."""

    def __init__(
        self, model: OneGrid, config: Config, run: RunFolder, images: ImageSet, log: MetricsLog, display: Display,
        compute: Compute,
    ) -> None:  # fmt: skip
        super().__init__(config, run, images, log, display, compute)
        self.model = model

    def _told(self, report: Report) -> str:
        return ", ".join(level_captions(report.levels))

    def _model(self, state: TrainState) -> Autoencoder:
        decoder = state.averaged.module
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder.eval())
        return self.model


def train_autoencoder(config: Config, run: RunFolder, *, resume: bool, say: Say = print) -> Outcome:
    """Train the autoencoder of a configuration into a run folder, with evaluation and pictures.

    Raises as `autoencoder.train`.
    """
    return autoencoder.train(config, run, resume=resume, evaluation=EvaluationHook, say=say)


def resolve_autoencoder(name: str, given: Mapping[str, str], run: RunFolder, *, resume: bool) -> Config:
    """The configuration of a run that begins from a preset or file, or of the one in the folder that goes on.

    Args:
        given: dotted name -> text.

    Raises:
        InputError: unknown preset, bad value, or a resumed run that would no longer be the same run.
    """
    if resume and run.begun():
        return continue_autoencoder(name, given, run.read_config(), str(run.path))
    return begin_autoencoder(name, given)


def resolve_priors(
    path: str | Path, level: int | None, given: Mapping[str, str], *, resume: bool
) -> dict[Levels, Config]:
    """The levels that each prior of a run covers, coarse first -> its configuration.

    What has begun goes on as it is, if `resume`; the levels that are left get priors of the network that is asked for.

    Args:
        path: a run folder.
        level: counted from 1: the prior that covers it, alone; None takes all.
        given: dotted name -> text.

    Raises:
        InputError: no such run or level, or as `prior_config`.
    """
    stored = RunFolder(Path(path)).read_config()
    count = len(stored.model.num_symbols)
    if level is not None and not 1 <= level <= count:
        raise InputError(f"--level is {level}; this model has levels 1 to {count}")
    wanted = range(count) if level is None else range(level - 1, level)
    begun = {levels: folder for levels, folder in prior_folders(path).items() if resume and folder.config.is_file()}
    configs = {
        levels: prior_config(stored, given, folder.read_config())
        for levels, folder in begun.items() if set(levels) & set(wanted)
    }  # fmt: skip
    if not set(wanted) <= {index for levels in configs for index in levels}:
        new = prior_config(stored, given)
        for levels in new.prior_levels:
            if set(levels) & set(wanted) and not any(set(levels) & set(others) for others in configs):
                configs[levels] = new
    if len({config.prior.codes for config in configs.values()}) > 1:
        raise InputError("the levels were begun with codes of several places; go on with one at a time: --level L")
    return dict(sorted(configs.items(), key=lambda item: item[0].start))


def _draw_prior(run: RunFolder, records: Any) -> None:
    curves.prior_curves(records, run.pictures / "curves.png")


def train_priors(
    path: str | Path, configs: dict[Levels, Config], *, resume: bool, say: Say = print
) -> dict[Levels, Outcome]:
    """Train priors of a run, their curves drawn. Raises as `prior.train_priors`."""
    return prior.train_priors(path, configs, resume=resume, evaluated=_draw_prior, say=say)


def resolve_progressive(path: str | Path, given: Mapping[str, str], *, resume: bool) -> Config:
    """The configuration of a run, with the training of the progressive decoder as it begins or goes on.

    Args:
        path: the folder of a trained model.
        given: dotted name -> text.

    Raises:
        InputError: no such folder, or as `progressive_config`.
    """
    stored = described_config(path)
    if not Path(path).is_dir():
        raise InputError(f"{path} is no folder here; write one of it and train there: hrvqvae export {path} DIR")
    folder = progressive_folder(path)
    begun = folder.read_config() if resume and folder.config.is_file() else None
    return progressive_config(stored, given, begun)


def train_progressive(path: str | Path, config: Config, *, resume: bool, say: Say = print) -> Outcome:
    """Train a progressive decoder, with evaluation and pictures. Raises as `progressive.train_progressive`."""
    return progressive.train_progressive(path, config, resume=resume, evaluation=ProgressiveEvaluationHook, say=say)


__all__ = [
    "EvaluationHook",
    "ProgressiveEvaluationHook",
    "resolve_autoencoder",
    "resolve_priors",
    "resolve_progressive",
    "train_autoencoder",
    "train_priors",
    "train_progressive",
]
