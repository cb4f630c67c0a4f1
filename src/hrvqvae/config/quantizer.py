"""Codebooks: how many levels and codewords, which levels are linked, how codewords learn, start and are restarted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hrvqvae.utils.errors import require


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Residual quantization, from one flat codebook to a tree (docs/method.md, Tables 4, 6 and 7).

    One level is VQ, `linked` 1 is RQ, all levels linked is HR-VQVAE; between lie groups of linked levels.

    Attributes:
        levels: L, number of quantization levels.
        codewords: m, of one codebook.
        linked: consecutive levels in which each codeword has a codebook of its own at the next level; then links begin
            anew, and the last group may be shorter. 0 links all levels, 1 none.
        shared: one codebook serves every level; where no levels are linked.
        dim: D, width of a codeword.
        beta: beta_0, weight of the commitment to the sum of the codewords.
        level_betas: beta_l of each level, coarse first; one value for every level; none for `beta` at each of several
            levels, as printed. A level of weight 0, and a single one without a value, has no commitment of its own.
        update: codewords follow moving averages of their latents, or the gradient of the codebook loss.
        decay: decay of those moving averages.
        init_vectors: latent vectors that the k-means start takes (0: random codewords at the scale of the latents).
        restart_every: training steps between restarts of dead codewords (0: none).
        restart_below: a codeword is dead when its share of its codebook's assignments is below this / codewords.
        beam: paths that the search keeps at each of the linked levels; 1 is greedy, as printed.
        coarse_weight: weight of the coarser levels' squared residuals in what a beam of several paths minimizes.
    """

    levels: int = 1
    codewords: int = 512
    linked: int = 0
    shared: bool = False
    dim: int = 32
    beta: float = 0.25
    level_betas: tuple[float, ...] = ()
    update: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    init_vectors: int = 131_072
    restart_every: int = 100
    restart_below: float = 0.03
    beam: int = 1
    coarse_weight: float = 0.0

    def __post_init__(self) -> None:
        def check(right: bool, name: str, must: str) -> None:
            require(right, f"model.quantizer.{name}", getattr(self, name), must)

        for name, least in (("levels", 1), ("codewords", 2), ("dim", 1), ("beam", 1)):
            check(getattr(self, name) >= least, name, f"at least {least}")
        for name in ("linked", "init_vectors", "restart_every", "restart_below"):
            check(getattr(self, name) >= 0, name, "at least 0")
        for name in ("beta", "coarse_weight"):
            check(0 <= getattr(self, name) < math.inf, name, "at least 0")
        check(0 <= self.decay < 1, "decay", "at least 0 and below 1")
        check(len(self.level_betas) in (0, 1, self.levels), "level_betas", f"none, one or {self.levels} values")
        check(all(0 <= beta < math.inf for beta in self.level_betas), "level_betas", "at least 0")
        check(not self.shared or self.group_size == 1, "shared", "false where levels are linked")
        check(self.beam == 1 or self.linked != 1, "beam", "1 where no levels are linked")
        values = self.codewords**self.group_size * self.dim
        what = "model.quantizer.codewords ** levels * dim"
        require(values <= 2**30, what, values, "at most 2^30 (4 GiB of leaves), of the levels that are linked")

    @property
    def beta_of_levels(self) -> tuple[float, ...]:
        """beta_l of each level, coarse first; none where the commitment is VQ's, which has one term."""
        if self.levels == 1:
            return self.level_betas
        given = self.level_betas or (self.beta,)
        return given * self.levels if len(given) == 1 else given

    @property
    def group_size(self) -> int:
        """Levels of a group of linked ones; the last group may have fewer."""
        return min(self.linked or self.levels, self.levels)

    @property
    def num_codebooks(self) -> tuple[int, ...]:
        """Codebooks that each level chooses from: m^l at level l of a group, counted from 0."""
        return tuple(self.codewords ** (level % self.group_size) for level in range(self.levels))

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m for each of its codebooks."""
        return tuple(self.codewords * books for books in self.num_codebooks)
