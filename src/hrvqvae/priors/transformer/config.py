"""Configuration of a transformer prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config import PriorNetworkConfig
from hrvqvae.utils.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(PriorNetworkConfig):
    """A GPT-like network (docs/method.md; Esser et al. 2021).

    Attributes:
        hidden_units: width of the features.
        layers: of attention and two-layer network.
        heads: of each attention; their number divides `hidden_units`.
        dropout: share of what a layer adds that training drops.
    """

    kind: Literal["transformer"] = "transformer"
    hidden_units: int = 256
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden_units", "layers", "heads"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "prior.network.dropout", self.dropout, "at least 0 and below 1")
        if self.hidden_units % self.heads:
            raise InputError(f"prior.network.heads is {self.heads}; it must divide hidden_units ({self.hidden_units})")
