"""Train a decoder of samples: it decodes the first K levels of a trained and frozen autoencoder.

It learns to decode the codes of images, and to make images that look real from the codes of samples
of the priors. It is told the classes of both. It begins as a copy of the progressive decoder or,
without one, of the autoencoder's decoder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import GENERATION
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.data.batches import Batch
from hrvqvae.data.loading import load_images
from hrvqvae.models.base import image_size, to_unit_images
from hrvqvae.models.blocks import SampleDecoder
from hrvqvae.models.build import build_sample_decoder, require_several_levels
from hrvqvae.models.distortion import Report
from hrvqvae.models.objective import Metrics
from hrvqvae.models.perceptual import require_efficientnet
from hrvqvae.models.samples import SampleObjective
from hrvqvae.models.vqgan import DISCRIMINATOR
from hrvqvae.priors.generative import draw_labels, sample_codes
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.progress import Say, tracked

_DRAWN_AT_ONCE = 250
_FIRST_SEED = 1 << 31  # of the drawn samples, so that they are others than those of users


def resolve_generation(run: Run, config: Config) -> Config:
    """Return a configuration with the number of levels and of classes, and with the section
    `progressive` of the run's progressive decoder.

    Raises InputError if efficientnet-lite0 is not installed, the decoder can't decode so many
    levels, a prior of these levels is missing, or the priors have other classes than the images.
    """
    require_efficientnet()
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
    classes = tuple(load_images(config.data, "train").classes)
    if config.generation.samples:
        command = run.missing_priors(levels)
        if command:
            raise InputError(
                f"a decoder of samples learns from samples, and {run} lacks priors; train them:"
                f" {command}; or give --generation.samples 0"
            )
        if run.load_priors(levels).classes != classes:
            raise InputError(
                f"the priors of {run} have other classes than its images: give"
                " --generation.samples 0"
            )
    changes = {"generation.levels": levels, "generation.classes": len(classes)}
    return config.replace(**changes, progressive=stored.progressive)


class GenerationTask(ProgressiveTask):
    """Train a decoder of samples with a `SampleObjective`.

    The codes are those of images and of samples, but some codes of the last of these levels are
    replaced at random, to imitate the errors of a prior. The configuration is that of
    `resolve_generation`. Raises InputError as `ProgressiveTask`.
    """

    name_suffix = ", samples"
    kind = GENERATION
    command = "train-decoder"

    def training_of(self, config: Config) -> TrainingConfig:
        return config.generation.training

    def open(self, say: Say) -> None:
        super().open(say)
        self.samples = self.draw_samples()

    @torch.inference_mode()
    def draw_samples(self) -> tuple[Codes, Tensor]:
        """Draw the codes (N, H, W) of samples, and their classes (N,): the first half without
        guidance, the others as sampling.json says.
        """
        settings = self.config.generation
        seed = _FIRST_SEED + settings.training.seed
        run = Run(cast(Path, self.parent_run))
        if not settings.samples:
            empty = torch.empty(0, dtype=torch.int64)
            shape = (0, *self.model.config.geometry.grids(*self.config.data.image_size)[0])
            return (empty.view(shape),) * settings.levels, empty
        priors = run.load_priors(settings.levels)
        for network in priors.networks:
            self.compute.place_model(network)
        default_guidance = run.sampling_options()["guidance"]
        drawn = []
        parts = slices(range(settings.samples), _DRAWN_AT_ONCE)
        for indices in tracked(parts, "sample", settings.samples, len):
            label = None
            if priors.classes:
                label = draw_labels(priors.class_counts, seed, indices)
            is_first_half = indices[0] < settings.samples / 2
            guidance = 1.0 if is_first_half else default_guidance
            codes = sample_codes(
                priors.networks,
                self.model.codeword_indices,
                indices,
                seed=seed,
                label=label,
                params=SamplingParams(guidance=guidance, levels=settings.levels),
            )
            classes = torch.full((len(indices),), -1) if label is None else label
            drawn.append((*codes[: settings.levels], classes))
        columns = [torch.cat(column) for column in zip(*drawn, strict=True)]
        return tuple(columns[:-1]), columns[-1]

    def build(self) -> SampleDecoder:
        decoder = build_sample_decoder(self.model, self.config)

        # begin with the run's progressive decoder, unless its network is another
        model, stored = Run(cast(Path, self.parent_run)).load()
        trained = getattr(model, "progressive_decoder", None)
        if trained is not None and stored.progressive.network == self.config.progressive.network:
            weights = trained.state_dict()
            cases = self.config.generation.classes + 1
            for name in weights:
                if name.endswith(".case.weight"):  # every class begins as the number of levels
                    case = self.config.generation.levels - 1
                    weights[name] = weights[name][case].expand(cases, -1)
            copy_weights(decoder.decoder, weights, "the progressive decoder")
        return decoder

    def build_objective(self) -> Mapping[str, nn.Module]:
        self.objective = self.compute.place_model(SampleObjective(self.config))
        return self.objective.auxiliary

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        settings = self.config.generation
        decoder = cast(SampleDecoder, state.model)
        state.add_broken(batch.broken)
        placed = state.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)  # in [0, 1]; `decoded` in [-1, 1]
        levels = torch.full((), settings.levels, device=images.device)
        with state.compute.autocast():
            # codes and classes of the images, then of samples
            image_codes = self.model.encode(placed)[: settings.levels]
            drawn, drawn_classes = self.choose_samples()
            drawn = tuple(level.to(images.device, non_blocking=True) for level in drawn)
            pairs = zip(image_codes, drawn, strict=True)
            codes = self.redraw([torch.cat(pair) for pair in pairs])
            classes = torch.cat([self.drop_classes(batch.labels), drawn_classes])
            classes = classes.to(images.device, non_blocking=True)

            # decode them, and judge the images
            self.model.use_progressive_decoder(decoder.of_classes(classes))
            latents = self.model.quantizer.lookup(codes, check=False)
            decoded = (self.model.pixels(latents, image_size(images), levels).float() + 1) / 2
            last_layer = cast(Any, decoder.decoder).decoder[-1].weight
            losses, metrics = self.objective.judge(images, decoded, classes, last_layer, state.step)
        # the trainer sets the same rate for all networks before each step
        for group in state.networks[DISCRIMINATOR].optimizer.param_groups:
            group["lr"] *= settings.discriminator_rate
        metrics = {**state.minimize(losses), **metrics}
        state.averaged.update_parameters(decoder)
        return metrics

    def choose_samples(self) -> tuple[Codes, Tensor]:
        """Choose samples at random, as many as a batch of this process has; return their codes and
        classes.
        """
        codes, classes = self.samples
        count = self.config.generation.sample_batch // distributed.world_size()
        chosen = torch.randint(max(1, len(classes)), (count if len(classes) else 0,))
        return tuple(level[chosen] for level in codes), classes[chosen]

    def drop_classes(self, labels: Tensor) -> Tensor:
        """Return labels (B,) of which a share is replaced by -1, all if there are no classes."""
        settings = self.config.generation
        share = settings.class_dropout if settings.classes else 1
        return torch.where(torch.rand(labels.shape) < share, -1, labels)

    def redraw(self, codes: Sequence[Tensor]) -> Codes:
        """Return codes of which a share of the last level is drawn anew, all symbols alike."""
        *coarse, last = codes
        symbols = self.config.model.num_symbols[len(coarse)]
        is_redrawn = torch.rand(last.shape, device=last.device) < self.config.generation.redraw
        return (*coarse, torch.where(is_redrawn, torch.randint_like(last, symbols), last))

    def format_report(self, report: Report) -> str:
        return report.captions()[self.config.generation.levels - 1]
