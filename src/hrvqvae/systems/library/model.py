"""Autoencoders with a quantizer of the library vector-quantize-pytorch (docs/method.md)."""

from __future__ import annotations

from hrvqvae.systems.library.config import FSQConfig, LibraryConfig
from hrvqvae.systems.library.quantizer import FSQQuantizer, LibraryQuantizer
from hrvqvae.systems.one_grid import OneGrid


class FSQModel(OneGrid):
    """One latent grid, finite scalar quantization (Mentzer et al. 2023).

    image -> encoder -> z (B, H, W, D) -> few channels, each rounded -> code (B, H, W)
        code -> grid point -> (B, H, W, D) -> decoder -> image
    """

    quantizer: FSQQuantizer

    def __init__(self, config: FSQConfig, channels: int) -> None:
        super().__init__(config, channels, FSQQuantizer(config.quantizer))


class LibraryModel(OneGrid):
    """One latent grid, a quantizer of the library by name.

    image -> encoder -> z (B, H, W, D) -> quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> (B, H, W, D) -> decoder -> image
    """

    quantizer: LibraryQuantizer

    def __init__(self, config: LibraryConfig, channels: int) -> None:
        super().__init__(config, channels, LibraryQuantizer(config.quantizer))
