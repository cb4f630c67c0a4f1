"""The contract of every system's configuration, and a configuration for each architecture."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, NamedTuple

from hrvqvae.config.section import AUTO, AtLeastTwo, Count, Odd, PerLevel, Positive, Range, Section, Share, Weight
from hrvqvae.utils.errors import InputError, require

Grid = tuple[int, int]
"""Height and width of a latent grid, or of an image."""


class Geometry(NamedTuple):
    """The grid of each level, coarse first: times[level] * ceil((pixels + margin) / unit) positions per side."""

    unit: int
    margin: int
    times: tuple[int, ...]

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return (H, W) of each level for an image of that many pixels, coarse first."""
        # Not -(-x // unit): a traced size rounds that towards zero.
        rows, columns = ((side + self.margin + self.unit - 1) // self.unit for side in (height, width))
        return tuple((times * rows, times * columns) for times in self.times)


class ModelConfig(Section, section="model"):
    """The contract of every system's configuration: these fields and properties."""

    system: str = ""  #: its name in the registry

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """The grids of the codes by image size."""

    @property
    @abstractmethod
    def num_symbols(self) -> tuple[int, ...]:
        """Number of values that a code of each level can take."""

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

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return (H, W) of each level's codes for an image of that many pixels, coarse first."""
        return self.geometry.grids(height, width)

    def check_images(self, size: int) -> None:  # most systems take any size
        """Raise InputError if the system can't be trained on images of `size` x `size` pixels."""


class NetworkConfig(ModelConfig):
    """Encoder and decoder, which all systems here have (docs/paper-tables.md, Tables 4, 6 and 7)."""

    #: Image pixels per latent position of the finest grid and side.
    stride: Annotated[int, Range(lambda side: side >= 2 and side & (side - 1) == 0, "a power of two, from 2")] = 2
    padding: Count = 0  #: pixels added on each side of an image before encoding, and cropped after decoding
    hidden_units: AtLeastTwo = 64  #: channels of the convolutions
    residual_units: Positive = 64  #: channels inside a residual block
    residual_blocks: Count = 2  #: of the encoder, and of the decoder
    kernel: Odd = 3  #: filter size of the convolutions that keep the resolution

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, 2 * self.padding, (1,) * len(self.num_symbols))


class QuantizerConfig(Section, section="model.quantizer"):
    """Residual quantization, from a flat codebook to a tree (docs/method.md, Tables 4, 6 and 7).

    A single level is VQ, `linked` 1 is RQ, all levels linked are HR-VQVAE; groups of linked levels lie between.
    """

    levels: Positive = 1  #: L
    codewords: AtLeastTwo = 512  #: m, of a codebook
    #: Levels of a group, in which each codeword leads to its codebook at the next level. The next group begins with
    #: a single codebook, and the last group may be shorter. 0: all levels; 1: no links.
    linked: Count = 0
    level_codewords: tuple[AtLeastTwo, ...] = ()  #: m of each level, coarse first (default: `codewords`)
    dim: Positive = 32  #: D, width of a codeword
    beta: Weight = 0.25  #: beta_0, weight of the commitment to the sum of the codewords
    #: beta_l, weight of the commitment at each level, coarse first, or a value for all. Default: `beta` at each of
    #: several levels, as printed, and no such commitment at a single level.
    level_betas: tuple[Weight, ...] = ()
    update: Literal["ema", "gradient"] = "ema"  #: codewords follow averages of their latents, or the codebook loss
    decay: Share = 0.99  #: of those averages
    #: Vectors per batch for which the mean of all children with the same code counts in each child. With more than 0,
    #: all parents start with the same codebook, and nothing restarts.
    shrinkage: Weight = 0.0
    memory_mib: Positive = 256  #: MiB of codewords per level that `shrinkage` keeps; beyond, parents share a codebook
    init_vectors: Count = 131_072  #: latents for the k-means start (0: random codewords at the scale of the latents)
    restart_every: Count = 100  #: training steps between restarts of dead codewords (0: none)
    restart_below: Weight = 0.03  #: a codeword is dead if its share of its codebook is below this / codewords
    beam: Positive = 1  #: candidates that the search keeps per level; 1 is greedy, as printed
    joint_beam: bool = False  #: the beam decides after the last level, not after each group of linked levels
    coarse_weight: Weight = 0.0  #: weight of the coarser levels' squared residuals in what a beam above 1 minimizes

    def check(self) -> None:
        self.require(len(self.level_betas) in (0, 1, self.levels), "level_betas", f"none, one or {self.levels} values")
        self.require(len(self.level_codewords) in (0, self.levels), "level_codewords", f"none or {self.levels} values")
        self.require(not self.shrinkage or self.update == "ema", "shrinkage", "0 with update gradient")
        unlinked = self.linked == 1 < self.levels and not self.joint_beam
        self.require(self.beam == 1 or not unlinked, "beam", "1 where no levels are linked, but with joint_beam")
        group = min(self.group_size, 31)  # more than 2^30 from 31 levels on
        values = max(math.prod(self.sizes[first : first + group]) for first in range(0, self.levels, group)) * self.dim
        what = "model.quantizer.codewords ** levels * dim"
        within = values <= 2**30 or self.shrinkage > 0
        require(within, what, values, "at most 2^30 (4 GiB of leaves), of the levels that are linked")

    @property
    def beta_of_levels(self) -> tuple[float, ...]:
        """beta_l of each level, coarse first; empty if a single level has no `level_betas`."""
        if self.levels == 1:
            return self.level_betas
        betas = self.level_betas or (self.beta,)
        return betas * self.levels if len(betas) == 1 else betas

    @property
    def sizes(self) -> tuple[int, ...]:
        """m of each level, coarse first."""
        return self.level_codewords or (self.codewords,) * self.levels

    @property
    def group_size(self) -> int:
        """Levels of a group of linked levels; the last group may have fewer."""
        return min(self.linked or self.levels, self.levels)

    @property
    def num_parents(self) -> tuple[int, ...]:
        """Codebooks of each level in the whole tree: m^l at level l of a group, counted from 0."""
        size, sizes = self.group_size, self.sizes
        return tuple(math.prod(sizes[level - level % size : level]) for level in range(self.levels))

    @property
    def num_codebooks(self) -> tuple[int, ...]:
        """Codebooks of each level in memory: with `shrinkage` at most what fits, the shared one included."""
        if not self.shrinkage:
            return self.num_parents
        values = self.memory_mib * 2**18 // self.dim
        return tuple(min(books, max(2, values // m)) for books, m in zip(self.num_parents, self.sizes, strict=True))

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m for each of its codebooks."""
        return tuple(size * books for size, books in zip(self.sizes, self.num_codebooks, strict=True))


class CodebookConfig(NetworkConfig):
    """A system that quantizes by our codebooks."""

    quantizer: QuantizerConfig = QuantizerConfig()

    @property
    def start_vectors(self) -> int:
        return self.quantizer.init_vectors

    @property
    def restart_every(self) -> int:
        return 0 if self.quantizer.shrinkage else self.quantizer.restart_every


class SingleGridConfig(CodebookConfig):
    """Encoder, one latent grid with residual quantization, decoder (docs/method.md, Table 6).

    The defaults are HR-VQVAE's. With a single level it is VQVAE, without links RQ-VAE.
    """

    system: str = "hrvqvae"
    quantizer: QuantizerConfig = QuantizerConfig(levels=3, codewords=8)
    train_prefixes: bool = False  #: train the decoder on all prefixes of the levels, in place of a progressive decoder

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return self.quantizer.sizes

    @property
    def num_codewords(self) -> tuple[int, ...]:
        return self.quantizer.num_codewords


class VQGANConfig(SingleGridConfig):
    """A latent grid with a flat codebook, trained with a perceptual and an adversarial loss (docs/method.md)."""

    system: str = "vqgan"
    quantizer: QuantizerConfig = QuantizerConfig(codewords=1024)
    #: auto: the best perceptual loss on this machine when a run begins.
    perceptual: Literal["auto", "lpips-vgg16", "efficientnet-lite0", "none"] = AUTO
    perceptual_weight: Weight = 1.0  #: beside the squared error
    adversarial_weight: Weight = 0.8  #: times the adaptive weight (Esser et al. 2021, equation 7)
    adversarial_start: Count = 10_000  #: training steps before the discriminator begins
    discriminator_units: Positive = 64  #: channels of the patch discriminator's first layer
    discriminator_layers: Positive = 3  #: layers that halve the resolution

    decided_by: ClassVar = {"perceptual": "hrvqvae.models.perceptual:choose_perceptual"}

    def check_images(self, size: int) -> None:
        """Each layer halves the side, rounded down; the two convolutions after them take away a row each."""
        least = 3 * 2**self.discriminator_layers
        if size < least:
            layers = f"model.discriminator_layers {self.discriminator_layers}"
            raise InputError(f"{layers} needs images of {least} pixels a side; these have {size}: take fewer layers")


class VQVAE2Config(CodebookConfig):
    """Several latent grids, each half as wide as the next finer grid, with flat codebooks (docs/method.md)."""

    system: str = "vqvae2"
    grids: Positive = 3  #: the finest is `stride` times coarser than the image

    def check(self) -> None:
        require(self.quantizer.levels == 1, "model.quantizer.levels", self.quantizer.levels, "1: a grid has one level")

    @property
    def geometry(self) -> Geometry:
        times = tuple(2**finer for finer in range(self.grids))
        return Geometry(self.stride * times[-1], 2 * self.padding, times)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.grids


class FSQQuantizerConfig(Section, section="model.quantizer"):
    """Finite scalar quantization: each of a few channels is rounded to one of a few values (Mentzer et al. 2023)."""

    #: L_i, values of each channel; their product is the number of codes.
    channel_levels: PerLevel[Annotated[int, Range(lambda values: values >= 3, "at least 3 each")]] = (8, 8, 8)
    dim: Positive = 32  #: D, width of a latent; linear layers lead to the channels and back unless there are D channels

    def check(self) -> None:
        codes = math.prod(self.channel_levels)
        require(codes <= 2**24, "the product of model.quantizer.channel_levels", codes, "at most 2^24")


class FSQConfig(NetworkConfig):
    """A latent grid with finite scalar quantization."""

    system: str = "fsq"
    quantizer: FSQQuantizerConfig = FSQQuantizerConfig()

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (math.prod(self.quantizer.channel_levels),)


class LibraryQuantizerConfig(Section, section="model.quantizer"):
    """A quantizer of the library vector-quantize-pytorch, with its defaults.

    simvq: Zhu et al. 2024. lfq: Yu et al. 2023. qinco: codewords that a network shifts by what the coarser levels chose
    (Huijben et al. 2024). vq: moving averages, the rotation trick, the library's k-means start and restart.
    """

    name: Literal["simvq", "lfq", "qinco", "vq"] = "simvq"
    codewords: AtLeastTwo = 512  #: per level; a power of two for lfq
    levels: Positive = 1  #: of residual quantization without links; 1 is flat
    dim: Positive = 32  #: D, width of a latent
    beta: Weight | None = None  #: weight of the commitment loss (default: the library's)

    def check(self) -> None:
        fits = self.name != "lfq" or self.codewords & (self.codewords - 1) == 0
        self.require(fits, "codewords", "a power of two for lfq")


class LibraryConfig(NetworkConfig):
    """A latent grid with a quantizer of the library."""

    system: str = "vqpytorch"
    quantizer: LibraryQuantizerConfig = LibraryQuantizerConfig()

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def start_vectors(self) -> int:
        """Latents for the library's k-means start, which vq and qinco have."""
        return 131_072 if self.quantizer.name in ("vq", "qinco") else 0
