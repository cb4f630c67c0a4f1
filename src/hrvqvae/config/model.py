"""What a configuration of a system or of a prior network must have, and the built-in systems."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

from hrvqvae.config.section import (
    AUTO,
    AtLeastTwo,
    Count,
    Kernel,
    Positive,
    Range,
    Section,
    Share,
    Weight,
)
from hrvqvae.utils.errors import InputError, require

Grid = tuple[int, int]
"""Height and width of a latent grid, or of an image."""


Levels = range
"""Consecutive levels that a prior covers; 0 is the coarsest."""


class Geometry(NamedTuple):
    """The latent grids: along a side, level l has times[l] * ceil((pixels + margin) / unit)
    positions.
    """

    unit: int  #: pixels along a side for which level l has times[l] positions
    margin: int  #: pixels that padding adds to the height, and to the width
    times: tuple[int, ...]  #: positions per unit of each level, coarse first

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return (H, W) of each level's codes for an image of `height` x `width` pixels, coarse
        first.
        """
        # -(-x // unit) would be wrong in a traced graph, whose division rounds towards zero.
        rows, columns = (
            (side + self.margin + self.unit - 1) // self.unit for side in (height, width)
        )
        return tuple((factor * rows, factor * columns) for factor in self.times)


class ModelConfig(Section, section="model"):
    """The contract of every system's configuration: these fields and properties."""

    system: str = ""  #: name of the system in the registry

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """The latent grids as a function of the image size."""

    @property
    @abstractmethod
    def num_symbols(self) -> tuple[int, ...]:
        """Number of values that a code of each level can take."""

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Number of codewords of each level; more than `num_symbols` where a level has several
        codebooks.
        """
        return self.num_symbols

    @property
    def linked(self) -> tuple[bool, ...]:
        """Whether each level has a codebook for each codeword of the coarser level."""
        # The first level has no coarser level: with 0 codewords there, it is not linked.
        coarser = (0, *self.num_codewords)
        counts = zip(coarser, self.num_codewords, self.num_symbols, strict=False)
        return tuple(count == coarser_count * m for coarser_count, count, m in counts)

    @property
    def start_vectors(self) -> int:
        """Number of latent vectors of the finest grid from which the first codewords are computed
        (0: random codewords).
        """
        return 0

    @property
    def restart_every(self) -> int:
        """Training steps between restarts of dead codewords (0: none)."""
        return 0

    @property
    def trained(self) -> Self:
        """The configuration of the model that is trained, which may become another afterwards."""
        return self

    def check_images(self, size: int) -> None:  # most systems take any size
        """Raise InputError if the system can't be trained on images of `size` x `size` pixels."""


class PriorNetworkConfig(Section, section="prior.network"):
    """The contract of every prior network's configuration. A field that differs by level is a
    `PerLevel`.
    """

    kind: str = ""  #: name of the network in the registry

    def covers(self, grids: Sequence[Grid], linked: Sequence[bool]) -> tuple[Levels, ...]:
        """Return the levels that each network covers, coarse first; by default a network per level.

        `linked[level]` is true if each codeword of the coarser level has its own codebook at
        `level`. Raises InputError if the network can't cover levels of these grids (H, W).
        """
        return tuple(range(level, level + 1) for level in range(len(grids)))


class NetworkConfig(ModelConfig):
    """Encoder and decoder, as in all built-in systems (docs/paper-tables.md, Tables 4, 6 and 7)."""

    #: Image pixels per position of the finest latent grid, along each side.
    stride: Literal[2, 4, 8, 16, 32, 64] = 2
    #: pixels added on each side of an image before encoding, and cropped after decoding
    padding: Count = 0
    hidden_units: AtLeastTwo = 64  #: channels of the convolutions
    residual_units: Positive = 64  #: channels inside a residual block
    residual_blocks: Count = 2  #: residual blocks in the encoder, and as many in the decoder
    kernel: Kernel = 3  #: filter size of the convolutions that keep the resolution

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, 2 * self.padding, (1,) * len(self.num_symbols))


_MOST_TRAINED = 2**16  # codewords of a flat codebook that is trained for a tree


class QuantizerConfig(Section, section="model.quantizer"):
    """Residual quantization, from a flat codebook to a tree (docs/method.md, Tables 4, 6 and 7).

    A single level is VQ. Several levels are RQ if `linked` is 1, and HR-VQVAE if it is 0 (all are
    linked). Other values of `linked` lie in between.
    """

    levels: Annotated[int, Range(1, 256)] = 1  #: L, number of levels
    codewords: AtLeastTwo = 512  #: m, codewords of each codebook
    #: Number of levels per group (0: a single group of all levels; 1: no links). In a group, each
    #: codeword has a codebook of its own at the next level. Each group begins with a single
    #: codebook, and the last group may be shorter.
    linked: Count = 0
    #: m of each level, coarse first (default: `codewords`)
    level_codewords: tuple[AtLeastTwo, ...] = ()
    dim: Positive = 32  #: D, width of a codeword
    #: Train a flat codebook for each group of linked levels, and order its codewords as a tree
    #: (docs/method.md). A group of more than 65,536 leaves is trained as a tree.
    planted: bool = False
    beta: Weight = 0.25  #: beta_0, weight of the commitment to the sum of the codewords
    #: beta_l, weight of the commitment at each of several levels (default: `beta`, as in the paper)
    level_beta: Weight | None = None
    decay: Share = 0.99  #: of the moving averages
    init_vectors: Positive = 131_072  #: latents for the k-means start
    restart_every: Count = 100  #: training steps between restarts of dead codewords (0: none)
    #: a codeword is dead if its share of the codebook's vectors is below this / m
    restart_below: Weight = 0.03
    beam: Positive = 1  #: candidates that the search keeps per level; 1 is greedy, as in the paper
    #: the beam decides after the last level, not after each group of linked levels; groups of
    #: several levels are trained one by one all the same, with a beam of at most 4
    joint_beam: bool = False
    #: weight of the coarser levels' squared residuals in a beam's objective
    coarse_weight: Weight = 0.0

    def check(self) -> None:
        self.require(
            len(self.level_codewords) in (0, self.levels),
            "level_codewords",
            f"none or {self.levels} values",
        )
        values = max(self.num_codewords) * self.dim
        limit = "at most 2^30 (4 GiB of leaves) per group of linked levels"
        require(values <= 2**30, "model.quantizer.codewords ** levels * dim", values, limit)

    @property
    def beta_of_levels(self) -> float:
        """beta_l; 0 if there is a single level, whose commitment is that of the sum."""
        if self.levels == 1:
            return 0.0
        return self.beta if self.level_beta is None else self.level_beta

    @property
    def sizes(self) -> tuple[int, ...]:
        """m of each level, coarse first."""
        return self.level_codewords or (self.codewords,) * self.levels

    @property
    def group_size(self) -> int:
        """Levels of a group of linked levels; the last group may have fewer."""
        return min(self.linked or self.levels, self.levels)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Number of leaves of each group of linked levels."""
        starts = range(0, self.levels, self.group_size)
        return tuple(math.prod(self.sizes[start:][: self.group_size]) for start in starts)

    @property
    def is_flat_at_first(self) -> bool:
        """Whether flat codebooks are trained, and planted as trees."""
        return self.planted and max(self.leaves) <= _MOST_TRAINED

    @property
    def trained(self) -> Self:
        """The quantizer that is trained: for a planted tree, a flat codebook per group of linked
        levels. Groups with a joint beam are searched one by one, with a beam of at most 4, which
        trains as well in less time.
        """
        if self.is_flat_at_first:
            flat = {"levels": len(self.leaves), "level_codewords": self.leaves, "linked": 1}
            return self.replace(**flat, beam=1, joint_beam=False, planted=False)
        if self.joint_beam and self.group_size > 1:
            return self.replace(beam=min(self.beam, 4), joint_beam=False)
        return self

    @property
    def num_codebooks(self) -> tuple[int, ...]:
        """Number of codebooks of each level: 1 at the first level of a group, and one per codeword
        of the coarser level at the others.
        """
        starts = [level - level % self.group_size for level in range(self.levels)]
        return tuple(math.prod(self.sizes[start:level]) for level, start in enumerate(starts))

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Number of codewords of each level: m for each codebook."""
        return tuple(
            size * books for size, books in zip(self.sizes, self.num_codebooks, strict=True)
        )


class CodebookConfig(NetworkConfig):
    """A system with our `ResidualQuantizer`."""

    quantizer: QuantizerConfig = QuantizerConfig()

    @property
    def start_vectors(self) -> int:
        return self.quantizer.init_vectors

    @property
    def restart_every(self) -> int:
        return self.quantizer.restart_every


class SingleGridConfig(CodebookConfig):
    """Encoder, one latent grid with residual quantization, decoder (docs/method.md, Table 6).

    The defaults are HR-VQVAE's. With a single level it is VQVAE, without links RQ-VAE.
    """

    system: str = "hrvqvae"
    quantizer: QuantizerConfig = QuantizerConfig(levels=3, codewords=8)

    @property
    def trained(self) -> Self:
        return self.replace(quantizer=self.quantizer.trained)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return self.quantizer.sizes

    @property
    def num_codewords(self) -> tuple[int, ...]:
        return self.quantizer.num_codewords


class VQGANConfig(SingleGridConfig, section="model"):
    """A latent grid with a flat codebook, trained with a perceptual and an adversarial loss beside
    the squared error (docs/method.md).
    """

    system: str = "vqgan"
    quantizer: QuantizerConfig = QuantizerConfig(codewords=1024)
    #: auto: the best perceptual loss that this machine has when a run begins.
    perceptual: Literal["auto", "lpips-vgg16", "efficientnet-lite0", "none"] = AUTO
    perceptual_weight: Weight = 1.0  #: of the perceptual loss; the squared error has weight 1
    #: factor of the adaptive weight (Esser et al. 2021, equation 7)
    adversarial_weight: Weight = 0.8
    adversarial_start: Count = 10_000  #: training steps before the discriminator begins
    discriminator_units: Positive = 64  #: channels of the patch discriminator's first layer
    discriminator_layers: Positive = 3  #: layers that halve the resolution

    def check_images(self, size: int) -> None:
        """Raise InputError if the discriminator's output for such images is empty."""
        # each layer halves the side, rounded down; then two convolutions take away a row each
        least = 3 * 2**self.discriminator_layers
        if size < least:
            raise InputError(
                f"the discriminator needs images of {least} pixels a side, and these have {size}:"
                " take fewer model.discriminator_layers"
            )


class VQVAE2Config(CodebookConfig):
    """Several latent grids, each half as wide as the next finer grid, with flat codebooks
    (docs/method.md).
    """

    system: str = "vqvae2"
    #: number of latent grids; the finest is `stride` times coarser than the image
    grids: Positive = 3

    def check(self) -> None:
        self.quantizer.require(self.quantizer.levels == 1, "levels", "1: a grid has one level")

    @property
    def geometry(self) -> Geometry:
        times = tuple(2**grid for grid in range(self.grids))
        return Geometry(self.stride * times[-1], 2 * self.padding, times)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return self.quantizer.sizes * self.grids
