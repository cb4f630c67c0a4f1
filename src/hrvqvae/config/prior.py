"""The priors of a run, and their training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from hrvqvae.config.checks import require
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.utils.errors import InputError

Levels = range
"""Consecutive levels that one prior covers, 0 the coarsest."""


def level_names(levels: Levels) -> str:
    """Levels for people, who count from 1: "level 2", or "levels 1 to 3"."""
    first, last = levels.start + 1, levels.stop
    return f"level {first}" if first == last else f"levels {first} to {last}"


@dataclass(frozen=True, kw_only=True)
class PriorNetworkConfig:
    """The contract of every prior network's configuration: a frozen dataclass.

    A field that differs by level is a tuple of one value for all levels, or one a level, coarse first.

    Attributes:
        kind: name of the network, under which the registry knows it.
    """

    kind: str = ""

    def covers(self, grids: Sequence[tuple[int, int]]) -> tuple[Levels, ...]:
        """The levels that each network covers, coarse first; by default there is one network a level.

        Args:
            grids: (H, W) of each level's codes.

        Raises:
            InputError: the network can't cover levels of these grids.
        """
        return tuple(range(level, level + 1) for level in range(len(grids)))


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The priors of all levels and their training (docs/paper-tables.md, Tables 8 and 9).

    Attributes:
        network: of each prior, by default one a level.
        training: optimization of each prior.
        held_out: share of the training images whose codes are held out; the state that codes them best is kept.
        codes: a folder of shards of codes, or one (docs/tokens.md), that are trained from; None takes the codes of the
            run's own training images.
        class_dropout: share of the images whose class is withheld in training, so that the priors know the codes
            without a class as well, and can be guided (Ho and Salimans 2022).
    """

    network: PriorNetworkConfig
    training: PriorTrainingConfig = field(default_factory=PriorTrainingConfig)
    held_out: float = 0.05
    codes: str | None = None
    class_dropout: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.held_out < 1, "prior.held_out", self.held_out, "between 0 and 1")
        require(0 <= self.class_dropout < 1, "prior.class_dropout", self.class_dropout, "at least 0 and below 1")

    def training_of(self, level: int) -> TrainingConfig:
        """Optimization of the prior whose coarsest level is that one (0 is the coarsest of all)."""
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
