"""Train a progressive decoder, which decodes the first levels of a trained and frozen autoencoder.

It begins as a copy of the autoencoder's decoder behind a refiner that is the identity.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from torch import nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import PROGRESSIVE, decoder_folder
from hrvqvae.checkpoints.run import Run, save_model
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.config.schema import with_batch_size
from hrvqvae.data.batches import Batch
from hrvqvae.models.base import Autoencoder, to_unit_images
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import build_progressive_decoder, require_several_levels
from hrvqvae.models.distortion import Report
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.training.autoencoder import ImageTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.training.trainer import Say
from hrvqvae.utils.errors import InputError


class ProgressiveTask(ImageTask):
    """Train a progressive decoder: the images of a batch are decoded from the prefixes of the
    levels in turn.

    The error of each prefix is divided by its value, so that all prefixes weigh the same: this
    raises their mean PSNR. Raises InputError if the run folder `path` has no trained autoencoder,
    or it has no prefixes.
    """

    name_suffix = ", prefixes"
    kind = PROGRESSIVE  # of the decoder, in `checkpoints.run.DECODERS`
    command = "train-progressive"

    def __init__(self, path: str | Path, config: Config) -> None:
        run = Run(path)
        model, stored = run.load(decoder=None)
        self.autoencoder_digest = run.digest
        self.model = require_several_levels(model, stored)
        self.parent_run = Path(path)
        super().__init__(decoder_folder(path, self.kind), config, self.training_of(config))

    def training_of(self, config: Config) -> TrainingConfig:
        """Return the training of the decoder."""
        return with_batch_size(config.progressive.training, config.training.batch_size)

    def open(self, say: Say) -> None:
        super().open(say)
        self.compute.place_model(self.model)

    def build(self) -> ProgressiveDecoder:
        return build_progressive_decoder(self.model, self.config)

    def init_from(self, model: nn.Module) -> str:
        name = self.training.init_from
        decoder = Run(name).decoders[self.kind]
        if not decoder.file.is_file():
            raise InputError(
                f"{decoder.path} has no model; train it: hrvqvae {self.command} {shlex.quote(name)}"
            )
        copy_weights(model, decoder.read()[0], str(decoder.path))
        return f"beginning with the decoder in {decoder.path}"

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        decoder = state.model
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder)
        placed = state.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)
        prefixes = self.model.prefixes[:-1]
        part = distributed.rank_slice()
        first = part.of(len(images) * part.count).start  # position in the batch of all processes
        assigned = (
            torch.arange(first, first + len(images), device=images.device) + state.step
        ) % len(prefixes)
        with state.compute.autocast():
            all_latents = self.model.prefix_latents(self.model.encode(placed))
            latents = all_latents[assigned, torch.arange(len(images), device=images.device)]
            decoded = self.model.pixels(latents, (images.shape[-2], images.shape[-1]), assigned + 1)
        errors = (decoded.float() - (images * 2 - 1)).square().mean((1, 2, 3))
        chosen = assigned == torch.arange(len(prefixes), device=images.device).unsqueeze(1)
        sums = (chosen * errors).sum(1)
        counts = chosen.sum(1).to(errors)
        mean_sums, mean_counts = distributed.all_reduce_mean([sums.detach(), counts])
        relative = sums / mean_sums.clamp(min=1e-12)
        losses = {
            f"relative_{levels}": loss for levels, loss in zip(prefixes, relative, strict=True)
        }
        norm = state.minimize({MODEL: losses})["gradient_norm"]
        state.averaged.update_parameters(decoder)
        errors_of_prefixes = mean_sums / mean_counts
        batch_size = len(images) * part.count
        present = {
            (position + state.step) % len(prefixes)
            for position in range(min(len(prefixes), batch_size))
        }
        reconstruction = {
            f"reconstruction_{prefixes[index]}": errors_of_prefixes[index]
            for index in sorted(present)
        }
        return {**reconstruction, "loss": sum(reconstruction.values()), "gradient_norm": norm}

    def averaged_model(self, state: TrainState) -> Autoencoder:
        decoder = state.averaged.module
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder.eval())
        return self.model

    def format_report(self, report: Report) -> str:
        return ", ".join(report.captions())

    def save(self, state: TrainState) -> None:
        weights = state.averaged.module.state_dict()
        save_model(
            self.run.model,
            self.config,
            weights,
            state.step,
            self.kind,
            autoencoder=self.autoencoder_digest,
        )
