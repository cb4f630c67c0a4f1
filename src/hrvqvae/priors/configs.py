"""Configurations and registry entries of the priors' networks. This module does not import
torch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from hrvqvae.config import Levels, PriorNetworkConfig
from hrvqvae.config.entries import PriorNetwork
from hrvqvae.config.model import Grid
from hrvqvae.config.section import Count, PerLevel, Positive, Share


class PixelSNAILConfig(PriorNetworkConfig):
    """PixelSNAIL, a network per level (docs/paper-tables.md, Tables 8 and 9)."""

    kind: Literal["pixelsnail"] = "pixelsnail"
    hidden_units: Positive = 64  #: channels of the features
    residual_units: Positive = 64  #: channels inside a gated residual block
    residual_blocks: Positive = (
        12  #: gated residual blocks, with the attention layers spread evenly among them
    )
    attention_heads: Positive = 8  #: heads per attention layer, a divisor of `hidden_units`
    #: Filter size of the causal convolutions.
    kernel: Literal[3, 5, 7, 9] = 5
    attention_layers: PerLevel[Count] = (4,)  #: number of causal attention layers
    dropout: PerLevel[Share] = (0.1,)  #: dropout probability inside a gated residual block

    def check(self) -> None:
        fits = all(layers <= self.residual_blocks for layers in self.attention_layers)
        self.require(fits, "attention_layers", f"0 to residual_blocks ({self.residual_blocks})")
        divides = self.hidden_units % self.attention_heads == 0 or not any(self.attention_layers)
        self.require(divides, "attention_heads", f"a divisor of hidden_units ({self.hidden_units})")


class GPTConfig(PriorNetworkConfig):
    """A transformer for each group of linked levels, with a head for each level
    (docs/method.md).
    """

    kind: Literal["gpt"] = "gpt"
    hidden_units: Positive = 128  #: width of the features
    #: `sums`: one choice of a leaf per position, by sums over its codewords; `choices`: a choice
    #: per level, by a network for each, as always for groups of more than 16,384 leaves
    output: Literal["sums", "choices"] = "sums"
    layers: Positive = 6  #: transformer layers (attention, then a two-layer network)
    heads: Positive = 4  #: heads per attention, a divisor of `hidden_units`
    dropout: Share = 0.0  #: dropout probability of the terms that layers and heads add
    path_units: Positive = 48  #: width of the embeddings of codewords
    #: Most embeddings per level; codewords whose indices are equal modulo this value share an
    #: embedding.
    most_paths: Positive = 4096

    def check(self) -> None:
        self.require(
            self.hidden_units % self.heads == 0,
            "heads",
            f"a divisor of hidden_units ({self.hidden_units})",
        )

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        starts = [level for level, is_linked in enumerate(linked) if not is_linked]
        return tuple(range(start, stop) for start, stop in pairwise([*starts, len(grids)]))


PIXELSNAIL = PriorNetwork(
    name="pixelsnail",
    config=PixelSNAILConfig,
    network="hrvqvae.priors.pixelsnail:PixelSNAIL",
)
GPT = PriorNetwork(
    name="gpt",
    config=GPTConfig,
    network="hrvqvae.priors.gpt:GPT",
)
