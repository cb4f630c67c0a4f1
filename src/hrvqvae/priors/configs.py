"""Configurations and registry entries of the priors' networks. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from hrvqvae.config import Levels, PriorNetworkConfig
from hrvqvae.config.model import Grid
from hrvqvae.config.registry import PriorNetwork
from hrvqvae.config.section import Count, PerLevel, Positive, Range, Share


class PixelSNAILConfig(PriorNetworkConfig):
    """PixelSNAIL, a network per level (docs/paper-tables.md, Tables 8 and 9).

    `attention_layers` and `dropout` hold one value for all levels, or one value per level, coarse first.

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: number of gated residual blocks; the attention layers are spread evenly among them.
        attention_layers: number of causal attention layers.
        attention_heads: heads per attention layer, a divisor of `hidden_units`.
        kernel: filter size of the causal convolutions.
        dropout: dropout probability inside a gated residual block.
    """

    kind: Literal["pixelsnail"] = "pixelsnail"
    hidden_units: Positive = 64
    residual_units: Positive = 64
    residual_blocks: Positive = 12
    attention_heads: Positive = 8
    kernel: Annotated[int, Range(lambda size: size >= 3 and size % 2 == 1, "odd, at least 3")] = 5
    attention_layers: PerLevel[Count] = (4,)
    dropout: PerLevel[Share] = (0.1,)

    def check(self) -> None:
        fits = all(layers <= self.residual_blocks for layers in self.attention_layers)
        self.require(fits, "attention_layers", f"0 to residual_blocks ({self.residual_blocks})")
        divides = self.hidden_units % self.attention_heads == 0 or not any(self.attention_layers)
        self.require(divides, "attention_heads", f"a divisor of hidden_units ({self.hidden_units})")


class GPTConfig(PriorNetworkConfig):
    """A transformer for each group of linked levels, with a head for each level (docs/method.md).

    Attributes:
        hidden_units: width of the features.
        layers: number of transformer layers (attention, then a two-layer network).
        heads: heads per attention, a divisor of `hidden_units`.
        dropout: dropout probability of the terms that layers and heads add.
        path_units: width of the embeddings of codewords.
        most_paths: maximum number of embeddings per level. Codewords whose indices are equal modulo this value share an
            embedding.
    """

    kind: Literal["gpt"] = "gpt"
    hidden_units: Positive = 128
    layers: Positive = 6
    heads: Positive = 4
    dropout: Share = 0.0
    path_units: Positive = 48
    most_paths: Positive = 4096

    def check(self) -> None:
        self.require(self.hidden_units % self.heads == 0, "heads", f"a divisor of hidden_units ({self.hidden_units})")

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        starts = [level for level, is_linked in enumerate(linked) if not is_linked]
        return tuple(range(start, stop) for start, stop in pairwise([*starts, len(grids)]))


PIXELSNAIL = PriorNetwork(
    name="pixelsnail", title="PixelSNAIL", config=PixelSNAILConfig, network="hrvqvae.priors.pixelsnail:PixelSNAIL",
    sampler="hrvqvae.priors.pixelsnail_sampler:sample_pixelsnail",
)  # fmt: skip
GPT = PriorNetwork(
    name="gpt", title="transformer with a head for each level", config=GPTConfig, network="hrvqvae.priors.gpt:GPT",
    sampler="hrvqvae.priors.gpt_sampler:sample_gpt",
)  # fmt: skip
