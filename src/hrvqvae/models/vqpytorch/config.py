"""Configurations of the systems whose quantizer is the library vector-quantize-pytorch's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config.model import OneGridConfig
from hrvqvae.utils.errors import require


@dataclass(frozen=True, kw_only=True)
class FSQQuantizerConfig:
    """Finite scalar quantization: each of a few channels is rounded to one of a few values (Mentzer et al. 2023).

    Attributes:
        channel_levels: L_i, values that each channel can take; their product is the number of codes.
        dim: D, width of a latent; where it is not the number of channels, linear layers lead there and back.
    """

    channel_levels: tuple[int, ...] = (8, 8, 8)
    dim: int = 32

    def __post_init__(self) -> None:
        most = math.prod(self.channel_levels)
        name = "model.quantizer.channel_levels"
        require(len(self.channel_levels) >= 1, name, self.channel_levels, "one number or more")
        require(all(values >= 3 for values in self.channel_levels), name, self.channel_levels, "at least 3 each")
        require(most <= 2**24, f"the product of {name}", most, "at most 2^24, which the library counts in float32")
        require(self.dim >= 1, "model.quantizer.dim", self.dim, "at least 1")


@dataclass(frozen=True, kw_only=True)
class FSQConfig(OneGridConfig):
    """One encoder, one latent grid, finite scalar quantization, one decoder."""

    system: Literal["fsq"] = "fsq"
    quantizer: FSQQuantizerConfig = field(default_factory=FSQQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code can take: the product of the channels'."""
        return (math.prod(self.quantizer.channel_levels),)

    @property
    def codewords_searched(self) -> int:
        """None: rounding finds the point."""
        return 0


@dataclass(frozen=True, kw_only=True)
class VQPyTorchQuantizerConfig:
    """A quantizer of the library, with what it does by default.

    Attributes:
        name: simvq (Zhu et al. 2024), lfq (Yu et al. 2023), or vq, a codebook that moving averages lead, with the
            rotation trick, the library's own k-means start and its dead-code restart of dead codewords.
        codewords: of a level; a power of two for lfq.
        levels: of residual quantization with codebooks that are not linked; 1 is flat.
        dim: D, width of a latent.
    """

    name: Literal["simvq", "lfq", "vq"] = "simvq"
    codewords: int = 512
    levels: int = 1
    dim: int = 32

    def __post_init__(self) -> None:
        require(self.codewords >= 2, "model.quantizer.codewords", self.codewords, "at least 2")
        power_of_two = self.codewords & (self.codewords - 1) == 0
        require(
            power_of_two or self.name != "lfq", "model.quantizer.codewords", self.codewords, "a power of two for lfq"
        )
        require(self.levels >= 1, "model.quantizer.levels", self.levels, "at least 1")
        require(self.dim >= 1, "model.quantizer.dim", self.dim, "at least 1")


@dataclass(frozen=True, kw_only=True)
class VQPyTorchConfig(OneGridConfig):
    """One encoder, one latent grid, a quantizer of the library, one decoder."""

    system: Literal["vqpytorch"] = "vqpytorch"
    quantizer: VQPyTorchQuantizerConfig = field(default_factory=VQPyTorchQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take."""
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def codewords_searched(self) -> int:
        """Distances that the search computes for each position; lfq takes signs instead."""
        return 0 if self.quantizer.name == "lfq" else sum(self.num_symbols)

    @property
    def start_vectors(self) -> int:
        """Latents for the library's own k-means start, which vq alone has."""
        return 131_072 if self.quantizer.name == "vq" else 0
