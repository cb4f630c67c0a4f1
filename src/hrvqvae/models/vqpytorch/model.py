"""Autoencoders with a quantizer of the library vector-quantize-pytorch (docs/method.md)."""

from __future__ import annotations

from torch import Tensor

from hrvqvae.models.base import unit_images
from hrvqvae.models.one_grid import OneGrid
from hrvqvae.models.vqpytorch.config import FSQConfig, VQPyTorchConfig
from hrvqvae.models.vqpytorch.quantizer import Adapter, FSQQuantizer, VQPyTorchQuantizer
from hrvqvae.quantize import Codes


class LibraryModel(OneGrid):
    """An autoencoder that asks its quantizer where the library looks for the nearest."""

    quantizer: Adapter

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        latents = self.latents(unit_images(images, self.channels))
        return tuple(self.quantizer.compare(latents, codes[:number]) for number in self.prefixes)


class FSQModel(LibraryModel):
    """One latent grid, finite scalar quantization (Mentzer et al. 2023).

    image -> encoder -> z (B, H, W, D) -> few channels, each rounded -> code (B, H, W)
        code -> grid point -> (B, H, W, D) -> decoder -> image
    """

    quantizer: FSQQuantizer

    def __init__(self, config: FSQConfig, channels: int) -> None:
        super().__init__(config, channels, FSQQuantizer(config.quantizer))


class VQPyTorchModel(LibraryModel):
    """One latent grid, a quantizer of the library by name.

    image -> encoder -> z (B, H, W, D) -> quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> (B, H, W, D) -> decoder -> image
    """

    quantizer: VQPyTorchQuantizer

    def __init__(self, config: VQPyTorchConfig, channels: int) -> None:
        super().__init__(config, channels, VQPyTorchQuantizer(config.quantizer))
