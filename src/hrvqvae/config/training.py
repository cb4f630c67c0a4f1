"""Optimization of one stage."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from hrvqvae.config.checks import require
from hrvqvae.config.decisions import decided_on_start
from hrvqvae.utils.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Optimization of any stage: all but the batch size (docs/paper-tables.md, Tables 5 and 6).

    Attributes:
        epochs, max_steps, max_minutes: the budget; whichever is spent first ends the run (0: no such limit).
        optimizer: adam; or muon, which orthogonalizes the steps of the weights between layers, with Adam for the rest.
        learning_rate: of either, after the warm-up.
        adam_beta2: decay of Adam's second moment; its first moment's is 0.9.
        schedule: constant, or a linear warm-up and a cosine down to zero over the budget.
        warmup_steps: steps of the warm-up.
        polyak_decay: decay of the moving average of the network's weights.
        device: cpu, cuda or cuda:N; auto takes a GPU where there is one when a run begins.
        precision: bf16 or fp32; auto takes bf16 where the processor or GPU computes in it when a run begins. The run
            keeps both names.
        memory_format: layout of images and weights in memory.
        threads: CPU threads (0: as torch decides).
        seed: start weights, data order, augmentation, k-means and dead-code restart depend on it alone.
        init_from: a run folder, a weights file or the name of a model inside the package, whose weights it begins
            with; empty: it begins with weights drawn by the seed.
        loggers: names, separated by commas, of further places for the records of metrics.jsonl, such as tensorboard.
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
    device: str = decided_on_start("hrvqvae.training.device:decide_device")
    precision: Literal["auto", "fp32", "bf16"] = decided_on_start("hrvqvae.training.device:decide_precision")
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
        self._require(0 <= self.adam_beta2 < 1, "adam_beta2", "at least 0 and below 1")
        self._require(0 <= self.polyak_decay < 1, "polyak_decay", "at least 0 and below 1")
        if not (self.epochs or self.max_steps or self.max_minutes):
            fields = f"{self.section}.epochs, {self.section}.max_steps (--max-steps) or {self.section}.max_minutes"
            raise InputError(f"no budget: give {fields}")

    def _require(self, holds: bool, name: str, what: str) -> None:
        require(holds, f"{self.section}.{name}", getattr(self, name), what)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """Optimization of an autoencoder.

    Attributes:
        batch_size: images a step, of all processes together where several train (docs/scale.md).
    """

    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.batch_size >= 1, "batch_size", "at least 1")


def at_level(values: tuple[T, ...], level: int) -> T:
    """The value of a level, of one value for all levels or one a level. Raises InputError where there is none."""
    if len(values) == 1:
        return values[0]
    if level < len(values):
        return values[level]
    raise InputError(f"{values!r} has {len(values)} values; level {level + 1} needs one, or give one for all levels")


@dataclass(frozen=True, kw_only=True)
class PriorTrainingConfig(StageConfig):
    """Optimization of the priors; budgets are a prior's own.

    Attributes:
        batch_size: images a step: one number for all levels, or one a level, coarse first; a prior of several levels
            takes that of the coarsest.
    """

    batch_size: tuple[int, ...] = (32,)
    epochs: int = 50
    learning_rate: float = 1e-3
    polyak_decay: float = 0.99

    section: ClassVar[str] = "prior.training"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(bool(self.batch_size), "batch_size", "one number, or one a level")
        for number in self.batch_size:
            require(number >= 1, "prior.training.batch_size", number, "at least 1")

    def of_level(self, level: int) -> TrainingConfig:
        """Optimization of the network of a level (0 is the coarsest)."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return TrainingConfig(**{**fields, "batch_size": at_level(self.batch_size, level)})
