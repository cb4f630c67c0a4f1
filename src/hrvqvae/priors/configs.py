"""The configurations of the priors' networks, and their registry entries; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from hrvqvae.config import Levels, PriorNetworkConfig
from hrvqvae.config.model import Grid
from hrvqvae.config.registry import PriorNetwork
from hrvqvae.config.section import Count, PerLevel, Positive, Range, Share


class PixelSNAILConfig(PriorNetworkConfig):
    """The autoregressive network of each level (docs/paper-tables.md, Tables 8 and 9).

    `attention_layers` and `dropout` hold a value for all levels, or a value per level, coarse first.

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: number of gated residual blocks, among which the attention layers are spread evenly.
        attention_layers: number of causal attention layers.
        attention_heads: heads per attention layer, a divisor of `hidden_units`.
        kernel: filter size of the causal convolutions.
        dropout: share of activations inside a residual block that training drops.
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
        layers: number of layers, each an attention and a two-layer network.
        heads: heads per attention, a divisor of `hidden_units`.
        dropout: share of each layer's output that training drops.
        path_units: width of the embeddings of codewords.
        most_paths: embeddings per level; codewords whose indices are equal modulo this number share an embedding.
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
        starts = [level for level, joined in enumerate(linked) if not joined]
        return tuple(range(start, stop) for start, stop in pairwise([*starts, len(grids)]))


PIXELSNAIL = PriorNetwork(
    name="pixelsnail", title="PixelSNAIL", config=PixelSNAILConfig, network="hrvqvae.priors.pixelsnail:PixelSNAIL",
    sampler="hrvqvae.priors.pixelsnail_sampler:sample_pixelsnail",
)  # fmt: skip
GPT = PriorNetwork(
    name="gpt", title="transformer with a head for each level", config=GPTConfig, network="hrvqvae.priors.gpt:GPT",
    sampler="hrvqvae.priors.gpt_sampler:sample_gpt",
)  # fmt: skip
