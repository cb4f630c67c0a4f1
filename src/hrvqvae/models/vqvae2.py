"""VQVAE-2, for any number of grids (docs/method.md; Tables 4 and 7; Razavi et al. 2019)."""

from __future__ import annotations  # torch.compile can't evaluate those of inner functions

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import Grid
from hrvqvae.config.model import VQVAE2Config
from hrvqvae.models import tiles
from hrvqvae.models.base import (
    Autoencoder,
    Reconstructed,
    crop_padding,
    image_size,
    pad_to_grid,
    to_unit_images,
)
from hrvqvae.models.blocks import Decoder, Encoder
from hrvqvae.quantize import Codes, Quantized, ResidualQuantizer, check_codes


class VQVAE2(Autoencoder):
    """Several latent grids, each with a flat codebook. Each grid is encoded given the codewords of
    the next coarser.

        image -> encoder -> features of the finest grid -> encoder (halves)
              -> ... -> features of the coarsest grid

        coarsest grid: features -> 1x1 conv -> z -> nearest codeword -> e_1, code 1
        next grid:     features, and e_1 -> condition (a decoder, doubles) -> concatenated
                                -> 1x1 conv -> z -> nearest codeword -> e_2, code 2, ...

        all e -> transposed convs to the finest grid -> concatenated -> decoder -> image

    Codes are coarse first. Decoding needs all grids.
    """

    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config, channels: int) -> None:
        super().__init__(config, channels)
        grids = config.grids
        hidden = config.hidden_units
        dim = config.quantizer.dim
        stride = config.stride
        self.encoders = nn.ModuleList([Encoder(config, channels, hidden, stride)])
        self.encoders.extend(Encoder(config, hidden, hidden, 2) for _ in range(grids - 1))
        self.projections = nn.ModuleList(
            nn.Conv2d(2 * hidden if level else hidden, dim, 1) for level in range(grids)
        )
        self.quantizers: Any = nn.ModuleList(
            ResidualQuantizer(config.quantizer) for _ in range(grids)
        )
        self.conditions = nn.ModuleList(Decoder(config, hidden, dim, 2) for _ in range(grids - 1))
        self.upsamplings = nn.ModuleList()
        for doublings in reversed(range(grids)):  # none for the finest grid
            stack = [nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1) for _ in range(doublings)]
            self.upsamplings.append(nn.Sequential(*stack))
        self.decoder = Decoder(config, channels, dim * grids, stride)

    @property
    def prefixes(self) -> tuple[int, ...]:
        return (self.config.grids,)

    def _iterate_grids(
        self, images: Tensor, codewords: list[Tensor]
    ) -> Iterator[tuple[ResidualQuantizer, Tensor]]:
        """Yield the quantizer and the latents z of each grid, coarse first, for images in [0, 1].

        Before the next grid, the caller appends the codewords (B, H, W, D) of the current grid to
        `codewords`.
        """
        rows, columns = self.config.geometry.grids(*images.shape[-2:])[-1]
        stride = self.config.stride
        features = [pad_to_grid(images, self.config.padding, rows * stride, columns * stride)]
        for encoder in self.encoders:
            features.append(encoder(features[-1]))
        for level, quantizer in enumerate(self.quantizers):
            inputs = features.pop()  # coarse first; the images stay in the list
            if level:
                condition = self.conditions[level - 1](codewords[-1].movedim(-1, 1))
                inputs = torch.cat([inputs, condition], dim=1)
            yield quantizer, self.projections[level](inputs).movedim(1, -1).float()

    def _decode_codewords(self, codewords: list[Tensor], size: Grid) -> Tensor:
        """Return the decoder's output (B, C, Y, X) in [-1, 1], not clamped, from the codewords of
        each grid.
        """
        pairs = zip(self.upsamplings, codewords, strict=True)
        upsampled = [upsample(grid_codewords.movedim(-1, 1)) for upsample, grid_codewords in pairs]
        return crop_padding(self.decoder(torch.cat(upsampled, dim=1)), self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize and decode, with the losses of each grid divided by the number of pixel
        values.
        """
        unit = to_unit_images(images, self.channels, training=self.training)
        results = list[Quantized]()
        codewords: list[Tensor] = []
        for quantizer, latents in self._iterate_grids(unit, codewords):
            results.append(quantizer(latents))
            codewords.append(results[-1].latents)
        output = self._decode_codewords(codewords, image_size(unit))
        losses = {"reconstruction": (output - (unit * 2 - 1)).square().mean()}
        for level, result in enumerate(results, start=1):
            losses |= {
                f"{name}_{level}": loss / unit.numel() for name, loss in result.losses.items()
            }
        return Reconstructed((output + 1) / 2, tuple(result.codes[0] for result in results), losses)

    def encode(self, images: Tensor) -> Codes:
        def encode_tile(tile: Tensor) -> Codes:
            codes: list[Tensor] = []
            codewords: list[Tensor] = []
            for quantizer, latents in self._iterate_grids(
                to_unit_images(tile, self.channels), codewords
            ):
                grid_codes = quantizer.encode(latents)  # a tuple: the codes of a single level
                codes += grid_codes
                codewords.append(quantizer.lookup(grid_codes))
            return tuple(codes)

        return tiles.encode(encode_tile, images, self.config, self)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        codes = self.take_prefix(codes, levels)
        check_codes(codes, self.config.num_symbols, scale=2)  # each grid doubles rows and columns

        def decode_tile(tile: Codes, size: Grid) -> Tensor:
            pairs = zip(self.quantizers, tile, strict=True)
            codewords = [quantizer.lookup((grid_codes,)) for quantizer, grid_codes in pairs]
            return ((self._decode_codewords(codewords, size) + 1) / 2).clamp(0, 1)

        return tiles.decode(decode_tile, codes, size, self.config, self)

    @torch.no_grad()
    def initialize(self, images: Tensor, rng: torch.Generator, weight: float = 1.0) -> None:
        codewords: list[Tensor] = []
        for quantizer, latents in self._iterate_grids(
            to_unit_images(images, self.channels), codewords
        ):
            quantizer.initialize(latents, rng, weight)
            codewords.append(quantizer.lookup(quantizer.encode(latents)))

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, rng: torch.Generator) -> int:
        restarted = 0
        codewords: list[Tensor] = []
        for quantizer, latents in self._iterate_grids(
            to_unit_images(images, self.channels), codewords
        ):
            # finer grids are encoded with the codewords as they were, before any moves
            codewords.append(quantizer.lookup(quantizer.encode(latents)))
            restarted += quantizer.restart_dead_codes(distributed.all_gather(latents), rng)
        return restarted
