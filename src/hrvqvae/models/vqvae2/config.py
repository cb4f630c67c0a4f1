"""Configuration of VQVAE-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.model import CodebookModelConfig, Grid
from hrvqvae.utils.errors import require


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(CodebookModelConfig):
    """Several latent grids, each half as wide as the one below it and with a flat codebook of its own (docs/method.md).

    Attributes:
        grids: latent grids; the finest is `stride` times coarser than the image, each next one twice as coarse.
    """

    system: Literal["vqvae2"] = "vqvae2"
    grids: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grids >= 1, "model.grids", self.grids, "at least 1")
        require(self.quantizer.levels == 1, "model.quantizer.levels", self.quantizer.levels, "1: codebooks are flat")

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each grid's codes for an image of that many pixels, coarse first."""
        top = self.grid(height, width, 2 ** (self.grids - 1))
        return tuple((top[0] * 2**finer, top[1] * 2**finer) for finer in range(self.grids))

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each grid can take: K."""
        return (self.quantizer.codewords,) * self.grids

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each grid's codebook: K."""
        return self.num_symbols
