"""Configuration of a PixelSNAIL prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.checks import require
from hrvqvae.config.prior import PriorNetworkConfig
from hrvqvae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig(PriorNetworkConfig):
    """The autoregressive network of each level (docs/paper-tables.md, Tables 8 and 9).

    `attention_layers` and `dropout` hold one value for all levels, or one a level, coarse first.

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: gated residual blocks in all; the attention layers are spread evenly among them.
        attention_layers: causal attention layers.
        attention_heads: heads of each; their number divides `hidden_units`.
        kernel: filter size of the causal convolutions.
        dropout: share of the activations inside a residual block that training drops.
    """

    kind: Literal["pixelsnail"] = "pixelsnail"
    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 12
    attention_layers: tuple[int, ...] = (4,)
    attention_heads: int = 8
    kernel: int = 5
    dropout: tuple[float, ...] = (0.1,)

    def __post_init__(self) -> None:
        for name in ("hidden_units", "residual_units", "residual_blocks", "attention_heads"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        require(self.kernel % 2 == 1 and self.kernel >= 3, "prior.network.kernel", self.kernel, "odd, at least 3")
        name = "prior.network.attention_layers"
        require(bool(self.attention_layers), name, self.attention_layers, "one number, or one a level")
        for number in self.attention_layers:
            require(0 <= number <= self.residual_blocks, name, number, f"0 to residual_blocks ({self.residual_blocks})")
        require(bool(self.dropout), "prior.network.dropout", self.dropout, "one share, or one a level")
        for share in self.dropout:
            require(0 <= share < 1, "prior.network.dropout", share, "at least 0 and below 1")
        if any(self.attention_layers) and self.hidden_units % self.attention_heads:
            raise InputError(
                f"prior.network.attention_heads is {self.attention_heads}; it must divide hidden_units "
                f"({self.hidden_units})"
            )
