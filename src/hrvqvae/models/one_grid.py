"""What systems with one latent grid have in common: an encoder, a quantizer, a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from hrvqvae.config import Grid
from hrvqvae.config.model import NetworkConfig
from hrvqvae.models.base import Autoencoder, Reconstructed, chosen_prefix, unit_images
from hrvqvae.models.blocks import Decoder, Encoder, ProgressiveDecoder
from hrvqvae.models.framing import cropped, framed
from hrvqvae.quantize import Codes, Quantized, random_latents
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


class HasDim(Protocol):
    """A quantizer's configuration, as far as the networks around it ask."""

    @property
    def dim(self) -> int: ...


class Quantizer(Protocol):
    """What a quantizer of one grid does; (B, H, W, D) latents."""

    @property
    def config(self) -> HasDim: ...

    def __call__(self, latents: Tensor) -> Quantized: ...

    def encode(self, latents: Tensor) -> Codes: ...

    def lookup(self, codes: Codes) -> Tensor: ...

    def paths(self, codes: Codes) -> Codes: ...

    def initialize(self, latents: Tensor, generator: torch.Generator, weight: float = 1.0) -> None: ...

    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int: ...


class OneGrid(Autoencoder):
    """An autoencoder with one latent grid, whose quantizer a system hands in.

    image (B, C, Y, X) in [0, 1] -> [-1, 1], padded -> encoder -> z (B, H, W, D)
        z -> quantizer -> codes, a tensor (B, H, W) a level
        codes -> codewords (B, H, W, D) -> decoder -> cropped, [0, 1] -> image (B, C, Y, X)

    The image grows by `padding` pixels a side and then, below and to the right, to a multiple of the stride.

    Prefixes of the levels may have a decoder of their own (`use_progressive_decoder`), which knows how many levels it gets.
    """

    quantizer: nn.Module
    _prefix_decoder: ProgressiveDecoder | None = None

    def __init__(self, config: NetworkConfig, channels: int, quantizer: nn.Module) -> None:
        super().__init__()
        self.config, self._channels, self.quantizer = config, channels, quantizer
        shape = {
            "channels": channels, "dim": self.latent_dim, "stride": config.stride,
            "hidden": config.hidden_units, "inner": config.residual_units, "blocks": config.residual_blocks,
            "kernel": config.kernel,
        }  # fmt: skip
        self.encoder, self.decoder = Encoder(**shape), Decoder(**shape)

    @property
    def _quantizer(self) -> Quantizer:
        return self.quantizer  # type: ignore[return-value]

    @property
    def latent_dim(self) -> int:
        """D, the channels of the latents."""
        return self._quantizer.config.dim

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def prefixes(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.config.num_symbols) + 1))

    def latents(self, images: Tensor) -> Tensor:
        """z: (B, C, Y, X) float32 in [0, 1] -> (B, H, W, D) float32."""
        rows, columns = self.config.grid(images.shape[-2], images.shape[-1])
        stride = self.config.stride
        features: Tensor = self.encoder(framed(images, self.config.padding, rows * stride, columns * stride))
        return features.permute(0, 2, 3, 1).float()

    def pixels(self, latents: Tensor, size: Grid | None) -> Tensor:
        """Decoder output in [-1, 1], cropped: (B, H, W, D) -> (B, C, Y, X) float32, not clamped."""
        return cropped(self.decoder(latents.permute(0, 3, 1, 2)), self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """The loss is the printed one (docs/method.md) over the number of pixel values of the batch."""
        unit = unit_images(images, self.channels)
        quantized = self._quantizer(self.latents(unit))
        output = self.pixels(quantized.latents, (unit.shape[-2], unit.shape[-1]))
        losses = {"reconstruction": (output - (unit * 2 - 1)).square().mean()}
        losses |= {name: loss / unit.numel() for name, loss in quantized.losses.items()}
        return Reconstructed((output + 1) / 2, quantized.codes, losses)

    def encode(self, images: Tensor) -> Codes:
        return self._quantizer.encode(self.latents(unit_images(images, self.channels)))

    @property
    def progressive_decoder(self) -> ProgressiveDecoder | None:
        """What decodes prefixes of the levels in place of the decoder of all, if anything."""
        return self._prefix_decoder

    def use_progressive_decoder(self, decoder: ProgressiveDecoder) -> None:
        """Let another decoder on the same device, whose case is the number of levels - 1, decode prefixes.

        It lies beside the model: it is in none of `parameters()` and `state_dict()`, so the model's digest, and the
        codes, priors and files that belong to it, stay as they are.
        """
        object.__setattr__(self, "_prefix_decoder", decoder)  # not registered as a part

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._prefix_decoder is not None:
            self._prefix_decoder._apply(fn)  # type: ignore[no-untyped-call]  # it goes where the model goes
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def prefix_pixels(self, latents: Tensor, levels: Tensor, size: Grid | None) -> Tensor:
        """As `pixels`, of the codewords of prefixes.

        Args:
            latents: (B, H, W, D).
            levels: how many levels they are of, not all: () of all of them, or (B,) of each.
            size: as for `decode`.
        """
        if self._prefix_decoder is None:
            return self.pixels(latents, size)
        decoded = self._prefix_decoder(latents.permute(0, 3, 1, 2), levels - 1)
        return cropped(decoded, self.config.padding, size)

    def prefix_latents(self, codes: Codes, levels: Tensor) -> Tensor:
        """Codewords of a prefix for each image, `levels` (B,) of its codes, not all: (B, H, W, D)."""
        every = torch.stack([self._quantizer.lookup(codes[:number]) for number in self.prefixes[:-1]])
        return every[levels - 1, torch.arange(len(levels), device=levels.device)]

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        most = self.prefixes[-1]
        if levels is not None and not 1 <= levels <= most:
            raise InputError(f"levels is {levels}; this model has levels 1 to {most}")
        if levels is not None and len(codes) < levels:
            raise InputError(f"levels is {levels}, and the codes have {counted(len(codes), 'level')}")
        used = codes[:levels]
        latents = self._quantizer.lookup(used)
        if len(used) < most:
            output = self.prefix_pixels(latents, torch.tensor(len(used), device=latents.device), size)
        else:
            output = self.pixels(latents, size)
        return ((output + 1) / 2).clamp(0, 1)

    def decode_prefix(self, codes: Codes, levels: Tensor) -> Tensor:
        """Prefixes part where codewords are looked up, so only one is decoded, by the decoder that is for it."""
        every = torch.stack([self._quantizer.lookup(codes[:number]) for number in self.prefixes])
        latents, whole = chosen_prefix(every, self.prefixes, levels), levels == self.prefixes[-1]
        features, of_prefix = latents.permute(0, 3, 1, 2), self._prefix_decoder
        if of_prefix is None:
            output = self.decoder(features)
        elif torch.compiler.is_compiling():  # cropped outside: a branch of a graph gives no part of a tensor
            output = torch.cond(
                whole, lambda z, _: self.decoder(z), lambda z, n: of_prefix(z, n - 1), (features, levels)
            )
        else:
            output = self.decoder(features) if whole else of_prefix(features, levels - 1)
        return ((cropped(output, self.config.padding, None) + 1) / 2).clamp(0, 1)

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """Every level quantizes z, by the sum of its codeword and the coarser levels'."""
        latents = self.latents(unit_images(images, self.channels))
        return tuple((latents, self._quantizer.lookup(codes[:number])) for number in self.prefixes)

    def paths(self, codes: Codes) -> tuple[Tensor, ...]:
        return self._quantizer.paths(codes)

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator, batch_size: int | None = None) -> None:
        if self.config.start_vectors:
            latents = self.latents(unit_images(images, self.channels))
            self._quantizer.initialize(latents, generator, (batch_size or len(images)) / len(images))
        else:
            noise = random_latents(max(self.config.num_codewords), self._quantizer.config.dim, generator)
            self._quantizer.initialize(noise.to(images.device), generator)

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, generator: torch.Generator) -> int:
        return self._quantizer.restart_dead_codes(self.latents(unit_images(images, self.channels)), generator)

    @property
    def linked_codebooks(self) -> tuple[Tensor, ...]:
        """Codebooks (m^l, m, D) of each level, where each codeword owns a codebook of the next; else empty."""
        return ()

    @property
    def codeword_counts(self) -> tuple[Tensor, ...]:
        """Moving averages (m^l, m) of how often codewords of linked codebooks are chosen; else empty."""
        return ()
