"""What every system's configuration has, and the fields of the encoders and decoders that the systems here share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hrvqvae.config.quantizer import QuantizerConfig
from hrvqvae.utils.errors import InputError, require

Grid = tuple[int, int]
"""Height and width of a latent grid, or of an image."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The contract of every system's configuration: a frozen dataclass with these fields and properties.

    Attributes:
        system: name of the system, under which the registry knows it.
    """

    system: str = ""

    @abstractmethod
    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each level's codes for an image of that many pixels, coarse first."""

    @property
    @abstractmethod
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take."""

    @property
    @abstractmethod
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all."""

    @property
    def codewords_searched(self) -> int:
        """Distances to codewords that the search computes for each position, over all levels or grids."""
        return sum(self.num_symbols)

    @property
    def start_vectors(self) -> int:
        """Latent vectors of the finest grid that the data-dependent start takes (0: there is no such start)."""
        return 0

    @property
    def restart_every(self) -> int:
        """Training steps between restarts of dead codewords (0: none)."""
        return 0

    def with_leaves(self, branching: int, levels: int) -> ModelConfig:
        """The same model with branching ** levels codewords at its finest level, for the study of codebooks.

        Raises:
            InputError: the system has no codebook whose size can be changed so.
        """
        raise InputError(f"{self.system} has no codebook of {branching}^{levels} codewords to study")

    def with_beam(self, width: int) -> ModelConfig:
        """The same model whose search keeps so many paths at each level.

        Raises:
            InputError: a width below 1, or the system has no linked codebooks, which a beam searches.
        """
        raise InputError(f"{self.system} has no linked codebooks, which a beam searches")

    def check_images(self, size: int) -> None:  # noqa: B027  # most systems take any size
        """Raises InputError where the system can't be trained on images of so many pixels a side."""

    def remarks(self, steps: int) -> tuple[str, ...]:
        """What a person should know before that many steps of training, a line each."""
        return ()

    def phases(self, steps: int) -> Mapping[str, int]:
        """Steps that parts of the training took, of so many in all, by name: columns of a comparison."""
        return {}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ModelConfig):
    """Encoder and decoder, which all systems here have (docs/paper-tables.md, Tables 4, 6 and 7).

    Attributes:
        stride: image pixels a latent position of the finest grid, a side: 2^s.
        padding: pixels added on each side of the image before encoding, cropped after decoding.
        hidden_units: channels of the convolutions.
        residual_units: channels inside a residual block.
        residual_blocks: residual blocks in the encoder, and in the decoder.
        kernel: filter size of the convolutions that keep the resolution.
    """

    stride: int = 2
    padding: int = 0
    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 2
    kernel: int = 3

    def __post_init__(self) -> None:
        power_of_two = self.stride >= 2 and self.stride & (self.stride - 1) == 0
        require(power_of_two, "model.stride", self.stride, "a power of two, at least 2")
        require(self.padding >= 0, "model.padding", self.padding, "at least 0")
        require(self.hidden_units >= 2, "model.hidden_units", self.hidden_units, "at least 2")
        require(self.kernel % 2 == 1 and self.kernel > 0, "model.kernel", self.kernel, "odd and positive")
        require(self.residual_units >= 1, "model.residual_units", self.residual_units, "at least 1")
        require(self.residual_blocks >= 0, "model.residual_blocks", self.residual_blocks, "at least 0")

    def grid(self, height: int, width: int, times: int = 1) -> Grid:
        """(H, W) for an image of that many pixels, on a grid that is `times` coarser than the finest."""
        pixels, stride = 2 * self.padding, self.stride * times
        return (height + pixels + stride - 1) // stride, (width + pixels + stride - 1) // stride


@dataclass(frozen=True, kw_only=True)
class OneGridConfig(NetworkConfig):
    """A system whose levels of codes, one or more, all have the one latent grid."""

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        return (self.grid(height, width),) * len(self.num_symbols)

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """As many as a code has values, where it does not depend on the coarser levels what they stand for."""
        return self.num_symbols


@dataclass(frozen=True, kw_only=True)
class CodebookModelConfig(NetworkConfig):
    """A system with codebooks that learn, start from data and are restarted, as `quantizer` says."""

    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    @property
    def start_vectors(self) -> int:
        return self.quantizer.init_vectors

    @property
    def restart_every(self) -> int:
        return self.quantizer.restart_every


@dataclass(frozen=True, kw_only=True)
class FlatConfig(OneGridConfig, CodebookModelConfig):
    """One latent grid with one flat codebook of K codewords, however it is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.quantizer.levels == 1, "model.quantizer.levels", self.quantizer.levels, "1: the codebook is flat")

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code can take: K."""
        return (self.quantizer.codewords,)


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(OneGridConfig, CodebookModelConfig):
    """One latent grid with L levels of codebooks, however they are linked and trained."""

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m, since its parent is known."""
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m at the root of a group of linked levels, m^2 below it, ..."""
        return self.quantizer.num_codewords

    @property
    def codewords_searched(self) -> int:
        """m for each path that the search keeps at the level before."""
        return self.quantizer.codewords_searched


@dataclass(frozen=True, kw_only=True)
class TreeConfig(ResidualConfig):
    """One latent grid with L levels of linked codebooks, however they are trained."""

    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(levels=3, codewords=8))

    def with_beam(self, width: int) -> Self:
        return dataclasses.replace(self, quantizer=dataclasses.replace(self.quantizer, beam=width))

    def with_leaves(self, branching: int, levels: int) -> TreeConfig:
        quantizer = dataclasses.replace(self.quantizer, codewords=branching, levels=levels)
        return dataclasses.replace(self, quantizer=quantizer)
