"""The whole configuration of a run, with its checks. No torch.

The dotted name of a field is its option (`--model.quantizer.codewords 8`), its place in
`config.yaml` and its name in presets.
"""

from __future__ import annotations

import math
import re
from dataclasses import field
from operator import attrgetter
from pkgutil import resolve_name
from typing import Annotated, Literal, TypeVar

from hrvqvae.config.model import Grid, Levels, ModelConfig, PriorNetworkConfig
from hrvqvae.config.registry import PRIORS, SYSTEMS
from hrvqvae.config.section import (
    AUTO,
    Count,
    Kernel,
    OpenUnit,
    PerLevel,
    Positive,
    Range,
    Rate,
    Section,
    Share,
    Weight,
    flatten,
)
from hrvqvae.utils.errors import InputError

T = TypeVar("T")

DEFAULT_SYSTEM = "hrvqvae"
DEFAULT_PRIOR = "pixelsnail"
TRAINING_SECTIONS = ("training", "prior.training", "progressive.training", "generation.training")
BUDGET = ("epochs", "max_steps", "max_minutes")
_SIZE = re.compile(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?")
_PILLOW_PIXELS = 178_956_970  # Pillow itself refuses larger images


class DataConfig(Section, section="data"):
    """Which images, and how they become the pixels that a model sees (Table 5 in
    docs/paper-tables.md).
    """

    #: a data set (mnist, fashion-mnist, cifar10), or the name of an image folder (photos, ...)
    dataset: str = "mnist"
    #: Folder, path or pattern of Parquet, tar or Arrow files, or hub:OWNER/NAME (default:
    #: HRVQVAE_DATA, or the user's cache).
    root: str | None = None
    #: Height and width in pixels, to which images of a folder are resized and cropped: 64, or 64x48
    #: (height x width).
    size: int | str = 28
    channels: Literal[1, 3] = 1  #: 1: greyscale, 3: RGB
    #: published number of training images (0: unknown), for the steps that `hrvqvae presets`
    #: prints, and for `split: sorted`
    train_samples: Count = 0
    test_samples: Count = 0  #: published number of test images (0: unknown)
    #: Split of a folder without train/ and test/: by a hash of the file name; or sorted by name,
    #: and the first `train_samples` images are for training (as for FFHQ).
    split: Literal["hash", "sorted"] = "hash"
    test_fraction: OpenUnit = 0.1  #: share of test files in a split by hash
    #: share of the training images, evenly spaced, to test on instead of the test images
    validation: Share = 0.0
    crop: Literal["center", "random"] = "center"  #: of training images; test images take the centre
    flip: bool = False  #: mirror half of the training images
    #: read the classes of images, such as the names of class folders (published sets always have
    #: theirs)
    labels: bool = True
    on_error: Literal["stop", "skip"] = "stop"  #: what to do at a broken image
    max_pixels: Annotated[int, Range(1, _PILLOW_PIXELS + 1)] = 64_000_000
    workers: Count = 2  #: processes that decode images
    #: keep decoded images in memory if all fit in this many MiB (unless `crop` is random)
    memory_mb: Count = 512

    @property
    def image_size(self) -> Grid:
        """Height and width of images in pixels."""
        height, _, width = str(self.size).partition("x")
        return int(height), int(width or height)

    def check(self) -> None:
        is_size = _SIZE.fullmatch(str(self.size)) is not None
        self.require(is_size, "size", "pixels such as 64, or 64x48 (height x width)")
        has_count = self.split != "sorted" or self.train_samples > 0
        self.require(has_count, "train_samples", "above 0 where data.split is sorted")


class StageConfig(Section, section="training"):
    """Training of any stage, without the batch size (docs/paper-tables.md, Tables 5 and 6).

    The budget is `epochs`, `max_steps` and `max_minutes` (0: no limit); the first limit reached
    ends the training.
    """

    epochs: Count = 0
    max_steps: Count = 0
    max_minutes: Weight = 0.0
    #: muon: for matrices and filters, and Adam for the rest
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: Rate = 3e-3  #: the schedule multiplies it
    adam_beta1: Share = 0.9  #: decay of Adam's first moment
    adam_beta2: Share = 0.999  #: decay of Adam's second moment
    #: cosine: a linear warm-up times a cosine that falls to zero from the first step; constant: no
    #: warm-up
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Count = 100
    polyak_decay: Share = 0.9  #: decay of the moving average of the network's weights
    device: str = AUTO  #: cpu, cuda or cuda:N; auto: a GPU if there is one when a run begins
    #: auto: bf16 if the device supports it when a run begins
    precision: Literal["auto", "fp32", "bf16"] = AUTO
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    threads: Count = 0  #: CPU threads (0: torch decides)
    #: Seed of start weights, data order, augmentation, k-means and restarts.
    seed: Count = 0
    #: run folder or model of the package with the start weights (default: random)
    init_from: str = ""
    #: where metrics go beside metrics.jsonl
    loggers: Literal["", "tensorboard"] = ""
    log_every: Positive = 50  #: in steps, as are the next two fields
    evaluate_every: Positive = 500
    checkpoint_every: Positive = 500
    #: images of an evaluation during training: test images; held-out training images for a prior
    evaluation_images: Positive = 1_000

    def check(self) -> None:
        if not (self.epochs or self.max_steps or self.max_minutes):
            raise InputError(
                f"no budget: give {self.section}.epochs, {self.section}.max_steps (--max-steps) or"
                f" {self.section}.max_minutes"
            )


class TrainingConfig(StageConfig):
    """Training of an autoencoder."""

    batch_size: Positive = 128  #: of all processes together (docs/scale.md)


def with_batch_size(stage: StageConfig, batch_size: int) -> TrainingConfig:
    """Return the training of one network of a stage; its `section` is "training" for any stage."""
    return TrainingConfig(**vars(stage) | {"batch_size": batch_size})


class PriorTrainingConfig(StageConfig, section="prior.training"):
    """Training of each prior."""

    #: a prior of several levels takes the value of its coarsest level
    batch_size: PerLevel[Positive] = (32,)
    epochs: Count = 50
    learning_rate: Rate = 1e-3
    polyak_decay: Share = 0.99


class ProgressiveTrainingConfig(StageConfig, section="progressive.training"):
    """Training of the progressive decoder, with the batch size of the autoencoder."""

    max_steps: Count = 400
    optimizer: Literal["adam", "muon"] = "muon"
    learning_rate: Rate = 2e-3
    adam_beta2: Share = 0.99
    warmup_steps: Count = 50


class GenerationTrainingConfig(TrainingConfig, section="generation.training"):
    """Training of the decoder of samples."""

    batch_size: Positive = 24
    max_steps: Count = 4_000
    learning_rate: Rate = 1e-3
    adam_beta1: Share = 0.5
    adam_beta2: Share = 0.99
    warmup_steps: Count = 50
    polyak_decay: Share = 0.997


def level_names(levels: Levels) -> str:
    """Return levels in words, counted from 1: "level 2", or "levels 1 to 3"."""
    first = levels.start + 1
    last = levels.stop
    return f"level {first}" if first == last else f"levels {first} to {last}"


def at_level(values: tuple[T, ...], level: int) -> T:
    """Return the value of a level from a tuple with a single value for all levels, or a value per
    level.
    """
    return values[0] if len(values) == 1 else values[level]


class PriorConfig(Section, section="prior"):
    """The priors of all levels and their training (docs/paper-tables.md, Tables 8 and 9)."""

    network: PriorNetworkConfig = field(default_factory=lambda: PRIORS.get(DEFAULT_PRIOR).config())
    training: PriorTrainingConfig = PriorTrainingConfig()
    #: share of the images held out from training; the weights that suit them best are kept
    held_out: OpenUnit = 0.05
    #: shards to train from (docs/tokens.md), a file or folder (default: the run's images)
    codes: str | None = None
    #: share of images trained without their class, for guidance (Ho and Salimans 2022)
    class_dropout: Share = 0.0
    #: end a training after so many evaluations without fewer held-out bits (0: never)
    patience: Count = 10
    flip: bool = False  #: train also on the codes of mirror images
    #: train also on this many copies of each image, shifted by up to an eighth of a side
    shifts: Count = 0
    #: Train also on this many changed copies of each image: the first, third, ... enlarged, the
    #: second, fourth, ... in other colours. If there are any, the prior is told which copy it sees,
    #: also of `shifts` (DistAug, Jun et al. 2020). A transformer of fewer than 5,000 images has 8
    #: shifts and 3 variants, unless one of these fields is given.
    variants: Count = 0

    def training_of(self, level: int) -> TrainingConfig:
        """Return the training of the prior whose coarsest level is `level`, counted from 0."""
        return with_batch_size(self.training, at_level(self.training.batch_size, level))


class RefinerConfig(Section, section="progressive.network"):
    """The refiner: first part of the progressive decoder, followed by a decoder like the model's
    (docs/method.md).
    """

    hidden_units: Positive = 64  #: channels of the features; half as many inside a block
    #: number of blocks, each of a dilated and a pointwise convolution, whose bias depends on the
    #: number of levels that are decoded
    residual_blocks: Count = 4
    kernel: Kernel = 3


class ProgressiveConfig(Section, section="progressive"):
    """The decoder of the first levels, and its training on a frozen autoencoder
    (`train-decoder --decoder progressive`).
    """

    network: RefinerConfig = RefinerConfig()
    training: ProgressiveTrainingConfig = ProgressiveTrainingConfig()


class SampleRefinerConfig(RefinerConfig, section="generation.network"):
    """The refiner of the decoder of samples, before a progressive decoder (docs/method.md)."""

    hidden_units: Positive = 128
    residual_blocks: Count = 6


class GenerationConfig(Section, section="generation"):
    """The decoder of samples and of completed images, and its training on a frozen autoencoder and
    on samples of the priors (`train-decoder`).
    """

    levels: Count = 0  #: decode samples of this many levels (0: the levels of the first prior)
    classes: Count = 0  #: number of classes that the decoder is told; set when a training begins
    network: SampleRefinerConfig = SampleRefinerConfig()
    #: Codes of this many samples are drawn from the priors before the training, half of them with
    #: the guidance of sampling.json (0: train on the codes of images alone).
    samples: Count = 20_000
    sample_batch: Count = 40  #: samples in a batch, beside the images
    #: in training, this share of the codes of the last of these levels is replaced at random, to
    #: imitate the errors of a prior
    redraw: Share = 0.1
    class_dropout: Share = 0.1  #: share of images whose class the decoder is not told
    perceptual_weight: Weight = 0.3  #: of the perceptual distance; the squared error has weight 1
    #: factor of the adaptive weight (Esser et al. 2021, equation 7), for images
    adversarial_weight: Weight = 2.0
    sample_weight: Weight = 3.0  #: the adversarial loss of samples, relative to that of images
    #: the cross-entropy of the classes of decoded images, relative to their adversarial loss
    class_weight: Weight = 2.0
    #: show the discriminator changed images (`models.adversarial.change_images`): a few thousand
    #: images it learns by heart otherwise, and then samples become alike
    augment: bool = False
    adversarial_start: Count = 100  #: training steps before the discriminator begins
    #: the discriminator's learning rate divided by that of the decoder
    discriminator_rate: Rate = 0.5
    training: GenerationTrainingConfig = GenerationTrainingConfig()


class Config(Section):
    """A run: data, model, training, priors and further decoders."""

    name: str = "custom"  #: name of the preset from which the run began
    data: DataConfig = DataConfig()
    model: ModelConfig = field(default_factory=lambda: SYSTEMS.get(DEFAULT_SYSTEM).config)
    training: TrainingConfig = TrainingConfig(epochs=1)  # `check` wants a budget
    prior: PriorConfig = field(default_factory=PriorConfig)
    progressive: ProgressiveConfig = ProgressiveConfig()
    generation: GenerationConfig = GenerationConfig()

    @property
    def prior_levels(self) -> tuple[Levels, ...]:
        """The levels that each prior covers, coarse first. Raises InputError if the network of the
        priors can't cover them.
        """
        grids = self.model.geometry.grids(*self.data.image_size)
        return self.prior.network.covers(grids, self.model.linked)

    def with_root(self, root: str | None) -> Config:
        """Return the configuration with another root folder of the data (None: unchanged)."""
        return self if root is None else self.replace(**{"data.root": root})


# the functions that decide a field that is "auto", from its section
_DECIDE = {
    "device": "hrvqvae.utils.device:decide_device",
    "precision": "hrvqvae.utils.device:decide_precision",
    "perceptual": "hrvqvae.models.perceptual:choose_perceptual",
}


def decide_auto(config: Config, *sections: str) -> Config:
    """Return a configuration in which every "auto" of the sections is decided.

    Raises InputError if this machine lacks a requested device, number format or perceptual network,
    or the model can't be trained on images of `data.size`.
    """
    if "model" in sections:
        config.model.check_images(min(config.data.image_size))
    values = {}
    for name, value in flatten(config).items():
        path, _, field_name = name.rpartition(".")
        if value == AUTO and name.partition(".")[0] in sections:
            section = attrgetter(path)(config)
            values[name] = resolve_name(_DECIDE[field_name])(section)
    return config.replace(**values)


def default_config(system: str = DEFAULT_SYSTEM, network: str = DEFAULT_PRIOR) -> Config:
    """Return the defaults of a system and a network of priors. Raises InputError if either is
    unknown.
    """
    return Config(
        model=SYSTEMS.get(system).config, prior=PriorConfig(network=PRIORS.get(network).config())
    )


def bits_per_image(model: ModelConfig, height: int, width: int) -> float:
    """Return the bits of an image's codes: positions * log2(symbols), summed over the levels
    (appendix A.1).
    """
    grids = model.geometry.grids(height, width)
    return math.fsum(
        h * w * math.log2(m) for (h, w), m in zip(grids, model.num_symbols, strict=True)
    )


def compression_ratio(model: ModelConfig, channels: int, height: int, width: int) -> float:
    """Return the bits of an 8-bit image over the bits of its codes (appendix A.1: 170.67 for
    256x256x3 and FFHQ).
    """
    return 8 * channels * height * width / bits_per_image(model, height, width)
