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

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        if len(set(grids)) > 1:
            shown = ", ".join(f"{height}x{width}" for height, width in grids)
            raise InputError(
                f"prior.network.kind depth covers levels of one grid; this model has grids of {shown}: take pixelsnail "
                "or transformer, a prior for each level"
            )
        return (range(len(grids)),)


@dataclass(frozen=True, kw_only=True)
class TransformerSizes(PriorNetworkConfig):
    """Sizes of a transformer.

    Attributes:
        hidden_units: width of the features.
        layers: of attention and two-layer network.
        heads: of each attention; their number divides `hidden_units`.
        dropout: share of what a layer adds that training drops.
    """

    hidden_units: int = 256
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden_units", "layers", "heads"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        check_dropout(self.dropout)
        if self.hidden_units % self.heads:
            raise InputError(f"prior.network.heads is {self.heads}; it must divide hidden_units ({self.hidden_units})")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(TransformerSizes):
    """A GPT-like network for each level (docs/method.md; Esser et al. 2021)."""

    kind: Literal["transformer"] = "transformer"


@dataclass(frozen=True, kw_only=True)
class GPTConfig(TransformerSizes):
    """One transformer for each group of linked levels, with a head for each level (docs/method.md).

    Attributes:
        path_units: width of the embeddings of paths.
        most_paths: embeddings of a level; of more paths, those that are equal modulo this share one.
    """

    kind: Literal["gpt"] = "gpt"
    hidden_units: int = 128
    heads: int = 4
    dropout: float = 0.0
    path_units: int = 48
    most_paths: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("path_units", "most_paths"):
            require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")

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


DEPTH = PriorNetwork(
    name="depth",
    title="PixelSNAIL with a head over the levels",
    config=DepthConfig,
    network="hrvqvae.priors.depth:DepthPrior",
    sampler="hrvqvae.priors.depth_sampler:sample_depth",
)


TRANSFORMER = PriorNetwork(
    name="transformer",
    title="transformer",
    config=TransformerConfig,
    network="hrvqvae.priors.transformer:Transformer",
    sampler="hrvqvae.priors.transformer:sample_transformer",
)


GPT = PriorNetwork(
    name="gpt",
    title="transformer with a head for each level",
    config=GPTConfig,
    network="hrvqvae.priors.gpt:GPT",
    sampler="hrvqvae.priors.gpt:sample_gpt",
)
