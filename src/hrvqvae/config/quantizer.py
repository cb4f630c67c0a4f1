"""Codebooks: how many codewords, how they learn, start and are restarted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hrvqvae.utils.errors import require


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """One flat codebook on each latent grid (docs/method.md, Tables 4 and 7).

    Attributes:
        codewords: of a codebook.
        dim: D, width of a codeword.
        beta: weight of the commitment loss.
        update: codewords follow moving averages of what they stand for, or the gradient of the codebook loss.
        decay: decay of those moving averages.
        init_vectors: latent vectors that the k-means start takes (0: random start).
        restart_every: training steps between restarts of dead codewords (0: none).
        restart_below: a codeword is dead when its share of its codebook's assignments is below this / codewords.
    """

    codewords: int = 512
    dim: int = 32
    beta: float = 0.25
    update: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    init_vectors: int = 131_072
    restart_every: int = 100
    restart_below: float = 0.03

    def __post_init__(self) -> None:
        require(self.codewords >= 2, "model.quantizer.codewords", self.codewords, "at least 2")
        require(self.dim >= 1, "model.quantizer.dim", self.dim, "at least 1")
        require(0 <= self.beta < math.inf, "model.quantizer.beta", self.beta, "at least 0")
        require(0 <= self.decay < 1, "model.quantizer.decay", self.decay, "at least 0 and below 1")
        for name in ("init_vectors", "restart_every", "restart_below"):
            require(getattr(self, name) >= 0, f"model.quantizer.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """Residual quantization: as a flat codebook's, and how many levels of codebooks there are.

    Attributes:
        levels: L, number of quantization levels; `codewords` is m, of one codebook. `beta` is beta_0 of the combined
            latent.
        level_betas: beta_l of each level, coarse first; one value stands for every level, none for `beta` at every
            level, as printed. A level of weight 0 has no commitment of its own.
    """

    levels: int = 3
    codewords: int = 8
    level_betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels >= 1, "model.quantizer.levels", self.levels, "at least 1")
        given = len(self.level_betas)
        what = f"none, one or {self.levels} values"
        require(given in (0, 1, self.levels), "model.quantizer.level_betas", self.level_betas, what)
        in_range = all(0 <= beta < math.inf for beta in self.level_betas)
        require(in_range, "model.quantizer.level_betas", self.level_betas, "at least 0")

    @property
    def beta_of_levels(self) -> tuple[float, ...]:
        """beta_l of each level, coarse first."""
        given = self.level_betas or (self.beta,)
        return given * self.levels if len(given) == 1 else given


@dataclass(frozen=True, kw_only=True)
class TreeQuantizerConfig(ResidualQuantizerConfig):
    """Linked codebooks (docs/method.md, Table 6): level l has m^l codewords, m below each of the level before.

    Attributes:
        beam: paths that the search keeps at each level, in training and encoding; 1 is the greedy search, as printed.
        coarse_weight: weight of the coarser levels' squared residuals in what a beam of several paths minimizes.
    """

    beam: int = 1
    coarse_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beam >= 1, "model.quantizer.beam", self.beam, "at least 1")
        require(0 <= self.coarse_weight < math.inf, "model.quantizer.coarse_weight", self.coarse_weight, "at least 0")
        values = self.codewords**self.levels * self.dim
        require(values <= 2**30, "model.quantizer.codewords ** levels * dim", values, "at most 2^30 (4 GiB of leaves)")
