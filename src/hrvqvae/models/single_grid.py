"""Systems with a single latent grid: an encoder, a quantizer, a decoder."""

from __future__ import annotations  # torch.compile can't evaluate annotations of inner functions

import copy
from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.config import Grid, ModelConfig, NetworkConfig, SingleGridConfig
from hrvqvae.models import tiles
from hrvqvae.models.base import (
    Autoencoder,
    Reconstructed,
    crop_padding,
    image_size,
    pad_to_grid,
    to_unit_images,
)
from hrvqvae.models.blocks import ConditionalDecoder, Decoder, Encoder
from hrvqvae.quantize import Codes, Quantized, ResidualQuantizer, check_codes, count_levels
from hrvqvae.quantize.planting import plant_tree


class SingleGridAutoencoder(Autoencoder):
    """An autoencoder with a single latent grid, as in all built-in systems except VQVAE-2.

        image (B, C, Y, X) in [0, 1] -> [-1, 1], padded -> encoder -> z (B, H, W, D)
        z -> quantizer -> codes, one tensor (B, H, W) per level
        codes of the first levels -> codewords, summed (B, H, W, D)
        summed codewords -> decoder -> cropped, [0, 1] -> image (B, C, Y, X)

    Images are padded by `config.padding` pixels per side, and then below and to the right to a
    multiple of the stride. The default quantizer is the `ResidualQuantizer` of a
    `SingleGridConfig`.
    """

    config: NetworkConfig

    def __init__(
        self, config: NetworkConfig, channels: int, quantizer: ResidualQuantizer | None = None
    ) -> None:
        super().__init__(config, channels)
        self.quantizer = quantizer or ResidualQuantizer(cast(SingleGridConfig, config).quantizer)
        dim = self.quantizer.config.dim
        self.encoder = Encoder(config, channels, dim, config.stride)
        self.decoder = Decoder(config, channels, dim, config.stride)
        #: decodes fewer than all levels (None: the plain decoder does)
        self.progressive_decoder: ConditionalDecoder | None = None
        self._classes: Tensor | None = None

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents z (B, H, W, D) float32 of images (B, C, Y, X) float32 in [0, 1]."""
        rows, columns = self.config.geometry.grids(*images.shape[-2:])[0]
        stride = self.config.stride
        features = self.encoder(
            pad_to_grid(images, self.config.padding, rows * stride, columns * stride)
        )
        return features.movedim(1, -1).float()

    def pixels(self, latents: Tensor, size: Grid, levels: Tensor | None = None) -> Tensor:
        """Return the decoder's output (B, C, Y, X) in [-1, 1], not clamped, from quantized latents
        (B, H, W, D).

        `levels` tells how many levels the latents sum: all (None), or a number per position,
        (B, H, W) int64. Without a progressive decoder it is ignored.
        """
        features = latents.movedim(-1, 1)
        conditional = self.progressive_decoder
        if levels is None or conditional is None:
            decoded = self.decoder(features)
        else:
            decoded = conditional(features, conditional.choose_case(levels, self._classes))
        return crop_padding(decoded, self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize and decode, with the losses of docs/method.md divided by the number of
        pixel values.
        """
        unit = to_unit_images(images, self.channels, training=self.training)
        latents = self.latents(unit)
        quantized: Quantized = self.quantizer(latents)
        output = self.pixels(quantized.latents, image_size(unit))
        error = (output - (unit * 2 - 1)).square().mean()
        losses = {"reconstruction": error}
        losses |= {name: loss / unit.numel() for name, loss in quantized.losses.items()}
        return Reconstructed((output + 1) / 2, quantized.codes, losses)

    def encode(self, images: Tensor) -> Codes:
        def encode_tile(tile: Tensor) -> Codes:
            return self.quantizer.encode(self.latents(to_unit_images(tile, self.channels)))

        return tiles.encode(encode_tile, images, self.config, self.encoder)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        codes = self.take_prefix(codes, levels)
        check_codes(codes, self.config.num_symbols)
        is_whole = self.is_whole(codes)

        def decode_tile(codes: Codes, size: Grid) -> Tensor:
            counts = None if is_whole else count_levels(codes)
            output = self.pixels(self.quantizer.lookup(codes), size, counts)
            return ((output + 1) / 2).clamp(0, 1)

        # the width of the halo follows from the network that `pixels` runs
        network = self.decoder if is_whole else self.progressive_decoder or self.decoder
        return tiles.decode(decode_tile, codes, size, self.config, network)

    def is_whole(self, codes: Codes) -> bool:
        """Return whether codes have all levels at all positions. A traced graph supposes that no
        position stops.
        """
        goes_on = torch.compiler.is_compiling() or bool((codes[-1] >= 0).all())
        return goes_on and len(codes) == self.prefixes[-1]

    def codeword_indices(self, codes: Codes) -> Codes:
        return self.quantizer.codeword_indices(codes)

    @torch.no_grad()
    def initialize(self, images: Tensor, rng: torch.Generator, weight: float = 1.0) -> None:
        latents = self.latents(to_unit_images(images, self.channels))
        self.quantizer.initialize(latents, rng, weight)

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, rng: torch.Generator) -> int:
        latents = self.latents(to_unit_images(images, self.channels))
        return self.quantizer.restart_dead_codes(distributed.all_gather(latents), rng)

    def plant(self, config: ModelConfig) -> Self:
        if config == self.config:
            return self
        assert isinstance(config, SingleGridConfig)
        model = copy.copy(self)
        model._modules = dict(self._modules)  # the copy shares encoder and decoder alone
        model.quantizer = plant_tree(self.quantizer, config.quantizer)
        model.config = config
        return model

    def use_progressive_decoder(self, decoder: ConditionalDecoder) -> None:
        """Decode fewer than all levels with a conditional decoder, which is on the model's device.

        It is no submodule: `parameters()`, `state_dict()`, `train()` and `eval()` leave it out. So
        the digest of the model's weights stays, and with it what belongs to them: priors, files.
        """
        # the method of nn.Module would make it a submodule
        object.__setattr__(self, "progressive_decoder", decoder)

    def of_classes(self, classes: Tensor | None) -> Self:
        """Return this autoencoder, sharing its networks, for images of classes (B,) int64, which a
        decoder of samples is told.
        """
        model = copy.copy(self)
        model._classes = classes
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.progressive_decoder is not None:  # follows the model to its device
            self.progressive_decoder._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
