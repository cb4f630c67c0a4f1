"""The networks of priors, as the registry knows them: their configurations, torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from hrvqvae.config import Levels, PriorNetworkConfig
from hrvqvae.config.model import Grid
from hrvqvae.config.registry import PriorNetwork
from hrvqvae.utils.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig(PriorNetworkConfig):
    """The autoregressive network of each level (docs/paper-tables.md, Tables 8 and 9).

    `attention_layers` and `dropout` hold one value for all levels, or one a level, coarse first.

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: gated residual blocks in all; the attention layers are spread evenly among them.
        attention_layers: causal attention layers.
        attention_heads: heads of each attention layer; their number divides `hidden_units`.
        kernel: filter size of the causal convolutions.
        dropout: share of the activations inside a residual block that training drops.
    """

    kind: Literal["pixelsnail"] = "pixelsnail"
    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 12
    attention_heads: int = 8
    kernel: int = 5
    attention_layers: tuple[int, ...] = (4,)
    dropout: tuple[float, ...] = (0.1,)

    def __post_init__(self) -> None:
        for name in ("hidden_units", "residual_units", "residual_blocks", "attention_heads"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        require(self.kernel % 2 == 1 and self.kernel >= 3, "prior.network.kernel", self.kernel, "odd, at least 3")
        name = "prior.network.attention_layers"
        require(bool(self.attention_layers), name, self.attention_layers, "one number, or one a level")
        for layers in self.attention_layers:
            within = 0 <= layers <= self.residual_blocks
            require(within, name, layers, f"0 to residual_blocks ({self.residual_blocks})")
        if any(self.attention_layers):
            _check_heads("attention_heads", self.attention_heads, self.hidden_units)
        require(bool(self.dropout), "prior.network.dropout", self.dropout, "one share, or one a level")
        for share in self.dropout:
            require(0 <= share < 1, "prior.network.dropout", share, "at least 0 and below 1")


def _check_heads(name: str, heads: int, hidden_units: int) -> None:
    if hidden_units % heads:
        raise InputError(f"prior.network.{name} is {heads}; it must divide hidden_units ({hidden_units})")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(PriorNetworkConfig):
    """One transformer for each group of linked levels, with a head for each level (docs/method.md).

    Attributes:
        hidden_units: width of the features.
        layers: of attention and two-layer network.
        heads: of each attention; their number divides `hidden_units`.
        dropout: share of what a layer adds that training drops.
        path_units: width of the embeddings of paths.
        most_paths: embeddings of a level; of more paths, those that are equal modulo this share one.
    """

    kind: Literal["gpt"] = "gpt"
    hidden_units: int = 128
    layers: int = 6
    heads: int = 4
    dropout: float = 0.0
    path_units: int = 48
    most_paths: int = 4096

    def __post_init__(self) -> None:
        for name in ("hidden_units", "layers", "heads", "path_units", "most_paths"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "prior.network.dropout", self.dropout, "at least 0 and below 1")
        _check_heads("heads", self.heads, self.hidden_units)

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        starts = [level for level, joined in enumerate(linked) if not joined]
        return tuple(range(start, stop) for start, stop in pairwise([*starts, len(grids)]))


PIXELSNAIL = PriorNetwork(
    name="pixelsnail",
    title="PixelSNAIL",
    config=PixelSNAILConfig,
    network="hrvqvae.priors.pixelsnail:PixelSNAIL",
    sampler="hrvqvae.priors.pixelsnail_sampler:sample_pixelsnail",
)

GPT = PriorNetwork(
    name="gpt",
    title="transformer with a head for each level",
    config=GPTConfig,
    network="hrvqvae.priors.gpt:GPT",
    sampler="hrvqvae.priors.gpt_sampler:sample_gpt",
)
