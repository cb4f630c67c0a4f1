"""Train a decoder of samples: it decodes the first K levels of a trained and frozen autoencoder.

It is trained as a VQGAN's decoder is, so that its images are sharp where the codes leave details
open. It begins as a copy of the progressive decoder or, without one, of the autoencoder's decoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from hrvqvae.checkpoints.folder import GENERATION
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.data.batches import Batch
from hrvqvae.models.base import image_size, to_unit_images
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import require_several_levels
from hrvqvae.models.distortion import Report
from hrvqvae.models.objective import Metrics
from hrvqvae.models.vqgan import DISCRIMINATOR, AdversarialObjective
from hrvqvae.quantize import Codes
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.utils.errors import InputError


def resolve_generation(run: Run, config: Config) -> Config:
    """Return a configuration with the number of levels, and with the section `progressive` of the
    run's progressive decoder.

    Raises InputError if the decoder can't decode so many levels, or the images are too small for
    the discriminator.
    """
    model, stored = run.load()
    require_several_levels(model, stored)
    first_prior = next(iter(run.priors), config.prior_levels[0])
    levels = config.generation.levels or first_prior.stop
    most = len(config.model.num_symbols) - 1
    if levels > most:
        raise InputError(
            f"a decoder of samples of {levels} levels is the model's own, since the model has no"
            f" more: give --generation.levels 1 to {most}, and draw so many by --levels"
        )
    config.generation.check_images(min(config.data.image_size))
    return config.replace(**{"generation.levels": levels, "progressive": stored.progressive})


class GenerationTask(ProgressiveTask):
    """Train a decoder of samples with the objective of a VQGAN.

    The codes are those of the images, but some codes of the last of these levels are replaced at
    random, to imitate the errors of a prior. The configuration is that of `resolve_generation`.
    Raises InputError as `ProgressiveTask`.
    """

    name_suffix = ", samples"
    kind = GENERATION
    command = "train-decoder"

    def training_of(self, config: Config) -> TrainingConfig:
        return config.generation.training

    def build(self) -> ProgressiveDecoder:
        decoder = super().build()
        # begin with the run's progressive decoder, unless its network is another
        model, stored = Run(cast(Path, self.parent_run)).load()
        trained = getattr(model, "progressive_decoder", None)
        if trained is not None and stored.progressive.network == self.config.progressive.network:
            copy_weights(decoder, trained.state_dict(), "the progressive decoder")
        return decoder

    def build_objective(self) -> Mapping[str, nn.Module]:
        objective = AdversarialObjective(self.config, self.config.generation)
        self.objective = self.compute.place_model(objective)
        return self.objective.auxiliary

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        settings = self.config.generation
        decoder = cast(ProgressiveDecoder, state.model)
        state.add_broken(batch.broken)
        self.model.use_progressive_decoder(decoder)  # an evaluation left the averaged decoder there
        placed = state.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)  # in [0, 1]; `decoded` in [-1, 1]
        with state.compute.autocast():
            codes = self.redraw(self.model.encode(placed)[: settings.levels])
            count = torch.tensor(settings.levels, device=images.device)
            latents = self.model.quantizer.lookup(codes)
            decoded = self.model.pixels(latents, image_size(images), count)
            decoded = decoded.float()
            error = (decoded - (images * 2 - 1)).square().mean()
            last_layer = cast(nn.ConvTranspose2d, cast(nn.Sequential, decoder.decoder)[-1]).weight
            losses, metrics = self.objective.judge(
                (decoded + 1) / 2, images, {"reconstruction": error}, last_layer, state.step
            )
        # the trainer sets the same rate for all networks before each step
        for group in state.networks[DISCRIMINATOR].optimizer.param_groups:
            group["lr"] *= settings.discriminator_rate
        metrics = {**state.minimize(losses), **metrics}
        state.averaged.update_parameters(decoder)
        return metrics

    def redraw(self, codes: Codes) -> Codes:
        """Return codes of which a share of the last level is drawn anew, all symbols alike."""
        *coarse, last = codes
        symbols = self.config.model.num_symbols[len(coarse)]
        is_redrawn = torch.rand(last.shape, device=last.device) < self.config.generation.redraw
        return (*coarse, torch.where(is_redrawn, torch.randint_like(last, symbols), last))

    def format_report(self, report: Report) -> str:
        return report.captions()[self.config.generation.levels - 1]
