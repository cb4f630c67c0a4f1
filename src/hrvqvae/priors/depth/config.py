"""Configuration of one prior for all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hrvqvae.config import Levels
from hrvqvae.config.model import Grid
from hrvqvae.priors.trunk_config import TrunkConfig, check_dropout
from hrvqvae.utils.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class DepthConfig(TrunkConfig):
    """One network for all levels, which share one grid (docs/method.md; Lee et al. 2022).

    Attributes:
        attention_layers: causal attention layers of the trunk.
        dropout: share of the activations inside a residual block that training drops.
        head_units: channels inside the residual block of each level's head.
    """

    kind: Literal["depth"] = "depth"
    residual_blocks: int = 6
    attention_heads: int = 4
    attention_layers: int = 2
    dropout: float = 0.1
    head_units: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_attention(self.attention_layers)
        check_dropout(self.dropout)
        require(self.head_units >= 1, "prior.network.head_units", self.head_units, "at least 1")

    def covers(self, grids: Sequence[Grid]) -> tuple[Levels, ...]:
        if len(set(grids)) > 1:
            shown = ", ".join(f"{height}x{width}" for height, width in grids)
            raise InputError(
                f"prior.network.kind depth covers levels of one grid; this model has grids of {shown}: take pixelsnail "
                "or transformer, a prior for each level"
            )
        return (range(len(grids)),)
