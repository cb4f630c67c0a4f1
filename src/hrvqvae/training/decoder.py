"""Train the conditional decoders of a trained and frozen autoencoder: of prefixes, and of samples.

Both decode the first levels, and begin as copies of the autoencoder's decoder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    open_run,
    prior_folders,
    require_trainable,
    save_model,
)
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.config.parsing import stage_config
from hrvqvae.config.schema import with_batch_size
from hrvqvae.data.batches import Batch
from hrvqvae.data.loading import load_images
from hrvqvae.models.adversarial import DISCRIMINATOR, SampleObjective
from hrvqvae.models.base import Autoencoder, image_size, to_unit_images
from hrvqvae.models.blocks import ConditionalDecoder
from hrvqvae.models.build import (
    build_progressive_decoder,
    build_sample_decoder,
    require_several_levels,
)
from hrvqvae.models.distortion import Report
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.models.perceptual import require_efficientnet
from hrvqvae.priors.base import Priors
from hrvqvae.priors.generative import draw_labels, sample_codes
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import QUALITIES, choose_depths, stop_at
from hrvqvae.training.autoencoder import ImageTask
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.training.trainer import Outcome, Trainer, require_divisible
from hrvqvae.utils.errors import InputError, expand_home, require_made_for
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.progress import tracked

_DRAWN_AT_ONCE = 250
_FIRST_SEED = 1 << 31  # of the drawn samples; users give smaller seeds


class DecoderTask(ImageTask):
    """A task that trains a conditional decoder of a run.

    Raises InputError if the run has no trained autoencoder, or its autoencoder has no prefixes.
    """

    kind: str  # the decoder's folder in the run, and the kind in its weights file
    parent_run: Path

    def __init__(self, path: str | Path, config: Config, training: TrainingConfig) -> None:
        run = open_run(path)
        model, stored = run.load()
        self.autoencoder_digest = run.digest
        self.model = require_several_levels(model, stored)
        self.parent_run = Path(path)
        super().__init__(config, decoder_folder(path, self.kind), training)

    def read_data(self) -> None:
        super().read_data()
        self.compute.place_model(self.model)

    def averaged_model(self, state: TrainState) -> Autoencoder:
        self.model.use_progressive_decoder(state.averaged.module.eval())
        return self.model

    def format_report(self, report: Report) -> str:
        captions = report.captions()
        return ", ".join(captions[count - 1] for count in self.trained_prefixes(self.model))

    def save(self, state: TrainState) -> None:
        save_model(
            self.run.model,
            self.config,
            state.averaged.module.state_dict(),
            state.step,
            self.kind,
            autoencoder=self.autoencoder_digest,
        )


class PrefixTask(DecoderTask):
    """Train a decoder of prefixes: image i of step s is decoded at rate number (i + s) modulo the
    number of rates.

    The first rates are prefixes of the levels. At the others, which are qualities, each position
    stops at a level of its own, and all codes of a level are taken to need equal bits. The gradient
    is that of the sum of the logarithms of the rates' errors, so that all rates weigh the same:
    this raises their mean PSNR.
    """

    kind = PROGRESSIVE

    def __init__(self, path: str | Path, config: Config) -> None:
        training = with_batch_size(config.progressive.training, config.training.batch_size)
        super().__init__(path, config, training)

    def build(self) -> ConditionalDecoder:
        return build_progressive_decoder(self.model, self.config)

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        decoder = state.model
        self.model.use_progressive_decoder(decoder)  # an evaluation has set the averaged decoder
        placed = self.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)
        quantizer = self.model.quantizer
        prefixes = self.model.prefixes[:-1]  # the autoencoder's own decoder decodes all levels
        num_rates = len(prefixes) + QUALITIES

        # Assign a rate to each image by its position in the batch of all processes.
        count = len(images)
        indices = torch.arange(count, device=images.device)
        rates = (indices + distributed.rank() * count + state.step) % num_rates
        qualities = rates - len(prefixes)  # negative where the rate is a prefix
        with self.compute.autocast():
            latents = self.model.latents(images)
            codes = quantizer.encode(latents)
            symbols = torch.tensor(self.model.config.num_symbols, device=images.device)
            bits = symbols.log2().view(-1, 1, 1, 1)
            prices = quantizer.price_bits(bits, qualities)
            chosen = choose_depths(quantizer.prefix_distances(latents, codes), prices)
            is_prefix = (qualities < 0).view(-1, 1, 1)
            depths = torch.where(is_prefix, rates.view(-1, 1, 1) + 1, chosen)
            decoded = self.model.pixels(
                quantizer.lookup(stop_at(codes, depths)), image_size(images), depths
            )
        errors = (decoded.float() - (images * 2 - 1)).square().mean((1, 2, 3))

        # minimize the sum of the logarithms of the rates' errors
        relative, means = compute_relative_errors(errors, rates, num_rates)
        norm = state.minimize({MODEL: {"relative": relative.sum()}})["gradient_norm"]
        state.averaged.update_parameters(decoder)
        metrics = {f"reconstruction_{levels}": means[levels - 1] for levels in prefixes}
        return {
            **metrics,
            "loss": means.sum(),
            "gradient_norm": norm,
            "broken_images": float(len(batch.broken)),
        }


def compute_relative_errors(errors: Tensor, rates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the relative and the mean error of each rate, both (count,).

    Image i has the error errors[i] (B,) and was decoded at rate rates[i]. A relative error is 1 in
    the mean over the processes, and its gradient is that of the logarithm of the rate's error. Both
    are 0 for a rate without images.
    """
    # (count, B): whether the image was decoded at the rate
    chosen = rates == torch.arange(count, device=errors.device).unsqueeze(1)
    sums = (chosen * errors).sum(1)
    sizes = chosen.sum(1).to(errors)
    mean_sums, mean_sizes = distributed.all_reduce_mean([sums.detach(), sizes])

    # The mean of the sums counts as constant, and so does the number of images.
    relative = sums / mean_sums.clamp(min=1e-12)
    return relative, mean_sums / mean_sizes.clamp(min=1e-12)


class SampleTask(DecoderTask):
    """Train a decoder of samples with a `SampleObjective`. The decoder is told the classes.

    It decodes the codes of images, and of samples of the priors. In its last level, some codes are
    replaced at random, to imitate the errors of a prior. `resolve_samples` returns the
    configuration.
    """

    kind = GENERATION

    def __init__(self, path: str | Path, config: Config) -> None:
        super().__init__(path, config, config.generation.training)
        require_divisible("batch of samples", config.generation.sample_batch)

    def read_data(self) -> None:
        super().read_data()
        if self.config.generation.samples:
            self.samples = distributed.on_rank_zero(self.load_samples)

    def load_samples(self) -> tuple[Tensor, Tensor]:
        """Return the codes (L, N, H, W) of samples, and their classes (N,). They are drawn once,
        and kept in the decoder's folder.

        Raises InputError if they were drawn from other priors or with another guidance.
        """
        settings = self.config.generation
        run = open_run(self.parent_run)
        guidance = run.sampling_options()["guidance"]
        folders = prior_folders(self.parent_run).items()
        made_for = {
            "autoencoder": self.autoencoder_digest,
            "priors": [folder.digest for levels, folder in folders if levels[0] < settings.levels],
            "guidance": guidance,
        }
        file = self.run.path / "samples.safetensors"
        if not file.is_file():
            codes, classes = self.draw_samples(run.load_priors(settings.levels), guidance)
            storage.write(file, {"codes": codes.int(), "classes": classes}, made_for)
        stored, meta = storage.read(file)
        require_made_for(self.run.path, meta, made_for)
        return stored["codes"].long(), stored["classes"]

    @torch.inference_mode()
    def draw_samples(self, priors: Priors, guidance: Guidance) -> tuple[Tensor, Tensor]:
        """Draw the codes (L, N, H, W) of samples, and their classes (N,): the first half without
        guidance.
        """
        settings = self.config.generation
        seed = _FIRST_SEED + settings.training.seed
        for network in priors.networks:
            self.compute.place_model(network)
        half = (settings.samples + 1) // 2
        unguided = slices(range(half), _DRAWN_AT_ONCE)
        guided = slices(range(half, settings.samples), _DRAWN_AT_ONCE)
        codes = []
        classes = []
        for indices in tracked([*unguided, *guided], "sample", settings.samples, len):
            label = None
            if priors.classes:
                label = draw_labels(priors.class_counts, seed, indices)
            used_guidance = 1.0 if indices[0] < half else guidance
            drawn = sample_codes(
                priors.networks,
                self.model.codeword_indices,
                indices,
                seed=seed,
                label=label,
                params=SamplingParams(guidance=used_guidance, levels=settings.levels),
            )
            codes.append(torch.stack(drawn[: settings.levels]))
            classes.append(torch.full((len(indices),), -1) if label is None else label)
        return torch.cat(codes, 1), torch.cat(classes)

    def build(self) -> ConditionalDecoder:
        return build_sample_decoder(self.model, self.config)

    def initialize(self, model: Any) -> None:
        """Begin with the run's decoder of prefixes, if there is one."""
        if self.model.progressive_decoder is None:
            return
        settings = self.config.generation
        weights = self.model.progressive_decoder.state_dict()
        for name, biases in weights.items():
            if name.endswith(".case.weight"):
                # The decoder of prefixes has biases per number of levels, this one per class: every
                # class begins with those of its number of levels.
                weights[name] = biases[settings.levels - 1].expand(settings.classes + 1, -1)
        copy_weights(model.decoder, weights, "the decoder of prefixes")

    def build_objective(self) -> Mapping[str, nn.Module]:
        self.objective = self.compute.place_model(SampleObjective(self.config))
        return self.objective.auxiliary

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        settings = self.config.generation
        decoder = state.model
        placed = self.compute.place_images(batch.images)
        images = to_unit_images(placed, self.model.channels)  # in [0, 1]; `decoded` in [-1, 1]
        levels = torch.full((1, 1, 1), settings.levels, device=images.device)
        with self.compute.autocast():
            # codes and classes of the images, then of samples
            codes = torch.stack(self.model.encode(placed)[: settings.levels])
            drawn_classes = batch.labels[:0]
            if settings.samples:
                drawn_codes, drawn_classes = self.choose_samples()
                drawn_codes = drawn_codes.to(images.device, non_blocking=True)
                codes = torch.cat([codes, drawn_codes], 1)
            self.redraw(codes)
            classes = torch.cat([self.drop_classes(batch.labels), drawn_classes])
            classes = classes.to(images.device, non_blocking=True)

            # decode them, and judge the images
            self.model.use_progressive_decoder(decoder)
            model = self.model.of_classes(classes)
            latents = model.quantizer.lookup(tuple(codes))
            decoded = (model.pixels(latents, image_size(images), levels).float() + 1) / 2
            last_layer = decoder.decoder.decoder[-1].weight
            losses, metrics = self.objective.judge(images, decoded, classes, last_layer, state.step)

        # the trainer sets the same rate for all networks before each step
        for group in state.networks[DISCRIMINATOR].optimizer.param_groups:
            group["lr"] *= settings.discriminator_rate
        metrics = {**state.minimize(losses), **metrics}
        metrics["broken_images"] = float(len(batch.broken))
        state.averaged.update_parameters(decoder)
        return metrics

    def choose_samples(self) -> tuple[Tensor, Tensor]:
        """Choose samples at random, as many as a batch of this process has; return their codes and
        classes.
        """
        codes, classes = self.samples
        count = self.config.generation.sample_batch // distributed.world_size()
        chosen = torch.randint(len(classes), (count,))
        return codes[:, chosen], classes[chosen]

    def drop_classes(self, labels: Tensor) -> Tensor:
        """Return labels (B,) of which a share is replaced by -1, all if there are no classes."""
        settings = self.config.generation
        share = settings.class_dropout if settings.classes else 1
        return torch.where(torch.rand(labels.shape) < share, -1, labels)

    def redraw(self, codes: Tensor) -> None:
        """Draw a share of the last level of codes (L, B, H, W) anew, all symbols alike."""
        last = codes[-1]
        symbols = self.config.model.num_symbols[len(codes) - 1]
        is_redrawn = torch.rand(last.shape, device=last.device) < self.config.generation.redraw
        codes[-1] = torch.where(is_redrawn, torch.randint_like(last, symbols), last)

    def trained_prefixes(self, model: Autoencoder) -> Sequence[int]:
        return (self.config.generation.levels,)


def resolve_samples(run: RunFolder, config: Config) -> Config:
    """Return a configuration with the number of levels and of classes of a decoder of samples, and
    with the section `progressive` of the run's decoder of prefixes.

    Raises InputError if efficientnet-lite0 is not installed, the decoder can't decode so many
    levels, or a prior of these levels is missing.
    """
    require_efficientnet()
    model, stored = run.load()
    require_several_levels(model, stored)
    first_levels = next(iter(prior_folders(run.path)), config.prior_levels[0])
    levels = config.generation.levels or first_levels.stop
    most = len(config.model.num_symbols) - 1
    if levels > most:
        raise InputError(
            f"a decoder of samples of {levels} levels is the model's own, since the model has no"
            f" more: give --generation.levels 1 to {most}, and draw so many by --levels"
        )
    if config.generation.samples:
        run.load_priors(levels)  # a missing prior is reported before images are read
    classes = load_images(config.data, "train").classes
    changes = {"generation.levels": levels, "generation.classes": len(classes)}
    return config.replace(**changes, progressive=stored.progressive)


def train(
    run: str | Path, kind: str, fields: Mapping[str, Any], *, resume: bool = False
) -> Outcome:
    """Train a decoder of a run, PROGRESSIVE or GENERATION.

    Raises as `Trainer.train`, `stage_config` and `resolve_samples`.
    """
    path = expand_home(run)
    folder = decoder_folder(path, kind)

    def resolve() -> Config:
        run = require_trainable(path)
        begun = folder.read_config() if resume and folder.config.is_file() else None
        section = "progressive" if kind == PROGRESSIVE else kind
        config = stage_config(section, run.read_config(), fields, begun)
        if begun is not None or kind == PROGRESSIVE:
            return config
        return resolve_samples(run, config)

    config = distributed.on_rank_zero(resolve)
    task = PrefixTask(path, config) if kind == PROGRESSIVE else SampleTask(path, config)
    return Trainer(task, resume=resume).train()
