"""How prefixes of the levels are decoded, and the training of what decodes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hrvqvae.config.checks import require
from hrvqvae.config.training import StageConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """What stands before the progressive decoder, which has the shape of the model's own (docs/method.md).

    Attributes:
        hidden_units: channels of its features; half as many inside a block.
        residual_blocks: a dilated convolution and a pointwise one each, with a bias for each depth.
        kernel: filter size.
    """

    hidden_units: int = 64
    residual_blocks: int = 4
    kernel: int = 3

    def __post_init__(self) -> None:
        require(self.hidden_units >= 1, "progressive.network.hidden_units", self.hidden_units, "at least 1")
        require(self.residual_blocks >= 0, "progressive.network.residual_blocks", self.residual_blocks, "at least 0")
        require(self.kernel % 2 == 1 and self.kernel >= 1, "progressive.network.kernel", self.kernel, "odd, at least 1")


@dataclass(frozen=True, kw_only=True)
class ProgressiveTrainingConfig(StageConfig):
    """Optimization of the progressive decoder; a step takes as many images as one of the autoencoder's training."""

    max_steps: int = 400
    optimizer: Literal["adam", "muon"] = "muon"
    learning_rate: float = 2e-3
    adam_beta2: float = 0.99
    warmup_steps: int = 50

    section: ClassVar[str] = "progressive.training"

    def with_batch_size(self, batch_size: int) -> TrainingConfig:
        """The same, with the images of a step."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return TrainingConfig(**fields, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """The decoding of prefixes, which is trained when an autoencoder is (`hrvqvae train-progressive`).

    Attributes:
        network: from the latents of a prefix to what its decoder is given.
        training: its optimization.
    """

    network: RefinerConfig = field(default_factory=RefinerConfig)
    training: ProgressiveTrainingConfig = field(default_factory=ProgressiveTrainingConfig)
