"""Configuration of a PixelSNAIL prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.priors.trunk_config import TrunkConfig, check_dropout
from hrvqvae.utils.errors import require


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig(TrunkConfig):
    """The autoregressive network of each level (docs/paper-tables.md, Tables 8 and 9).

    `attention_layers` and `dropout` hold one value for all levels, or one a level, coarse first.

    Attributes:
        attention_layers: causal attention layers.
        dropout: share of the activations inside a residual block that training drops.
    """

    kind: Literal["pixelsnail"] = "pixelsnail"
    attention_layers: tuple[int, ...] = (4,)
    dropout: tuple[float, ...] = (0.1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "prior.network.attention_layers"
        require(bool(self.attention_layers), name, self.attention_layers, "one number, or one a level")
        for number in self.attention_layers:
            self.check_attention(number)
        require(bool(self.dropout), "prior.network.dropout", self.dropout, "one share, or one a level")
        for share in self.dropout:
            check_dropout(share)
