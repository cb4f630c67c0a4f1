"""VQVAE-2, for any number of grids (docs/method.md; Tables 4 and 7; Razavi et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid
from hrvqvae.config.model import VQVAE2Config
from hrvqvae.models import tiles
from hrvqvae.models.base import Autoencoder, Reconstructed, cropped, framed, unit_images
from hrvqvae.models.blocks import Decoder, Encoder
from hrvqvae.quantize import Codes, Quantized, ResidualQuantizer, check_codes, random_latents
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


class VQVAE2(Autoencoder):
    """Several latent grids, each with a flat codebook; a finer one knows the coarser one's codewords when it is coded.

    image -> encoder 1 -> features of the finest grid -> encoder 2 (halves) -> ... -> features of the coarsest grid
    coarsest: features -> 1x1 conv -> z -> nearest codeword -> e_1 -> code 1
    next:     features, decoder(e_1) (doubles) -> 1x1 conv -> z -> nearest codeword -> e_2 -> code 2
    ...
    all e, brought to the finest grid by transposed convolutions, side by side -> decoder -> image

    Codes are coarse first. All grids are needed to decode.
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

    def _top_down(self, images: Tensor, quantize: Callable[[ResidualQuantizer, Tensor], Tensor]) -> list[Tensor]:
        """Codewords (B, H_l, W_l, D) of each grid of images in [0, 1], coarse first: `quantize` gives them from z."""
        rows, columns = self.config.latent_grids(images.shape[-2], images.shape[-1])[-1]
        stride = self.config.stride
        features = [framed(images, self.config.padding, rows * stride, columns * stride)]
        for encoder in self.encoders:
            features.append(encoder(features[-1]))
        found: list[Tensor] = []
        for level, (quantizer, seen) in enumerate(zip(self._quantizers, features[:0:-1], strict=True)):
            if level:
                seen = torch.cat([seen, self.conditions[level - 1](found[-1].permute(0, 3, 1, 2))], dim=1)
            latents = self.projections[level](seen).permute(0, 2, 3, 1).float()
            found.append(quantize(quantizer, latents))
        return found

    @property
    def _quantizers(self) -> list[ResidualQuantizer]:
        return [one for one in self.quantizers if isinstance(one, ResidualQuantizer)]

    def _pixels(self, quantized: list[Tensor], size: Grid | None) -> Tensor:
        """Codewords of every grid -> (B, C, Y, X) in [-1, 1], not clamped."""
        raised = [up(one.permute(0, 3, 1, 2)) for up, one in zip(self.upsamplings, quantized, strict=True)]
        return cropped(self.decoder(torch.cat(raised, dim=1)), self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """Reconstruction error, and each grid's commitment and codebook terms, over the batch's pixel values."""
        unit = unit_images(images, self.channels)
        results: list[Quantized] = []

        def quantize(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
            results.append(quantizer(latents))
            return results[-1].latents

        output = self._pixels(self._top_down(unit, quantize), (unit.shape[-2], unit.shape[-1]))
        losses = {"reconstruction": (output - (unit * 2 - 1)).square().mean()}
        for level, result in enumerate(results, start=1):
            losses |= {f"{name}_{level}": loss / unit.numel() for name, loss in result.losses.items()}
        return Reconstructed((output + 1) / 2, tuple(result.codes[0] for result in results), losses)

    def encode(self, images: Tensor) -> Codes:
        def whole(part: Tensor) -> Codes:
            codes: list[Tensor] = []

            def quantize(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
                codes.extend(quantizer.encode(latents))
                return quantizer.lookup((codes[-1],))

            self._top_down(unit_images(part, self.channels), quantize)
            return tuple(codes)

        grids = self.config.latent_grids
        return tiles.encode(whole, images, lambda *size: grids(*size)[0], self._coarsest_stride, self._reach)

    @property
    def _coarsest_stride(self) -> int:
        return self.config.stride << (self.config.grids - 1)

    def _reach(self) -> int:
        return tiles.reach(self, self.config.padding, self._coarsest_stride)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        grids = self.config.grids
        if levels not in (None, grids) or len(codes) != grids:
            asked = counted(levels or len(codes), "level")
            raise InputError(f"vqvae2 decodes its {grids} grids together; asked for: {asked}")
        top = codes[0].shape
        for level, code in enumerate(codes):
            shape = (top[0], top[1] * 2**level, top[2] * 2**level)
            check_codes(code, shape, self.config.quantizer.codewords, level + 1)

        def whole(part: Codes, size: Grid | None) -> Tensor:
            quantized = [one.lookup((code,)) for one, code in zip(self._quantizers, part, strict=True)]
            return ((self._pixels(quantized, size) + 1) / 2).clamp(0, 1)

        return tiles.decode(whole, codes, size, self.config.padding, self._coarsest_stride, self._reach)

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """Each grid's features, given the codewords of the coarser ones, and its own codewords."""
        found: list[tuple[Tensor, Tensor]] = []

        def quantize(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
            found.append((latents, quantizer.lookup((codes[len(found)],))))
            return found[-1][1]

        self._top_down(unit_images(images, self.channels), quantize)
        return tuple(found)

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator, batch_size: int | None = None) -> None:
        def quantize(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
            if quantizer.config.init_vectors:
                quantizer.initialize(latents, generator, (batch_size or len(images)) / len(images))
            else:
                quantizer.initialize(random_latents(latents, quantizer.config.codewords, generator), generator)
            return quantizer.lookup(quantizer.encode(latents))

        self._top_down(unit_images(images, self.channels), quantize)

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, generator: torch.Generator) -> int:
        restarted = 0

        def quantize(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
            nonlocal restarted
            codewords = quantizer.lookup(quantizer.encode(latents))  # before any codeword moves
            restarted += quantizer.restart_dead_codes(latents, generator)
            return codewords

        self._top_down(unit_images(images, self.channels), quantize)
        return restarted
