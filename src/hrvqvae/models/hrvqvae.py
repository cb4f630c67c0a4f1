"""HR-VQVAE (spec.md section 2; Table 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.config import Grid, HRVQVAEConfig
from hrvqvae.errors import InputError
from hrvqvae.models.base import Autoencoder, Reconstructed, unit_images
from hrvqvae.nn import Decoder, Encoder
from hrvqvae.quantize import Codes, TreeQuantizer


class HRVQVAE(Autoencoder):
    """One latent grid, quantized level by level with linked codebooks.

    image (B, C, Y, X) in [0, 1] -> [-1, 1], padded -> encoder -> z (B, H, W, D)
        z -> tree quantizer -> codes: L x (B, H, W)
        any prefix of the codes -> sum of its codewords -> decoder -> cropped, [0, 1] -> image (B, C, Y, X)

    The image grows by `padding` pixels a side and then, below and to the right, to a multiple of the stride, with its
    border repeated; what was added is cropped after decoding and never enters a loss.
    """

    def __init__(self, config: HRVQVAEConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self._channels = channels
        self.encoder = Encoder(
            channels=channels, dim=config.quantizer.dim, stride=config.stride, hidden=config.hidden_units,
            inner=config.residual_units, blocks=config.residual_blocks, kernel=config.kernel,
        )  # fmt: skip
        self.quantizer = TreeQuantizer(config.quantizer)
        self.decoder = Decoder(
            channels=channels, dim=config.quantizer.dim, stride=config.stride, hidden=config.hidden_units,
            inner=config.residual_units, blocks=config.residual_blocks, kernel=config.kernel,
        )  # fmt: skip

    @property
    def channels(self) -> int:
        return self._channels

    def latents(self, images: Tensor) -> Tensor:
        """z: (B, C, Y, X) float32 in [0, 1] -> (B, H, W, D) float32."""
        height, width = images.shape[-2:]
        (rows, columns), *_ = self.config.latent_grids(height, width)
        before, stride = self.config.padding, self.config.stride
        after = (columns * stride - width - before, rows * stride - height - before)
        padded = pad(images * 2 - 1, (before, after[0], before, after[1]), mode="replicate")
        features: Tensor = self.encoder(padded)
        return features.permute(0, 2, 3, 1).float()

    def pixels(self, latents: Tensor, size: Grid | None) -> Tensor:
        """Decoder output in [-1, 1], cropped: (B, H, W, D) -> (B, C, Y, X) float32, not clamped."""
        decoded: Tensor = self.decoder(latents.permute(0, 3, 1, 2))
        before = self.config.padding
        largest = (decoded.shape[-2] - 2 * before, decoded.shape[-1] - 2 * before)
        height, width = size or largest
        if not (1 <= height <= largest[0] and 1 <= width <= largest[1]):
            raise InputError(f"size {height}x{width} does not fit these codes; at most {largest[0]}x{largest[1]}")
        return decoded[..., before : before + height, before : before + width].float()

    def forward(self, images: Tensor) -> Reconstructed:
        """The loss is the printed one (spec.md section 2) over the number of pixel values of the batch."""
        unit = unit_images(images, self.channels)
        quantized = self.quantizer(self.latents(unit))
        output = self.pixels(quantized.latents, (unit.shape[-2], unit.shape[-1]))
        losses = {"reconstruction": (output - (unit * 2 - 1)).square().mean()}
        losses |= {name: loss / unit.numel() for name, loss in quantized.losses.items()}
        return Reconstructed((output.detach() + 1) / 2, quantized.codes, losses)

    def encode(self, images: Tensor) -> Codes:
        return self.quantizer.encode(self.latents(unit_images(images, self.channels)))

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        most = self.config.quantizer.levels
        if levels is not None and not 1 <= levels <= most:
            raise InputError(f"levels is {levels}; this model has levels 1 to {most}")
        if levels is not None and len(codes) < levels:
            raise InputError(f"levels is {levels}, but codes of {len(codes)} levels are given")
        output = self.pixels(self.quantizer.lookup(codes[:levels]), size)
        return ((output + 1) / 2).clamp(0, 1)

    def paths(self, codes: Codes) -> tuple[Tensor, ...]:
        return self.quantizer.paths(codes)

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator) -> None:
        if self.config.quantizer.init_vectors:
            self.quantizer.initialize(self.latents(unit_images(images, self.channels)), generator)
        else:
            noise = torch.randn(1024, self.config.quantizer.dim, generator=generator)
            self.quantizer.initialize(noise.to(images.device), generator)

    @torch.no_grad()
    def revive(self, images: Tensor, generator: torch.Generator) -> int:
        return self.quantizer.revive(self.latents(unit_images(images, self.channels)), generator)
