"""The priors of a run, and their training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from hrvqvae.config.checks import require
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PriorNetworkConfig:
    """The contract of every prior network's configuration: a frozen dataclass.

    A field that differs by level is a tuple of one value for all levels, or one a level, coarse first.

    Attributes:
        kind: name of the network, under which the registry knows it.
    """

    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The priors of all levels and their training (docs/paper-tables.md, Tables 8 and 9).

    Attributes:
        network: one autoregressive network a level.
        training: optimization of each level's network.
        held_out: share of the training images whose codes are held out; the state that codes them best is kept.
        codes: a folder of shards of codes, or one (docs/tokens.md), that are trained from; None takes the codes of the
            run's own training images.
    """

    network: PriorNetworkConfig
    training: PriorTrainingConfig = field(default_factory=PriorTrainingConfig)
    held_out: float = 0.05
    codes: str | None = None

    def __post_init__(self) -> None:
        require(0 < self.held_out < 1, "prior.held_out", self.held_out, "between 0 and 1")

    def training_of(self, level: int) -> TrainingConfig:
        """Optimization of the network of a level (0 is the coarsest)."""
        return self.training.of_level(level)

    def check_levels(self, levels: int) -> None:
        """Raises InputError where a field with a value a level has neither one value nor one for each level."""
        for owner, prefix in ((self.training, "prior.training"), (self.network, "prior.network")):
            for one in fields(owner):
                values = getattr(owner, one.name)
                if isinstance(values, tuple) and len(values) not in (1, levels):
                    raise InputError(
                        f"{prefix}.{one.name} has {len(values)} values; give one, or one for each of the "
                        f"{levels} levels"
                    )
