"""Fields of a trunk of gated residual blocks and attention."""

from __future__ import annotations

from dataclasses import dataclass

from hrvqvae.config import PriorNetworkConfig
from hrvqvae.utils.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(PriorNetworkConfig):
    """Sizes of a trunk (docs/paper-tables.md, Tables 8 and 9).

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: gated residual blocks in all; the attention layers are spread evenly among them.
        attention_heads: heads of each attention layer; their number divides `hidden_units`.
        kernel: filter size of the causal convolutions.
    """

    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 12
    attention_heads: int = 8
    kernel: int = 5

    def __post_init__(self) -> None:
        for name in ("hidden_units", "residual_units", "residual_blocks", "attention_heads"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        require(self.kernel % 2 == 1 and self.kernel >= 3, "prior.network.kernel", self.kernel, "odd, at least 3")

    def check_attention(self, layers: int) -> None:
        """Raises InputError where the trunk can't have so many attention layers."""
        name = "prior.network.attention_layers"
        require(0 <= layers <= self.residual_blocks, name, layers, f"0 to residual_blocks ({self.residual_blocks})")
        if layers and self.hidden_units % self.attention_heads:
            raise InputError(
                f"prior.network.attention_heads is {self.attention_heads}; it must divide hidden_units "
                f"({self.hidden_units})"
            )


def check_dropout(share: float) -> None:
    """Raises InputError where that share of the activations can't be dropped."""
    require(0 <= share < 1, "prior.network.dropout", share, "at least 0 and below 1")
