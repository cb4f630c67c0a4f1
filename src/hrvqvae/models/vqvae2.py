"""VQVAE-2, for any number of grids (docs/method.md; Tables 4 and 7; Razavi et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid
from hrvqvae.config.model import VQVAE2Config
from hrvqvae.models import tiles
from hrvqvae.models.base import Autoencoder, Reconstructed, crop_padding, pad_to_grid, to_unit_images
from hrvqvae.models.blocks import Decoder, Encoder
from hrvqvae.quantize import Codes, Quantized, ResidualQuantizer, check_codes


class VQVAE2(Autoencoder):
    """Several latent grids, each with a flat codebook; a finer grid is encoded given the codewords of the coarser.

        image -> encoder 1 -> features of the finest grid -> encoder 2 (halves) -> ... -> features of the coarsest grid
        coarsest: features -> 1x1 conv -> z -> nearest codeword -> e_1 -> code 1
        next:     features, decoder(e_1) (doubles) -> 1x1 conv -> z -> nearest codeword -> e_2 -> code 2
        ...
        all e, brought to the finest grid by transposed convolutions, concatenated -> decoder -> image

    Codes are coarse first. Decoding needs all grids.
    """

    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config, channels: int) -> None:
        super().__init__(config, channels)
        grids, hidden, dim, stride = config.grids, config.hidden_units, config.quantizer.dim, config.stride
        self.encoders = nn.ModuleList([Encoder(config, channels, hidden, stride)])
        self.encoders.extend(Encoder(config, hidden, hidden, 2) for _ in range(grids - 1))
        self.projections = nn.ModuleList(
            nn.Conv2d(hidden if level == 0 else 2 * hidden, dim, 1) for level in range(grids)
        )
        self.quantizers = nn.ModuleList(ResidualQuantizer(config.quantizer) for _ in range(grids))
        self.conditions = nn.ModuleList(Decoder(config, hidden, dim, 2) for _ in range(grids - 1))
        self.upsamplings = nn.ModuleList(
            nn.Sequential(*(nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1) for _ in range(grids - 1 - level)))
            for level in range(grids)
        )
        self.decoder = Decoder(config, channels, dim * grids, stride)

    @property
    def prefixes(self) -> tuple[int, ...]:
        return (self.config.grids,)

    def _top_down(self, images: Tensor, words: list[Tensor]) -> Iterator[tuple[ResidualQuantizer, Tensor]]:
        """Yield the quantizer and z of each grid of images in [0, 1], coarse first.

        Between two grids the caller appends the codewords (B, H, W, D) of the coarser grid to `words`.
        """
        rows, columns = self.config.latent_grids(images.shape[-2], images.shape[-1])[-1]
        stride = self.config.stride
        features = [pad_to_grid(images, self.config.padding, rows * stride, columns * stride)]
        for encoder in self.encoders:
            features.append(encoder(features[-1]))
        for level, (quantizer, seen) in enumerate(zip(self._quantizers, features[:0:-1], strict=True)):
            if level:
                seen = torch.cat([seen, self.conditions[level - 1](words[-1].permute(0, 3, 1, 2))], dim=1)
            yield quantizer, self.projections[level](seen).permute(0, 2, 3, 1).float()

    @property
    def _quantizers(self) -> list[ResidualQuantizer]:
        return [quantizer for quantizer in self.quantizers if isinstance(quantizer, ResidualQuantizer)]

    def _pixels(self, quantized: list[Tensor], size: Grid | None) -> Tensor:
        """Return images (B, C, Y, X) in [-1, 1], not clamped, from the codewords of every grid."""
        raised = [up(codewords.permute(0, 3, 1, 2)) for up, codewords in zip(self.upsamplings, quantized, strict=True)]
        return crop_padding(self.decoder(torch.cat(raised, dim=1)), self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize and decode; the losses of each grid are per pixel value of the batch."""
        unit = to_unit_images(images, self.channels, training=self.training)
        results, words = list[Quantized](), list[Tensor]()
        for quantizer, latents in self._top_down(unit, words):
            results.append(quantizer(latents))
            words.append(results[-1].latents)
        output = self._pixels(words, (unit.shape[-2], unit.shape[-1]))
        losses = {"reconstruction": (output - (unit * 2 - 1)).square().mean()}
        for level, result in enumerate(results, start=1):
            losses |= {f"{name}_{level}": loss / unit.numel() for name, loss in result.losses.items()}
        return Reconstructed((output + 1) / 2, tuple(result.codes[0] for result in results), losses)

    def encode(self, images: Tensor) -> Codes:
        def encode_tile(tile: Tensor) -> Codes:
            codes, words = list[Tensor](), list[Tensor]()
            for quantizer, latents in self._top_down(to_unit_images(tile, self.channels), words):
                codes += quantizer.encode(latents)
                words.append(quantizer.lookup((codes[-1],), check=False))
            return tuple(codes)

        return tiles.encode(encode_tile, images, self.config, self)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        codes = self.prefix(codes, levels)
        check_codes(codes, (self.config.quantizer.codewords,) * len(codes), scale=2)

        def decode_tile(tile: Codes, size: Grid | None) -> Tensor:
            quantized = [quantizer.lookup((code,)) for quantizer, code in zip(self._quantizers, tile, strict=True)]
            return ((self._pixels(quantized, size) + 1) / 2).clamp(0, 1)

        return tiles.decode(decode_tile, codes, size, self.config, self)

    @torch.no_grad()
    def initialize(self, images: Tensor, rng: torch.Generator, batch_size: int | None = None) -> None:
        words = list[Tensor]()
        for quantizer, latents in self._top_down(to_unit_images(images, self.channels), words):
            quantizer.initialize(latents, rng, (batch_size or len(images)) / len(images))
            words.append(quantizer.lookup(quantizer.encode(latents)))

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, rng: torch.Generator) -> int:
        restarted, words = 0, list[Tensor]()
        for quantizer, latents in self._top_down(to_unit_images(images, self.channels), words):
            words.append(quantizer.lookup(quantizer.encode(latents)))  # before any codeword moves
            restarted += quantizer.restart_dead_codes(latents, rng)
        return restarted
