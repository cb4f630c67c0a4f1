"""VQVAE-2, for any number of grids (docs/method.md; Tables 4 and 7; Razavi et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid
from hrvqvae.config.model import VQVAE2Config
from hrvqvae.models.base import Autoencoder, Reconstructed, cropped, framed, unit_images
from hrvqvae.models.blocks import Decoder, Encoder
from hrvqvae.quantize import Codes, ResidualQuantizer, check_codes, random_latents
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
        grids, hidden, dim = config.grids, config.hidden_units, config.quantizer.dim
        common = {"hidden": hidden, "inner": config.residual_units, "kernel": config.kernel}
        blocks = config.residual_blocks
        self.encoders = nn.ModuleList(
            Encoder(
                channels=hidden if coarser else channels, dim=hidden, stride=2 if coarser else config.stride,
                blocks=blocks, **common,
            )
            for coarser in range(grids)
        )  # fmt: skip
        self.projections = nn.ModuleList(
            nn.Conv2d(hidden if level == 0 else 2 * hidden, dim, 1) for level in range(grids)
        )
        self.quantizers = nn.ModuleList(ResidualQuantizer(config.quantizer) for _ in range(grids))
        self.conditions = nn.ModuleList(
            Decoder(channels=hidden, dim=dim, stride=2, blocks=blocks, **common) for _ in range(grids - 1)
        )
        self.upsamplings = nn.ModuleList(
            nn.Sequential(*(nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1) for _ in range(grids - 1 - level)))
            for level in range(grids)
        )
        self.decoder = Decoder(channels=channels, dim=dim * grids, stride=config.stride, blocks=blocks, **common)

    @property
    def prefixes(self) -> tuple[int, ...]:
        return (self.config.grids,)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features (B, hidden, H_l, W_l) of each grid, coarse first, of images in [0, 1]."""
        rows, columns = self.config.latent_grids(images.shape[-2], images.shape[-1])[-1]
        stride = self.config.stride
        features = framed(images, self.config.padding, rows * stride, columns * stride)
        found = []
        for encoder in self.encoders:
            features = encoder(features)
            found.append(features)
        return found[::-1]

    def _top_down(self, images: Tensor, quantize: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """Go from the coarsest grid to the finest: quantize(level, z (B, H, W, D)) -> e; -> e of each, coarse first."""
        quantized: list[Tensor] = []
        for level, features in enumerate(self._features(images)):
            if level:
                above = self.conditions[level - 1](quantized[-1].permute(0, 3, 1, 2))
                features = torch.cat([features, above], dim=1)
            quantized.append(quantize(level, self.projections[level](features).permute(0, 2, 3, 1).float()))
        return quantized

    def _pixels(self, quantized: list[Tensor], size: Grid | None) -> Tensor:
        """Codewords (B, H_l, W_l, D) of every grid -> (B, C, Y, X) in [-1, 1], not clamped."""
        raised = [up(one.permute(0, 3, 1, 2)) for up, one in zip(self.upsamplings, quantized, strict=True)]
        return cropped(self.decoder(torch.cat(raised, dim=1)), self.config.padding, size)

    def _quantizer(self, level: int) -> ResidualQuantizer:
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, ResidualQuantizer)
        return quantizer

    def forward(self, images: Tensor) -> Reconstructed:
        """Reconstruction error, and each grid's commitment and codebook terms, over the batch's pixel values."""
        unit = unit_images(images, self.channels)
        codes: list[Tensor] = []
        losses: dict[str, Tensor] = {}

        def quantize(level: int, latents: Tensor) -> Tensor:
            result = self._quantizer(level)(latents)
            codes.extend(result.codes)
            losses.update({f"{name}_{level + 1}": loss / unit.numel() for name, loss in result.losses.items()})
            latents = result.latents
            assert isinstance(latents, Tensor)
            return latents

        output = self._pixels(self._top_down(unit, quantize), (unit.shape[-2], unit.shape[-1]))
        error = (output - (unit * 2 - 1)).square().mean()
        return Reconstructed((output + 1) / 2, tuple(codes), {"reconstruction": error, **losses})

    def encode(self, images: Tensor) -> Codes:
        codes: list[Tensor] = []

        def quantize(level: int, latents: Tensor) -> Tensor:
            codes.extend(self._quantizer(level).encode(latents))
            return self._quantizer(level).lookup((codes[-1],))

        self._top_down(unit_images(images, self.channels), quantize)
        return tuple(codes)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        grids = self.config.grids
        if levels not in (None, grids) or len(codes) != grids:
            asked = counted(levels or len(codes), "level")
            raise InputError(f"vqvae2 decodes its {grids} grids together; asked for: {asked}")
        top = codes[0].shape
        for level, code in enumerate(codes):
            shape = (top[0], top[1] * 2**level, top[2] * 2**level)
            check_codes(code, shape, self.config.quantizer.codewords, level + 1)
        quantized = [self._quantizer(level).lookup((code,)) for level, code in enumerate(codes)]
        return ((self._pixels(quantized, size) + 1) / 2).clamp(0, 1)

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """Each grid's features, given the codewords of the coarser ones, and its own codewords."""
        found: list[tuple[Tensor, Tensor]] = []

        def quantize(level: int, latents: Tensor) -> Tensor:
            found.append((latents, self._quantizer(level).lookup((codes[level],))))
            return found[-1][1]

        self._top_down(unit_images(images, self.channels), quantize)
        return tuple(found)

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator, batch_size: int | None = None) -> None:
        def quantize(level: int, latents: Tensor) -> Tensor:
            quantizer = self._quantizer(level)
            if not self.config.quantizer.init_vectors:
                noise = random_latents(self.config.quantizer.codewords, latents.shape[-1], generator)
                quantizer.initialize(noise.to(latents.device), generator)
            else:
                quantizer.initialize(latents, generator, (batch_size or len(images)) / len(images))
            return quantizer.lookup(quantizer.encode(latents))

        self._top_down(unit_images(images, self.channels), quantize)

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, generator: torch.Generator) -> int:
        restarted = 0

        def quantize(level: int, latents: Tensor) -> Tensor:
            nonlocal restarted
            quantizer = self._quantizer(level)
            codewords = quantizer.lookup(quantizer.encode(latents))
            restarted += quantizer.restart_dead_codes(latents, generator)
            return codewords

        self._top_down(unit_images(images, self.channels), quantize)
        return restarted
