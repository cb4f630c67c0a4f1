"""The contract of every system's configuration, and one configuration for each architecture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from hrvqvae.config.quantizer import QuantizerConfig
from hrvqvae.utils.errors import InputError, require

Grid = tuple[int, int]
"""Height and width of a latent grid, or of an image."""

AUTO = "auto"


def decided_on_start(by: str) -> Any:
    """A field that is "auto" until a run begins, and then part of the run's configuration.

    Args:
        by: "module:function", from the dataclass of the field to the value.
    """
    return field(default=AUTO, metadata={"decided by": by})


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The contract of every system's configuration: a frozen dataclass with these fields and properties."""

    system: str = ""  # its name in the registry

    @abstractmethod
    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each level's codes for an image of that many pixels, coarse first."""

    @property
    @abstractmethod
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take."""

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: more than `num_symbols` where they depend on the coarser levels."""
        return self.num_symbols

    @property
    def start_vectors(self) -> int:
        """Latent vectors of the finest grid for the data-dependent start (0: none)."""
        return 0

    @property
    def restart_every(self) -> int:
        """Training steps between restarts of dead codewords (0: none)."""
        return 0

    def check_images(self, size: int) -> None:  # noqa: B027  # most systems take any size
        """Raises InputError where the system can't be trained on images of so many pixels a side."""


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
        require(self.kernel % 2 == 1 and self.kernel > 0, "model.kernel", self.kernel, "odd and positive")
        for name, least in (("padding", 0), ("hidden_units", 2), ("residual_units", 1), ("residual_blocks", 0)):
            require(getattr(self, name) >= least, f"model.{name}", getattr(self, name), f"at least {least}")

    def grid(self, height: int, width: int, times: int = 1) -> Grid:
        """(H, W) of an image on a grid that is `times` coarser than the finest."""
        pixels, stride = 2 * self.padding, self.stride * times
        return (height + pixels + stride - 1) // stride, (width + pixels + stride - 1) // stride

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        return (self.grid(height, width),) * len(self.num_symbols)


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(NetworkConfig):
    """A system that quantizes by our codebooks."""

    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    @property
    def start_vectors(self) -> int:
        return self.quantizer.init_vectors

    @property
    def restart_every(self) -> int:
        return self.quantizer.restart_every


@dataclass(frozen=True, kw_only=True)
class SingleGridConfig(CodebookConfig):
    """One encoder, one latent grid, residual quantization, one decoder (docs/method.md, Table 6).

    As it stands it is HR-VQVAE's; with one level it is VQVAE's, without links RQ-VAE's.
    """

    system: str = "hrvqvae"
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(levels=3, codewords=8))

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def num_codewords(self) -> tuple[int, ...]:
        return self.quantizer.num_codewords


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(SingleGridConfig):
    """One latent grid, one flat codebook; trained for what images look like as well (docs/method.md).

    Attributes:
        perceptual: the perceptual loss; auto is the best on this machine when a run begins, none leaves it out.
        perceptual_weight: its weight beside the squared error.
        adversarial_weight: of the adversarial loss, times the adaptive weight (Esser et al. 2021, equation 7).
        adversarial_start: training steps before the discriminator begins.
        discriminator_units: channels of the patch discriminator's first layer.
        discriminator_layers: its layers that halve the resolution.
    """

    system: str = "vqgan"
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codewords=1024))
    perceptual: Literal["auto", "lpips-vgg16", "efficientnet-lite0", "none"] = decided_on_start(
        "hrvqvae.models.perceptual:choose_perceptual"
    )
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.8
    adversarial_start: int = 10_000
    discriminator_units: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("perceptual_weight", "adversarial_weight", "adversarial_start"):
            require(0 <= getattr(self, name) < math.inf, f"model.{name}", getattr(self, name), "at least 0")
        for name in ("discriminator_units", "discriminator_layers"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")

    def check_images(self, size: int) -> None:
        """Each layer halves the side, rounded down; the two convolutions after them take away a row each."""
        least = 3 * 2**self.discriminator_layers
        if size < least:
            raise InputError(
                f"model.discriminator_layers {self.discriminator_layers} needs images of {least} pixels a side; "
                f"these have {size}: take fewer layers"
            )


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(CodebookConfig):
    """Several latent grids, each half as wide as the one below it and with a flat codebook of its own (docs/method.md).

    Attributes:
        grids: the finest is `stride` times coarser than the image, each next one twice as coarse.
        quantizer: of each grid; it has one level.
    """

    system: str = "vqvae2"
    grids: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grids >= 1, "model.grids", self.grids, "at least 1")
        require(self.quantizer.levels == 1, "model.quantizer.levels", self.quantizer.levels, "1: a grid has one level")

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        top = self.grid(height, width, 2 ** (self.grids - 1))
        return tuple((top[0] * 2**finer, top[1] * 2**finer) for finer in range(self.grids))

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.grids


@dataclass(frozen=True, kw_only=True)
class FSQQuantizerConfig:
    """Finite scalar quantization: each of a few channels is rounded to one of a few values (Mentzer et al. 2023).

    Attributes:
        channel_levels: L_i, values of each channel; their product is the number of codes.
        dim: D, width of a latent; linear layers lead to the channels and back, where D is not their number.
    """

    channel_levels: tuple[int, ...] = (8, 8, 8)
    dim: int = 32

    def __post_init__(self) -> None:
        most, name = math.prod(self.channel_levels), "model.quantizer.channel_levels"
        right = len(self.channel_levels) >= 1 and all(values >= 3 for values in self.channel_levels)
        require(right, name, self.channel_levels, "one number or more, at least 3 each")
        require(most <= 2**24, f"the product of {name}", most, "at most 2^24, which the library counts in float32")
        require(self.dim >= 1, "model.quantizer.dim", self.dim, "at least 1")


@dataclass(frozen=True, kw_only=True)
class FSQConfig(NetworkConfig):
    """One latent grid, finite scalar quantization."""

    system: str = "fsq"
    quantizer: FSQQuantizerConfig = field(default_factory=FSQQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (math.prod(self.quantizer.channel_levels),)


@dataclass(frozen=True, kw_only=True)
class LibraryQuantizerConfig:
    """A quantizer of the library vector-quantize-pytorch, with its defaults.

    Attributes:
        name: simvq (Zhu et al. 2024), lfq (Yu et al. 2023), qinco (Huijben et al. 2024): codewords that a network
            shifts by what the levels before chose, or vq: moving averages, the rotation trick, the library's k-means
            start and restart of dead codewords.
        codewords: of a level; a power of two for lfq.
        levels: of residual quantization with codebooks that are not linked; 1 is flat.
        dim: D, width of a latent.
        beta: weight of the commitment loss; None takes the library's.
    """

    name: Literal["simvq", "lfq", "qinco", "vq"] = "simvq"
    codewords: int = 512
    levels: int = 1
    dim: int = 32
    beta: float | None = None

    def __post_init__(self) -> None:
        right = self.beta is None or 0 <= self.beta < math.inf
        require(right, "model.quantizer.beta", self.beta, "at least 0, or null")
        for name, least in (("codewords", 2), ("levels", 1), ("dim", 1)):
            require(getattr(self, name) >= least, f"model.quantizer.{name}", getattr(self, name), f"at least {least}")
        right = self.name != "lfq" or self.codewords & (self.codewords - 1) == 0
        require(right, "model.quantizer.codewords", self.codewords, "a power of two for lfq")


@dataclass(frozen=True, kw_only=True)
class LibraryConfig(NetworkConfig):
    """One latent grid, a quantizer of the library by name."""

    system: str = "vqpytorch"
    quantizer: LibraryQuantizerConfig = field(default_factory=LibraryQuantizerConfig)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def start_vectors(self) -> int:
        """Latents for the library's own k-means start, which vq and qinco have."""
        return 131_072 if self.quantizer.name in ("vq", "qinco") else 0
