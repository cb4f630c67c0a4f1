"""Configuration of VQGAN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hrvqvae.config import decided_on_start
from hrvqvae.config.model import FlatConfig
from hrvqvae.config.quantizer import QuantizerConfig
from hrvqvae.utils.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(FlatConfig):
    """One latent grid, one flat codebook; trained for what images look like as well (docs/method.md).

    Attributes:
        perceptual: the perceptual loss. auto is the best whose network is on this machine when a run begins (the run
            keeps its name); none leaves it out.
        perceptual_weight: its weight beside the squared error.
        adversarial_weight: weight of the generator's adversarial loss, times the adaptive weight (Esser et al. 2021,
            equation 7).
        adversarial_start: training steps before the discriminator begins.
        discriminator_units: channels of the patch discriminator's first layer.
        discriminator_layers: its layers that halve the resolution.
    """

    system: Literal["vqgan"] = "vqgan"
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codewords=1024))
    perceptual: Literal["auto", "lpips-vgg16", "efficientnet-lite0", "none"] = decided_on_start(
        "hrvqvae.models.perceptual:decide"
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

    @property
    def smallest_image(self) -> int:
        """Side in pixels of the smallest images that the discriminator can judge.

        Each layer halves the side, rounded down; the two convolutions after them take away a row each, and leave one.
        """
        side: int = 3 * 2**self.discriminator_layers
        return side

    def check_images(self, size: int) -> None:
        """Raises InputError where images of that side are too small for the discriminator."""
        if size < self.smallest_image:
            raise InputError(
                f"model.discriminator_layers is {self.discriminator_layers}, which takes images of at least "
                f"{self.smallest_image} pixels a side; these have {size}: take fewer layers"
            )

    def remarks(self, steps: int) -> tuple[str, ...]:
        if not 0 < steps <= self.adversarial_start:
            return ()
        return (
            f"note: {self.system}'s discriminator begins at step {self.adversarial_start:,}, which this budget does "
            "not reach; model.adversarial_start lets it begin earlier",
        )

    def phases(self, steps: int) -> Mapping[str, int]:
        return {"steps with a discriminator": max(0, steps - self.adversarial_start)}
