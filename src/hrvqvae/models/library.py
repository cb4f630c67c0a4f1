"""Quantizers of the library vector-quantize-pytorch under our contract (docs/method.md).

Shapes: (B, H, W, D) latents, L levels; the library takes vectors as (1, N, D), N = B * H * W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import vector_quantize_pytorch as library
from torch import Tensor, nn
from torch.nn.functional import pad

from hrvqvae.config.model import FSQConfig, FSQQuantizerConfig, LibraryConfig, LibraryQuantizerConfig
from hrvqvae.models.base import unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes, Quantized, check_codes
from hrvqvae.quantize.search.reference import require_finite
from hrvqvae.utils.errors import InputError


class Adapter(nn.Module, ABC):
    """A quantizer of the library, computed in float32. In training it draws from torch's global generator."""

    config: FSQQuantizerConfig | LibraryQuantizerConfig
    sizes: tuple[int, ...]  # values that a code of each level can take

    @abstractmethod
    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(1, N, D) -> quantized (1, N, D), codes (1, N, L), the library's losses, means over the values."""

    @abstractmethod
    def _look_up(self, codes: Tensor) -> Tensor:
        """Codes (1, N, l) of the first l levels -> (1, N, D)."""

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (B, H, W, D), with losses summed over the batch. Raises NonFiniteError where a latent is not."""
        vectors = latents.reshape(1, -1, latents.shape[-1]).float()
        if not torch.compiler.is_compiling():  # a graph checks no values
            require_finite(vectors, ())
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, losses = self._quantize(vectors)
        return Quantized(
            quantized.view(latents.shape),
            tuple(code.reshape(latents.shape[:-1]).long() for code in codes.unbind(-1)),
            {name: loss * latents.numel() for name, loss in losses.items()},
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Codes:
        """Codes of (B, H, W, D) latents: L tensors (B, H, W) int64. Raises as `forward`."""
        training = self.training
        self.eval()
        codes: Codes = self(latents).codes
        self.train(training)
        return codes

    def lookup(self, codes: Codes) -> Tensor:
        """(B, H, W, D) of the codes of a prefix of the levels. Raises InputError where they are not such codes."""
        if not 1 <= len(codes) <= len(self.sizes):
            raise InputError(f"{len(codes)} levels of codes given; this model has 1 to {len(self.sizes)}")
        for level, (code, size) in enumerate(zip(codes, self.sizes, strict=False), start=1):
            check_codes(code, codes[0].shape, size, level)
        with torch.autocast(codes[0].device.type, enabled=False):
            return self._look_up(torch.stack(codes, -1).view(1, -1, len(codes))).view(*codes[0].shape, -1)

    def paths(self, codes: Codes) -> Codes:
        return codes

    @torch.no_grad()
    def initialize(self, latents: Tensor, generator: torch.Generator, weight: float = 1.0) -> None:
        """Let the library start from (..., D) latents, if it does so: at the first vectors that it sees."""
        with torch.random.fork_rng([latents.device] if latents.is_cuda else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            self.encode(latents)

    def restart_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        return 0  # the library restarts in a training pass


class FSQQuantizer(Adapter):
    """Finite scalar quantization: each channel is bounded, and rounded to one of its values (Mentzer et al. 2023).

    z (B, H, W, D) -> linear -> tanh, round -> grid points (B, H, W, channels) -> linear -> (B, H, W, D)

    The code is the number of the grid point, the first channel's value changing fastest. Nothing is learned but the
    linear layers, and there is no loss.
    """

    config: FSQQuantizerConfig

    def __init__(self, config: FSQQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq: Any = library.FSQ(levels=list(config.channel_levels), dim=config.dim)
        self.sizes = (self.fsq.codebook_size,)

    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes = self.fsq(vectors)
        return quantized, codes.unsqueeze(-1), {}

    def _look_up(self, codes: Tensor) -> Tensor:
        found: Tensor = self.fsq.indices_to_codes(codes.squeeze(-1))
        return found

    def compare(self, latents: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Channels as the library bounds them before it rounds, and as a code says they are: (B, H, W, channels)."""
        steps = torch.tensor(self.config.channel_levels)
        half = (steps - 1) * 1.001 / 2
        offset = torch.where(steps % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(self.fsq.project_in(latents) + torch.atanh(offset / half)) * half - offset
        return bounded, self.fsq.indices_to_level_indices(code) - steps // 2


_RESIDUAL: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of the library, options that are not its defaults
    "simvq": ("ResidualSimVQ", {}),
    "lfq": ("ResidualLFQ", {}),
    "vq": ("ResidualVQ", {"kmeans_init": True, "threshold_ema_dead_code": 2}),
}


class LibraryQuantizer(Adapter):
    """A quantizer of the library by name, residual where it has more than one level; one loss, "auxiliary"."""

    def __init__(self, config: LibraryQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        kind, options = _RESIDUAL[config.name]
        self.residual: Any = getattr(library, kind)(
            dim=config.dim, num_quantizers=config.levels, codebook_size=config.codewords, **options
        )
        self.sizes = (config.codewords,) * config.levels

    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes, losses = self.residual(vectors)
        return quantized, codes, {"auxiliary": losses.sum()}

    def _look_up(self, codes: Tensor) -> Tensor:
        left_out = len(self.sizes) - codes.shape[-1]
        found: Tensor = self.residual.get_output_from_indices(pad(codes, (0, left_out), value=-1))
        return found


class LibraryAutoencoder(SingleGridAutoencoder):
    """One latent grid, a quantizer of the library: SimVQ, LFQ, VectorQuantize or FSQ, by its configuration."""

    def __init__(self, config: FSQConfig | LibraryConfig, channels: int) -> None:
        own = config.quantizer
        quantizer = FSQQuantizer(own) if isinstance(own, FSQQuantizerConfig) else LibraryQuantizer(own)
        super().__init__(config, channels, quantizer)

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """FSQ's alone: of the others there are no graphs."""
        if not isinstance(self.quantizer, FSQQuantizer):
            return ()
        return (self.quantizer.compare(self.latents(unit_images(images, self.channels)), codes[0]),)
