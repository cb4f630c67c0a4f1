"""The task that trains an autoencoder, and the base class of tasks that train on images."""

import math
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import RunFolder, open_run, save_model
from hrvqvae.config.parsing import autoencoder_config
from hrvqvae.data.batches import Batch, batches, evaluation_batches
from hrvqvae.data.images import write_image
from hrvqvae.data.loading import decode, open_images
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.models.base import Autoencoder, image_size
from hrvqvae.models.build import build, build_objective
from hrvqvae.models.distortion import Report, evaluate
from hrvqvae.models.objective import Metrics
from hrvqvae.plots import curves, sheets
from hrvqvae.quantize.planting import read_leaves
from hrvqvae.quantize.schedule import Moved, copy_moved, restart_due, track_moves
from hrvqvae.training.loggers import Record
from hrvqvae.training.state import TrainState, copy_weights, make_step_rng
from hrvqvae.training.trainer import Evaluation, Outcome, Task, Trainer
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted

_NUM_PLOTTED = 8  # test images in the picture of reconstructions


class ImageTask(Task):
    """A task that trains on images and is evaluated as an autoencoder."""

    def open_data(self) -> None:
        self.images = open_images(self.config.data, "train")
        self.test_images = open_images(self.config.data, "test")

    @abstractmethod
    def averaged_model(self, state: TrainState) -> Autoencoder:
        """Return the autoencoder with averaged weights, in evaluation mode."""

    def read_data(self) -> None:
        waiting("reading the images")
        decode(self.images, "train")
        decode(self.test_images, "test")
        self.num_samples = len(self.images)
        self.data_digest = distributed.on_rank_zero(self.images.digest)
        self.description = f"{self.config.name}: {counted(self.num_samples, 'training image')}"

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        return batches(
            self.images,
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            first_step=first_step,
            workers=self.config.data.workers,
            rank_slice=distributed.rank_slice(),
        )

    def evaluate(self, state: TrainState, records: Sequence[Record]) -> Evaluation:
        model = self.averaged_model(state)
        test_batches = self._read_test_images(
            self.training.evaluation_images, distributed.rank_slice()
        )

        # Decode the prefixes of every (L // 3)-th image only: all L prefixes then cost at most as
        # much as about five decodings of the batch.
        report = evaluate(
            model,
            self.config,
            test_batches,
            "test",
            self.compute.device,
            prefix_interval=max(1, len(model.prefixes) // 3),
        )
        levels = report.levels
        prefixes = self.trained_prefixes(model)

        record = {
            "images": report.images,
            "mse": report.mse,
            "psnr": report.psnr,
            "ssim": report.ssim,
            "level_mse": [
                level.mse if count in prefixes else None for count, level in enumerate(levels, 1)
            ],
            "usage": [level.usage for level in levels],
            "perplexity": [level.perplexity for level in levels],
        }
        line = f"test {self.format_report(report)}"
        self.evaluated = (model, report)
        return Evaluation(record, line)

    def _read_test_images(self, limit: int, share: RankSlice = WHOLE) -> Iterator[Batch]:
        return evaluation_batches(
            self.test_images,
            batch_size=self.training.batch_size,
            limit=limit,
            workers=self.config.data.workers,
            rank_slice=share,
        )

    @torch.inference_mode()
    def draw(self, state: TrainState, records: Sequence[Record]) -> None:
        """Draw reconstructions, curves and the usage of codewords."""
        model, report = self.evaluated
        batch = next(self._read_test_images(_NUM_PLOTTED))
        images = self.compute.place_images(batch.images).float() / 255
        codes = model.encode(images)
        rows = [sheets.SheetRow("original", list(images))]
        for num_levels, caption in zip(model.prefixes, report.captions(), strict=True):
            if num_levels in self.trained_prefixes(model):
                decoded = model.decode(codes, levels=num_levels, size=image_size(images))
                rows.append(sheets.SheetRow(caption, list(decoded)))
        pictures = self.run.pictures
        write_image(sheets.draw(rows), pictures / "reconstructions.png")
        curves.plot_training(records, pictures / "curves.png")
        curves.plot_usage([level.counts for level in report.levels], pictures / "usage.png")

    def trained_prefixes(self, model: Autoencoder) -> Sequence[int]:
        """Return the level counts that the network is trained to decode."""
        return model.prefixes

    def format_report(self, report: Report) -> str:
        """Return a report as a line of text."""
        usage = " ".join(f"{level.used}/{level.codewords}" for level in report.levels)
        return f"MSE {report.mse:.3e}  PSNR {report.psnr:.2f} dB  codewords {usage}"


class AutoencoderTask(ImageTask):
    """Train an autoencoder; dead codewords restart every `restart_every` steps, up to 90% of the
    training.
    """

    planted_step = -1  # of `planted`

    def build(self) -> Autoencoder:
        return build(replace(self.config, model=self.config.model.trained))

    def init_from(self, model: Any) -> None:
        name = self.training.init_from
        source: Any = open_run(name).load(decoder=None)[0]
        target = self.config.model
        is_planted = target.num_codewords != target.trained.num_codewords
        if is_planted and source.config.num_codewords == target.num_codewords:
            source.quantizer = read_leaves(source.quantizer)
        copy_weights(model, source.state_dict(), name)  # with the counts of the codewords

    def initialize(self, model: Any) -> None:
        waiting("fitting the first codewords to images")
        config = self.config
        batch_size = self.training.batch_size
        seed = self.training.seed
        finest_grid = config.model.geometry.grids(*config.data.image_size)[-1]
        enough_images = config.model.start_vectors // math.prod(finest_grid)
        num_images = max(1, min(len(self.images), enough_images))

        # read the images in batches, which the workers decode in parallel
        stream = batches(self.images, batch_size=min(num_images, batch_size), seed=seed)
        chunks = islice(stream, -(-num_images // batch_size))
        images = torch.cat([batch.images for batch in chunks])[:num_images]
        weight = batch_size / len(images)  # the counts are as in a training batch
        with self.compute.autocast():
            model.initialize(self.compute.place_images(images), make_step_rng(seed, 0), weight)

    def build_objective(self) -> Mapping[str, nn.Module]:
        self.objective = self.compute.place_model(build_objective(self.config))
        return self.objective.auxiliary

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        images = self.compute.place_images(batch.images)
        model = state.model

        # update the weights; the forward pass updates the codebooks
        with self.compute.autocast():
            goal = self.objective(model, images, state.step)
        metrics = {**state.minimize(goal.losses), **goal.metrics}
        metrics["broken_images"] = float(len(batch.broken))

        # restart dead codewords
        moved: Moved = []
        if restart_due(state.step + 1, self.config.model.restart_every, state.fraction):
            rng = make_step_rng(self.training.seed, state.step)
            with self.compute.autocast(), track_moves(model) as moved:
                metrics["restarted"] = float(model.restart_dead_codes(images, rng))

        # update the averaged weights
        state.averaged.update_parameters(model)

        # do not average a codeword over its places before and after a restart
        copy_moved(moved, state.averaged.module)
        return metrics

    def averaged_model(self, state: TrainState) -> Autoencoder:
        # A step may be saved and evaluated: build the tree of a planted model once for both.
        if state.step != self.planted_step:
            self.planted: Autoencoder = state.averaged.module.plant(self.config.model)
            self.planted_step = state.step
        return self.planted.eval()

    def save(self, state: TrainState) -> None:
        weights = self.averaged_model(state).state_dict()
        save_model(self.run.model, self.config, weights, state.step)


def train(
    preset: str,
    run: RunFolder,
    fields: Mapping[str, Any],
    *,
    resume: bool = False,
    force: bool = False,
) -> Outcome:
    """Train the autoencoder of a preset, of a configuration file, or of a run folder.

    Args:
        fields: Fields of the configuration by dotted name: plain values, or texts as on the command
            line.

    With `resume`, a run that has not begun begins. Raises InputError if a value is bad, and as
    `Trainer.train`.
    """
    # the lock is the first file of a run
    if not run.begun() and not (run.path / ".lock").is_file():
        for file in (run.config, run.metrics, run.pictures):
            if file.exists():
                raise InputError(f"{file} is there already, and of no run: choose another --out")
    is_stored = resume and run.config.is_file()
    config = distributed.on_rank_zero(
        lambda: autoencoder_config(preset, fields, run.read_config() if is_stored else None)
    )
    task = AutoencoderTask(config, run)
    return Trainer(task, resume=resume, force=force).train()
