"""The task of training a progressive decoder: a decoder of the first levels of a trained autoencoder.

The autoencoder is frozen. The progressive decoder begins as its decoder behind a refiner that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import progressive_folder, require_own
from hrvqvae.checkpoints.run import Run, save_model
from hrvqvae.config import Config
from hrvqvae.config.parsing import progressive_config
from hrvqvae.data.batches import Batch
from hrvqvae.evaluation.distortion import Report
from hrvqvae.models.base import Autoencoder, unit_images
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import build_progressive_decoder, require_several_levels
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.training.autoencoder import ImageTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.training.trainer import Say
from hrvqvae.utils.errors import InputError


class ProgressiveTask(ImageTask):
    """A progressive decoder: each image of a batch is cut to a prefix, in turn.

    The error of each prefix is divided by its own value, so that none outweighs another: what grows is the mean of
    their PSNR. `config` is that of the run, with `progressive` as it is to be trained.

    Raises InputError: no trained autoencoder, or one without prefixes.
    """

    name_suffix = ", prefixes"

    def __init__(self, path: str | Path, config: Config) -> None:
        run = Run(path)
        model, stored = run.load(progressive=False)
        self.autoencoder = run.digest
        self.model, self.parent_run = require_several_levels(model, stored), Path(path)
        training = config.progressive.training.with_batch_size(config.training.batch_size)
        super().__init__(progressive_folder(path), config, training)

    def open(self, say: Say) -> None:
        super().open(say)
        self.compute.place_model(self.model)

    def build(self) -> ProgressiveDecoder:
        return build_progressive_decoder(self.model, self.config)

    def init_from(self, model: nn.Module) -> str:
        name = self.training.init_from
        source = getattr(Run(name).load()[0], "progressive_decoder", None)
        if source is None:
            raise InputError(f"{name} has no progressive decoder; train it: hrvqvae train-progressive {name}")
        copy_weights(model, source.state_dict(), f"the progressive decoder of {name}")
        return f"beginning with the progressive decoder of {name}"

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        decoder = state.model
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder)
        placed = state.compute.place_images(batch.images)
        images = unit_images(placed, self.model.channels)
        prefixes, part = self.model.prefixes[:-1], distributed.rank_slice()
        first = part.of(len(images) * part.count).start  # of this process's part of the batch
        which = (torch.arange(first, first + len(images), device=images.device) + state.step) % len(prefixes)
        with state.autocast():
            every = self.model.prefix_latents(self.model.encode(placed))
            latents = every[which, torch.arange(len(images), device=images.device)]
            decoded = self.model.pixels(latents, (images.shape[-2], images.shape[-1]), which + 1)
        errors = (decoded.float() - (images * 2 - 1)).square().mean((1, 2, 3))
        chosen = which == torch.arange(len(prefixes), device=images.device).unsqueeze(1)
        sums, counts = (chosen * errors).sum(1), chosen.sum(1).to(errors)
        total, number = distributed.all_reduce_mean([sums.detach(), counts])
        relative = sums / total.clamp(min=1e-12)
        losses = {f"relative_{levels}": one for levels, one in zip(prefixes, relative, strict=True)}
        norm = state.take_gradient(losses)["gradient_norm"]
        state.update(MODEL)
        state.averaged.update_parameters(decoder)
        means, images_of_all = total / number, len(images) * part.count
        shown = {(place + state.step) % len(prefixes) for place in range(min(len(prefixes), images_of_all))}
        found = {f"reconstruction_{prefixes[index]}": means[index] for index in sorted(shown)}
        return {**found, "loss": sum(found.values()), "gradient_norm": norm}

    def averaged(self, state: TrainState) -> Autoencoder:
        decoder = state.averaged.module
        assert isinstance(decoder, ProgressiveDecoder)
        self.model.use_progressive_decoder(decoder.eval())
        return self.model

    def format_report(self, report: Report) -> str:
        return ", ".join(report.captions())

    def save(self, state: TrainState) -> None:
        weights, of = state.averaged.module.state_dict(), {"autoencoder": self.autoencoder}
        save_model(self.run.model, self.config, weights, state.step, "prefixes", **of)


def resolve_progressive(path: str | Path, given: Mapping[str, str], *, resume: bool) -> Config:
    """The configuration of a run, with the training of the progressive decoder as it begins or is resumed.

    `given` is dotted name -> text. Raises InputError: no such folder, or as `progressive_config`.
    """
    stored = Run(path).described_config
    require_own(path)
    folder = progressive_folder(path)
    begun = folder.read_config() if resume and folder.config.is_file() else None
    return progressive_config(stored, given, begun)
