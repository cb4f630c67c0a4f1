"""Systems with a single latent grid: an encoder, a quantizer, a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.config import Grid, NetworkConfig, SingleGridConfig
from hrvqvae.models import tiles
from hrvqvae.models.base import (
    Autoencoder,
    Reconstructed,
    crop_padding,
    pad_to_grid,
    select_prefix,
    to_unit_images,
)
from hrvqvae.models.blocks import Decoder, Encoder, ProgressiveDecoder
from hrvqvae.quantize import Codes, Quantized, Quantizer, ResidualQuantizer


class SingleGridAutoencoder(Autoencoder):
    """An autoencoder with a single latent grid, as in all built-in systems except VQVAE-2.

        image (B, C, Y, X) in [0, 1] -> [-1, 1], padded -> encoder -> z (B, H, W, D)
        z -> quantizer -> codes, one tensor (B, H, W) per level
        codes of a prefix of the levels -> codewords (B, H, W, D) -> decoder -> cropped, [0, 1] ->
        image (B, C, Y, X)

    Images are padded by `config.padding` pixels per side, and then below and to the right to a
    multiple of the stride. The default quantizer is the `ResidualQuantizer` of a
    `SingleGridConfig`.
    """

    config: NetworkConfig
    progressive_decoder: ProgressiveDecoder | None = None

    def __init__(
        self, config: NetworkConfig, channels: int, quantizer: Quantizer | None = None
    ) -> None:
        super().__init__(config, channels)
        self.quantizer = quantizer or ResidualQuantizer(cast(SingleGridConfig, config).quantizer)
        shape = (config, channels, self.quantizer.config.dim, config.stride)
        self.encoder = Encoder(*shape)
        self.decoder = Decoder(*shape)

    @property
    def linked_codebooks(self) -> tuple[Tensor, ...]:
        """The codebooks (m^l, m, D) of levels l = 0, 1, ... if there are several levels, all
        linked, else ().
        """
        quantizer = self.quantizer
        if not isinstance(quantizer, ResidualQuantizer):
            return ()
        is_tree = 1 < quantizer.config.group_size == quantizer.config.levels
        return tuple(codebook.codewords.detach() for codebook in quantizer.levels if is_tree)

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents z (B, H, W, D) float32 of images (B, C, Y, X) float32 in [0, 1]."""
        rows, columns = self.config.geometry.grids(*images.shape[-2:])[0]
        stride = self.config.stride
        features: Tensor = self.encoder(
            pad_to_grid(images, self.config.padding, rows * stride, columns * stride)
        )
        return features.permute(0, 2, 3, 1).float()

    def prefix_latents(self, codes: Codes) -> Tensor:
        """Return the sum of the codewords of every prefix of the levels, (L, B, H, W, D)."""
        return torch.stack(
            [self.quantizer.lookup(codes[:prefix], check=False) for prefix in self.prefixes]
        )

    def pixels(self, latents: Tensor, size: Grid | None, levels: Tensor | None = None) -> Tensor:
        """Return the decoder's output (B, C, Y, X) in [-1, 1], not clamped, from quantized latents
        (B, H, W, D).

        `levels` are level counts of prefixes, () for the whole batch or (B,) with a count per image
        (None: all levels).
        """
        features = latents.permute(0, 3, 1, 2)
        progressive = self.progressive_decoder
        use_decoder = levels is None or progressive is None
        decoded = self.decoder(features) if use_decoder else progressive(features, levels - 1)  # type: ignore
        return crop_padding(decoded, self.config.padding, size)

    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize and decode, with the losses of docs/method.md divided by the number of
        pixel values.
        """
        unit = to_unit_images(images, self.channels, training=self.training)
        latents = self.latents(unit)
        quantized: Quantized = self.quantizer(latents)
        decoded = quantized.latents
        count = len(self.prefixes)
        part = distributed.rank_slice()
        positions = part.of(len(unit) * part.count)  # in the batch of all processes
        by_prefix = (
            self.training
            and getattr(self.config, "train_prefixes", False)
            and len(unit) * part.count >= count
        )
        if by_prefix:  # the image at position i is decoded from prefix i % count
            image_index = torch.arange(len(unit), device=unit.device)
            prefix_index = (image_index + positions.start) % count
            prefixes = self.prefix_latents(quantized.codes).detach()
            share = compute_explained_share(latents.detach(), prefixes)[prefix_index][:, None, None]
            decoded = prefixes[prefix_index, image_index] + share * (latents - latents.detach())
        output = self.pixels(decoded, (unit.shape[-2], unit.shape[-1]))
        errors = (output - (unit * 2 - 1)).square()
        error = (
            compute_relative_error(errors.mean((1, 2, 3)), prefix_index, count)
            if by_prefix
            else errors.mean()
        )
        losses = {"reconstruction": error}
        losses |= {name: loss / unit.numel() for name, loss in quantized.losses.items()}
        return Reconstructed((output + 1) / 2, quantized.codes, losses)

    def encode(self, images: Tensor) -> Codes:
        def encode_tile(tile: Tensor) -> Codes:
            return self.quantizer.encode(self.latents(to_unit_images(tile, self.channels)))

        return tiles.encode(encode_tile, images, self.config, self.encoder)

    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        prefix_codes = self.take_prefix(codes, levels)
        num_levels = self.prefixes[-1]
        network = (
            self.decoder
            if len(prefix_codes) == num_levels
            else self.progressive_decoder or self.decoder
        )

        def decode_tile(tile: Codes, size: Grid | None) -> Tensor:
            latents = self.quantizer.lookup(tile)
            count = (
                torch.tensor(len(tile), device=latents.device) if len(tile) < num_levels else None
            )
            return ((self.pixels(latents, size, count) + 1) / 2).clamp(0, 1)

        return tiles.decode(decode_tile, prefix_codes, size, self.config, network)

    def decode_prefix(self, codes: Codes, levels: Tensor) -> Tensor:
        """Decode the first levels, without decoding other prefixes; see
        `Autoencoder.decode_prefix`.
        """
        latents = select_prefix(self.prefix_latents(codes), self.prefixes, levels)
        is_whole = levels == self.prefixes[-1]
        progressive = self.progressive_decoder
        if progressive is not None and torch.compiler.is_compiling():
            decoded = torch.cond(
                is_whole,
                lambda z, _: self.decoder(z),
                lambda z, count: progressive(z, count - 1),
                (latents.permute(0, 3, 1, 2), levels),
            )
            output = crop_padding(
                decoded, self.config.padding, None
            )  # a branch of torch.cond may not return a view
        else:
            output = self.pixels(latents, None, None if progressive is None or is_whole else levels)
        return ((output + 1) / 2).clamp(0, 1)

    def codeword_indices(self, codes: Codes) -> Codes:
        return self.quantizer.codeword_indices(codes)

    @torch.no_grad()
    def initialize(
        self, images: Tensor, rng: torch.Generator, batch_size: int | None = None
    ) -> None:
        latents = self.latents(to_unit_images(images, self.channels))
        self.quantizer.initialize(latents, rng, (batch_size or len(images)) / len(images))

    @torch.no_grad()
    def restart_dead_codes(self, images: Tensor, rng: torch.Generator) -> int:
        latents = self.latents(to_unit_images(images, self.channels))
        return self.quantizer.restart_dead_codes(distributed.all_gather(latents), rng)

    def align(self) -> None:
        if isinstance(self.quantizer, ResidualQuantizer):
            self.quantizer.align()

    def use_progressive_decoder(self, decoder: ProgressiveDecoder) -> None:
        """Use a progressive decoder, on the model's device, to decode prefixes; its case is the
        level count - 1.

        `parameters()` and `state_dict()` exclude this decoder, so the model's digest, priors and
        files stay valid.
        """
        object.__setattr__(self, "progressive_decoder", decoder)  # nn.Module would register it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.progressive_decoder is not None:
            self.progressive_decoder._apply(fn)  # type: ignore[no-untyped-call]  # follows the model to its device
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


def compute_explained_share(latents: Tensor, prefixes: Tensor) -> Tensor:
    """Return the share of each channel's variance that each prefix of the levels explains, (L, D).

    The straight-through gradient of a prefix is multiplied by this share: if the codewords of a
    prefix do not follow a channel, the prefix passes no gradient to it. `prefixes` are sums of the
    codewords of each prefix (L, B, H, W, D). The shares are those of the images of all processes.
    """
    axes = (0, 1, 2)
    latent_mean = latents.mean(axes)
    (overall_mean,) = distributed.all_reduce_mean([latent_mean])
    spread = latents.var(axes, correction=0) + (latent_mean - overall_mean).square()
    errors = (latents - prefixes).square().mean((1, 2, 3))
    variance, errors = distributed.all_reduce_mean([spread, errors])
    return (1 - errors / variance.clamp(min=1e-12)).clamp(0, 1)


def compute_relative_error(errors: Tensor, prefix_index: Tensor, count: int) -> Tensor:
    """Return the mean error of the longest prefix, with a gradient to which all prefixes contribute
    equally.

    The gradient is proportional to that of the mean logarithm of the prefixes' errors. Image i has
    the error errors[i] (B,) and was decoded from prefix prefix_index[i]; each of the `count`
    prefixes occurs, in a process or in another.
    """
    sums = errors.new_zeros(count).index_add(0, prefix_index, errors)
    sizes = torch.zeros_like(sums).index_add(0, prefix_index, torch.ones_like(errors))
    mean_sums, mean_sizes = distributed.all_reduce_mean([sums.detach(), sizes])
    return (sums / mean_sums.clamp(min=1e-12)).mean() * (mean_sums[-1] / mean_sizes[-1])
