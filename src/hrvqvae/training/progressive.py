"""Train a progressive decoder, which decodes the first levels of a trained and frozen autoencoder.

It begins as a copy of the autoencoder's decoder behind a refiner that is the identity.
"""

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
from hrvqvae.models.base import Autoencoder, image_size, to_unit_images
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import build_progressive_decoder, require_several_levels
from hrvqvae.models.distortion import Report
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.models.single_grid import compute_relative_errors
from hrvqvae.training.autoencoder import ImageTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import Say


class ProgressiveTask(ImageTask):
    """Train a progressive decoder: image i of step s is decoded from one prefix of the levels,
    number (i + s) modulo the number of prefixes.

    The gradient is that of the sum of the logarithms of the prefixes' errors, so that all prefixes
    weigh the same: this raises their mean PSNR. Raises InputError if the run folder `path` has no
    trained autoencoder, or its autoencoder has no prefixes.
    """

    name_suffix = ", prefixes"
    kind = PROGRESSIVE  # the decoder's folder in the run, and the kind in its weights file
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
        run = self.training.init_from
        source = Run(run).decoders[self.kind]
        if not source.file.is_file():
            command = f"hrvqvae {self.command} {shlex.quote(run)}"
            raise InputError(f"{source.path} has no model; train it: {command}")
        copy_weights(model, source.read()[0], str(source.path))
        return f"beginning with the decoder in {source.path}"

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        decoder = state.model
        assert isinstance(decoder, ProgressiveDecoder)
        state.add_broken(batch.broken)
        self.model.use_progressive_decoder(decoder)  # an evaluation left the averaged decoder there
        placed = state.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)
        prefixes = self.model.prefixes[:-1]  # all levels have the autoencoder's own decoder

        # Assign prefixes by the positions in the batch, of which all processes have equal shares.
        count = len(images)
        indices = torch.arange(count, device=images.device)
        assigned = (indices + distributed.rank() * count + state.step) % len(prefixes)
        num_levels = assigned + 1  # the prefixes are those of 1, 2, ... L - 1 levels
        with state.compute.autocast():
            all_latents = self.model.prefix_latents(self.model.encode(placed))
            latents = all_latents[assigned, indices]
            decoded = self.model.pixels(latents, image_size(images), num_levels)
        errors = (decoded.float() - (images * 2 - 1)).square().mean((1, 2, 3))

        # Minimize the sum of the logarithms of the prefixes' errors.
        relative, means = compute_relative_errors(errors, assigned, len(prefixes))
        norm = state.minimize({MODEL: {"relative": relative.sum()}})["gradient_norm"]
        state.averaged.update_parameters(decoder)

        # Log the mean errors of the prefixes that have images. Compute from the step which these
        # are: reading the means would wait for the GPU.
        total = min(len(prefixes), count * distributed.world_size())
        present = sorted((position + state.step) % len(prefixes) for position in range(total))
        reconstruction = {f"reconstruction_{prefixes[index]}": means[index] for index in present}
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
        made_for = {"autoencoder": self.autoencoder_digest}
        save_model(self.run.model, self.config, weights, state.step, self.kind, **made_for)
