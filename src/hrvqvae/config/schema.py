"""The whole configuration of a run, with its checks; no torch.

The dotted name of a field is its option on the command line (`--model.quantizer.codewords 8`), its place in
`config.yaml` and its name in presets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from hrvqvae.config.model import Grid, ModelConfig
from hrvqvae.config.registry import PRIORS, SYSTEMS, imported
from hrvqvae.config.section import AUTO, Count, Odd, OpenUnit, PerLevel, Positive, Range, Rate, Section, Share, Weight
from hrvqvae.utils.errors import InputError

T = TypeVar("T")

DEFAULT_SYSTEM, DEFAULT_PRIOR = "hrvqvae", "pixelsnail"
STAGES = ("training", "prior.training", "progressive.training")
BUDGET = ("epochs", "max_steps", "max_minutes")
_PILLOW_PIXELS = 178_956_970  # Pillow itself refuses larger images


class DataConfig(Section):
    """Which images, and how they become the pixels that a model sees (Table 5 in docs/paper-tables.md).

    `data.loading.open_stored` says how images are divided where the data has a given split (`train/` beside `test/`).

    Attributes:
        dataset: a data set's name (mnist, fashion-mnist, cifar10), or an image folder's (imagenet, ffhq, photos, ...).
        root: folder of the data, or tars, Parquet files or arrays, by a name or a pattern; None takes the variable
            HRVQVAE_DATA, else the user's cache folder.
        size: height and width in pixels that images of a folder are resized and cropped to.
        channels: 1 (greyscale) or 3 (RGB); images of a folder are converted.
        train_samples, test_samples: published counts (0: not published); they give the published training steps.
        split: without a given split, by a hash of the file name, or the first `train_samples` names in sorted order
            for training (FFHQ's convention).
        test_fraction: share of the files in the test split where the split is by hash.
        validation: share of the training images, spread evenly, that stands for the test split and is not trained on.
        crop: of training images; test images always take the centre.
        flip: mirror half of the training images.
        labels: whether class folders are classes.
        on_error: a broken image stops the run, or is skipped and counted.
        max_pixels: largest image that is decoded, in pixels.
        workers: processes that decode images.
        memory_mb: images without a random crop are held in memory as uint8 where all take up to this size.
    """

    dataset: str = "mnist"
    root: str | None = None
    size: Positive = 28
    channels: Annotated[int, Range((1, 3).__contains__, "1 (greyscale) or 3 (RGB)")] = 1
    train_samples: Count = 0
    test_samples: Count = 0
    split: Literal["hash", "sorted"] = "hash"
    test_fraction: OpenUnit = 0.1
    validation: Share = 0.0
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    labels: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    max_pixels: Annotated[int, Range(range(1, _PILLOW_PIXELS + 1).__contains__, f"1 to {_PILLOW_PIXELS}")] = 64_000_000
    workers: Count = 2
    memory_mb: Count = 512

    section = "data"

    def check(self) -> None:
        counted = self.split != "sorted" or self.train_samples > 0
        self.require(counted, "train_samples", "above 0 where data.split is sorted")


class StageConfig(Section):
    """Optimization of any stage: all but the batch size (docs/paper-tables.md, Tables 5 and 6).

    Attributes:
        epochs, max_steps, max_minutes: the budget; whichever is spent first ends the run (0: no such limit).
        optimizer: adam; or muon, which orthogonalizes the steps of the weights between layers, with Adam for the rest.
        learning_rate: of either, after the warm-up.
        adam_beta2: decay of Adam's second moment; its first moment's is 0.9.
        schedule: constant, or a linear warm-up and a cosine down to zero over the budget.
        polyak_decay: decay of the moving average of the network's weights.
        device: cpu, cuda or cuda:N; auto takes a GPU where there is one when a run begins.
        precision: auto takes bf16 where the processor or GPU computes in it when a run begins.
        threads: CPU threads (0: as torch decides).
        seed: start weights, data order, augmentation, k-means and dead-code restart depend on it alone.
        init_from: a run folder, a weights file or the name of a model inside the package, with whose weights it
            begins; empty: weights are drawn by the seed.
        loggers: further places for the records of metrics.jsonl, such as tensorboard, separated by commas.
        log_every, evaluate_every, checkpoint_every: in steps.
        evaluation_images: test images that an evaluation during training takes.
    """

    epochs: Count = 0
    max_steps: Count = 0
    max_minutes: Weight = 0.0
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: Rate = 3e-3
    adam_beta2: Share = 0.999
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Count = 100
    polyak_decay: Share = 0.9
    device: str = AUTO
    precision: Literal["auto", "fp32", "bf16"] = AUTO
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    threads: Count = 0
    seed: Annotated[int, Range(range(2**31).__contains__, "at least 0 and below 2^31")] = 0
    init_from: str = ""
    loggers: str = ""
    log_every: Positive = 50
    evaluate_every: Positive = 500
    checkpoint_every: Positive = 500
    evaluation_images: Positive = 1_000

    section = "training"
    decided_by: ClassVar = {
        "device": "hrvqvae.utils.device:decide_device", "precision": "hrvqvae.utils.device:decide_precision",
    }  # fmt: skip

    def check(self) -> None:
        if not (self.epochs or self.max_steps or self.max_minutes):
            fields = f"{self.section}.epochs, {self.section}.max_steps (--max-steps) or {self.section}.max_minutes"
            raise InputError(f"no budget: give {fields}")

    def with_batch_size(self, batch_size: int) -> TrainingConfig:
        """Return the optimization of one network with that batch size."""
        return TrainingConfig(**{**dict(self.items()), "batch_size": batch_size})


class TrainingConfig(StageConfig):
    """Optimization of an autoencoder; `batch_size` is that of all processes together (docs/scale.md)."""

    batch_size: Positive = 128


class PriorTrainingConfig(StageConfig):
    """Optimization of each prior. `batch_size` is one number for all levels, or one a level, coarse first; a prior of
    several levels takes that of the coarsest."""

    batch_size: PerLevel[Positive] = (32,)
    epochs: Count = 50
    learning_rate: Rate = 1e-3
    polyak_decay: Share = 0.99

    section = "prior.training"


class ProgressiveTrainingConfig(StageConfig):
    """Optimization of the progressive decoder; a step takes as many images as one of the autoencoder's training."""

    max_steps: Count = 400
    optimizer: Literal["adam", "muon"] = "muon"
    learning_rate: Rate = 2e-3
    adam_beta2: Share = 0.99
    warmup_steps: Count = 50

    section = "progressive.training"


Levels = range
"""Consecutive levels that one prior covers, 0 the coarsest."""


def level_names(levels: Levels) -> str:
    """Levels for people, who count from 1: "level 2", or "levels 1 to 3"."""
    first, last = levels.start + 1, levels.stop
    return f"level {first}" if first == last else f"levels {first} to {last}"


def at_level(values: tuple[T, ...], level: int) -> T:
    """The value of a level, of one value for all levels or one a level."""
    return values[0] if len(values) == 1 else values[level]


class PriorNetworkConfig(Section):
    """The contract of every prior network's configuration.

    A field that differs by level is a tuple of one value for all levels, or one a level, coarse first.
    """

    kind: str = ""
    """The network's name in the registry."""

    section = "prior.network"

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        """The levels that each network covers, coarse first; by default there is one network a level.

        Args:
            grids: (H, W) of each level's codes.
            linked: of each level, whether its codebooks belong to the codewords of the level before.

        Raises:
            InputError: the network can't cover levels of these grids.
        """
        return tuple(range(level, level + 1) for level in range(len(grids)))


class PriorConfig(Section):
    """The priors of all levels and their training (docs/paper-tables.md, Tables 8 and 9).

    Attributes:
        held_out: share of the training images whose codes are held out; the state that codes them best is kept.
        codes: shards of codes to train from (docs/tokens.md), one or a folder; None takes the codes of the run's own
            training images.
        class_dropout: share of the images whose class is withheld in training, so that the priors can be guided (Ho
            and Salimans 2022).
        flip: train on the codes of the mirror images as well.
        shifts: train on the codes of so many shifted copies of each as well, by up to an eighth of a side.
    """

    network: PriorNetworkConfig = field(default_factory=lambda: PRIORS.get(DEFAULT_PRIOR).config())
    training: PriorTrainingConfig = PriorTrainingConfig()
    held_out: OpenUnit = 0.05
    codes: str | None = None
    class_dropout: Share = 0.0
    flip: bool = False
    shifts: Count = 0

    section = "prior"

    def training_of(self, level: int) -> TrainingConfig:
        """Optimization of the prior whose coarsest level is that one (0 is the coarsest of all)."""
        return self.training.with_batch_size(at_level(self.training.batch_size, level))


class RefinerConfig(Section):
    """The network before the progressive decoder, which has the shape of the model's own (docs/method.md).

    Attributes:
        hidden_units: channels of its features; half as many inside a block.
        residual_blocks: a dilated convolution and a pointwise one each, with a bias for each depth.
    """

    hidden_units: Positive = 64
    residual_blocks: Count = 4
    kernel: Odd = 3

    section = "progressive.network"


class ProgressiveConfig(Section):
    """The decoder of the first levels, and its training on a frozen autoencoder (`train-progressive`)."""

    network: RefinerConfig = RefinerConfig()
    training: ProgressiveTrainingConfig = ProgressiveTrainingConfig()

    section = "progressive"


class Config(Section):
    """A run: data, model, training, priors, the progressive decoder; `name` is the preset that it began as."""

    name: str = "custom"
    data: DataConfig = DataConfig()
    model: ModelConfig = field(default_factory=lambda: SYSTEMS.get(DEFAULT_SYSTEM).config)
    training: TrainingConfig = TrainingConfig(epochs=1)
    prior: PriorConfig = field(default_factory=PriorConfig)
    progressive: ProgressiveConfig = ProgressiveConfig()

    @property
    def prior_levels(self) -> tuple[Levels, ...]:
        """The levels that each prior covers, coarse first. Raises InputError if its network can't cover them."""
        model, size = self.model, self.data.size
        symbols, codewords = model.num_symbols, (0, *model.num_codewords)
        linked = [codewords[level + 1] == codewords[level] * m for level, m in enumerate(symbols)]
        return self.prior.network.covers(model.latent_grids(size, size), linked)

    def with_root(self, root: str | None) -> Config:
        """Return the configuration with its data in another root folder; None leaves it."""
        return self if root is None else self.replace(**{"data.root": root})


def decided(config: Config, *sections: str) -> Config:
    """Return a configuration in which every "auto" of some sections is decided.

    Raises:
        InputError: this machine lacks what a field asks for, or the model can't be trained on images of that size.
    """
    if "model" in sections:
        config.model.check_images(config.data.size)
    parts, values = [getattr(config, name) for name in sections], dict[str, Any]()
    for part in parts:
        parts += [value for _, value in part.items() if isinstance(value, Section)]
        undecided = (name for name in part.decided_by if getattr(part, name) == AUTO)
        values |= {f"{part.section}.{name}": imported(part.decided_by[name])(part) for name in undecided}
    return config.replace(**values)


def default_config(system: str = DEFAULT_SYSTEM, network: str = DEFAULT_PRIOR) -> Config:
    """Return the defaults of a system and a network of priors. Raises InputError if either is unknown."""
    return Config(model=SYSTEMS.get(system).config, prior=PriorConfig(network=PRIORS.get(network).config()))


def training_steps(samples: int, epochs: int, batch_size: int) -> int:
    """Steps of that many epochs: samples * epochs / batch, rounded down (how Table 5 counts)."""
    return samples * epochs // batch_size


def bits_per_image(model: ModelConfig, height: int, width: int) -> float:
    """Bits that the codes of one image take: positions * log2(symbols), over the levels (appendix A.1)."""
    grids = model.latent_grids(height, width)
    return math.fsum(h * w * math.log2(m) for (h, w), m in zip(grids, model.num_symbols, strict=True))


def compression_ratio(model: ModelConfig, channels: int, height: int, width: int) -> float:
    """Bits of the 8-bit image over bits of its codes (appendix A.1: 170.67 for 256x256x3 and FFHQ's row)."""
    return 8 * channels * height * width / bits_per_image(model, height, width)
