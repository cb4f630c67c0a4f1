"""The whole description of a run: frozen dataclasses with their checks, no torch.

The dotted path of a field is its name on the command line (`--model.quantizer.codewords 8`), in `config.yaml` and in
presets. Values that differ by level are tuples, coarse first. A field is a number, a text, true or false, a Literal of
texts, a tuple of these of any length, or one of them or None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from hrvqvae.config.model import AUTO, Grid, ModelConfig, decided_on_start
from hrvqvae.config.registry import PRIORS, SYSTEMS, imported
from hrvqvae.utils.errors import InputError, require

C = TypeVar("C")
T = TypeVar("T")

DEFAULT_SYSTEM, DEFAULT_PRIOR = "hrvqvae", "pixelsnail"
STAGES = ("training", "prior.training", "progressive.training")
BUDGET = ("epochs", "max_steps", "max_minutes")
_PILLOW_PIXELS = 178_956_970  # beyond this Pillow refuses by itself


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted name, its dataclass, the field) of every field of a configuration, and of the dataclasses inside it."""
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, config, one


def decide(
    config: Config, made: Mapping[str, str] = MappingProxyType({}), only: tuple[str, ...] = ("",)
) -> tuple[Config, dict[str, str]]:
    """A configuration with every "auto" decided, and what was decided, by dotted name.

    Args:
        made: decisions that were made before, which are kept.
        only: how the names of the fields begin that are decided.

    Raises:
        InputError: a field needs what is not on this machine.
    """
    found = {
        name: made.get(name) or imported(one.metadata["decided by"])(of)
        for name, of, one in fields_of(config)
        if "decided by" in one.metadata and getattr(of, one.name) == AUTO and name.startswith(only)
    }
    return replaced(config, found), found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
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
    size: int = 28
    channels: int = 1
    train_samples: int = 0
    test_samples: int = 0
    split: Literal["hash", "sorted"] = "hash"
    test_fraction: float = 0.1
    validation: float = 0.0
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    labels: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    max_pixels: int = 64_000_000
    workers: int = 2
    memory_mb: int = 512

    def __post_init__(self) -> None:
        require(self.size >= 1, "data.size", self.size, "at least 1 pixel")
        require(self.channels in (1, 3), "data.channels", self.channels, "1 (greyscale) or 3 (RGB)")
        require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "between 0 and 1")
        require(0 <= self.validation < 1, "data.validation", self.validation, "at least 0 and below 1")
        for name in ("train_samples", "test_samples", "workers", "memory_mb"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "at least 0")
        counted = self.split != "sorted" or self.train_samples > 0
        require(counted, "data.train_samples", self.train_samples, "above 0 where data.split is sorted")
        require(1 <= self.max_pixels <= _PILLOW_PIXELS, "data.max_pixels", self.max_pixels, f"1 to {_PILLOW_PIXELS}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
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
        section: where these fields stand in a configuration, for messages.
    """

    epochs: int = 0
    max_steps: int = 0
    max_minutes: float = 0.0
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 3e-3
    adam_beta2: float = 0.999
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 100
    polyak_decay: float = 0.9
    device: str = decided_on_start("hrvqvae.utils.device:decide_device")
    precision: Literal["auto", "fp32", "bf16"] = decided_on_start("hrvqvae.utils.device:decide_precision")
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    threads: int = 0
    seed: int = 0
    init_from: str = ""
    loggers: str = ""
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    evaluation_images: int = 1_000

    section: ClassVar[str] = "training"

    def __post_init__(self) -> None:
        for name in ("log_every", "evaluate_every", "checkpoint_every", "evaluation_images"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("epochs", "max_steps", "max_minutes", "warmup_steps", "threads", "seed"):
            self._require(0 <= getattr(self, name) < math.inf, name, "at least 0")
        self._require(0 < self.learning_rate < math.inf, "learning_rate", "above 0")
        self._require(self.seed < 2**31, "seed", "below 2^31")
        for name in ("adam_beta2", "polyak_decay"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        if not (self.epochs or self.max_steps or self.max_minutes):
            fields = f"{self.section}.epochs, {self.section}.max_steps (--max-steps) or {self.section}.max_minutes"
            raise InputError(f"no budget: give {fields}")

    def _require(self, holds: bool, name: str, what: str) -> None:
        require(holds, f"{self.section}.{name}", getattr(self, name), what)

    def with_batch_size(self, batch_size: int) -> TrainingConfig:
        """The optimization of one network, of so many images a step."""
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return TrainingConfig(**{**own, "batch_size": batch_size})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """Optimization of an autoencoder; `batch_size` is that of all processes together (docs/scale.md)."""

    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.batch_size >= 1, "batch_size", "at least 1")


@dataclass(frozen=True, kw_only=True)
class PriorTrainingConfig(StageConfig):
    """Optimization of each prior. `batch_size` is one number for all levels, or one a level, coarse first; a prior of
    several levels takes that of the coarsest."""

    batch_size: tuple[int, ...] = (32,)
    epochs: int = 50
    learning_rate: float = 1e-3
    polyak_decay: float = 0.99

    section: ClassVar[str] = "prior.training"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(bool(self.batch_size), "batch_size", "one number, or one a level")
        self._require(all(number >= 1 for number in self.batch_size), "batch_size", "at least 1")


@dataclass(frozen=True, kw_only=True)
class ProgressiveTrainingConfig(StageConfig):
    """Optimization of the progressive decoder; a step takes as many images as one of the autoencoder's training."""

    max_steps: int = 400
    optimizer: Literal["adam", "muon"] = "muon"
    learning_rate: float = 2e-3
    adam_beta2: float = 0.99
    warmup_steps: int = 50

    section: ClassVar[str] = "progressive.training"


Levels = range
"""Consecutive levels that one prior covers, 0 the coarsest."""


def level_names(levels: Levels) -> str:
    """Levels for people, who count from 1: "level 2", or "levels 1 to 3"."""
    first, last = levels.start + 1, levels.stop
    return f"level {first}" if first == last else f"levels {first} to {last}"


def at_level(values: tuple[T, ...], level: int) -> T:
    """The value of a level, of one value for all levels or one a level."""
    return values[0] if len(values) == 1 else values[level]


@dataclass(frozen=True, kw_only=True)
class PriorNetworkConfig:
    """The contract of every prior network's configuration: a frozen dataclass.

    A field that differs by level is a tuple of one value for all levels, or one a level, coarse first.
    """

    kind: str = ""
    """The network's name in the registry."""

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        """The levels that each network covers, coarse first; by default there is one network a level.

        Args:
            grids: (H, W) of each level's codes.
            linked: of each level, whether its codebooks belong to the codewords of the level before.

        Raises:
            InputError: the network can't cover levels of these grids.
        """
        return tuple(range(level, level + 1) for level in range(len(grids)))


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The priors of all levels and their training (docs/paper-tables.md, Tables 8 and 9).

    Attributes:
        held_out: share of the training images whose codes are held out; the state that codes them best is kept.
        codes: shards of codes to train from (docs/tokens.md), one or a folder; None takes the codes of the run's own
            training images.
        class_dropout: share of the images whose class is withheld in training, so that the priors can be guided (Ho
            and Salimans 2022).
        flip: train on the codes of the mirror images as well.
    """

    network: PriorNetworkConfig = field(default_factory=lambda: PRIORS.get(DEFAULT_PRIOR).config())
    training: PriorTrainingConfig = field(default_factory=PriorTrainingConfig)
    held_out: float = 0.05
    codes: str | None = None
    class_dropout: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        require(0 < self.held_out < 1, "prior.held_out", self.held_out, "between 0 and 1")
        require(0 <= self.class_dropout < 1, "prior.class_dropout", self.class_dropout, "at least 0 and below 1")

    def training_of(self, level: int) -> TrainingConfig:
        """Optimization of the prior whose coarsest level is that one (0 is the coarsest of all)."""
        return self.training.with_batch_size(at_level(self.training.batch_size, level))


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """The network before the progressive decoder, which has the shape of the model's own (docs/method.md).

    Attributes:
        hidden_units: channels of its features; half as many inside a block.
        residual_blocks: a dilated convolution and a pointwise one each, with a bias for each depth.
    """

    hidden_units: int = 64
    residual_blocks: int = 4
    kernel: int = 3

    def __post_init__(self) -> None:
        section = "progressive.network"
        require(self.hidden_units >= 1, f"{section}.hidden_units", self.hidden_units, "at least 1")
        require(self.residual_blocks >= 0, f"{section}.residual_blocks", self.residual_blocks, "at least 0")
        require(self.kernel % 2 == 1 and self.kernel >= 1, f"{section}.kernel", self.kernel, "odd, at least 1")


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """The decoder of the first levels, and its training on a frozen autoencoder (`train-progressive`)."""

    network: RefinerConfig = field(default_factory=RefinerConfig)
    training: ProgressiveTrainingConfig = field(default_factory=ProgressiveTrainingConfig)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: data, model, training, priors, the progressive decoder; `name` is the preset that it began as."""

    name: str = "custom"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: SYSTEMS.get(DEFAULT_SYSTEM).config)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=1))
    prior: PriorConfig = field(default_factory=PriorConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)

    @property
    def prior_levels(self) -> tuple[Levels, ...]:
        """The levels that each prior covers, coarse first. Raises InputError where its network can't or was removed."""
        model, size = self.model, self.data.size
        symbols, codewords = model.num_symbols, (0, *model.num_codewords)
        linked = [codewords[level + 1] == codewords[level] * m for level, m in enumerate(symbols)]
        PRIORS.get(self.prior.network.kind)  # raises where it was removed
        return self.prior.network.covers(model.latent_grids(size, size), linked)

    def with_root(self, root: str | None) -> Config:
        """The same with its data in another root folder; None leaves it."""
        return self if root is None else replaced(self, {"data.root": root})


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, for JSON and YAML."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a nested mapping, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def default_config(system: str = DEFAULT_SYSTEM, network: str = DEFAULT_PRIOR) -> Config:
    """The defaults of a system and a network of priors; of a network that was removed, its name alone.

    Raises:
        InputError: one is unknown.
    """
    of_priors = PriorNetworkConfig(kind=network) if PRIORS.removal(network) else PRIORS.get(network).config()
    return Config(model=SYSTEMS.get(system).config, prior=PriorConfig(network=of_priors))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with fields replaced, by dotted name; a stage's default budget is replaced as a whole.

    Raises:
        InputError: a value is out of range.
    """
    before, usual = (dict(flatten(to_dict(one))) for one in (config, Config()))
    for stage in STAGES:
        budget = [f"{stage}.{name}" for name in BUDGET]
        if any(values.get(name) for name in budget) and all(before[name] == usual[name] for name in budget):
            values = {name: type(before[name])() for name in budget} | dict(values)
    return replaced(config, values)


def replaced(config: C, values: Mapping[str, Any], prefix: str = "") -> C:
    """A dataclass of configuration with fields replaced, by dotted name. Raises InputError as `with_values`."""
    changes = {}
    for one in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + one.name, getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            changes[one.name] = replaced(value, values, f"{name}.")
        elif name in values:
            changes[one.name] = values[name]
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


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
