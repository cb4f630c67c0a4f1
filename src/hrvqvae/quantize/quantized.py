"""The interface of all quantizers, and checks of their input."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae.utils.errors import InputError

Codes = tuple[Tensor, ...]  #: int64 tensors (B, H_l, W_l), coarse first.


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization."""

    latents: Tensor  # (B, H, W, D) float32, with the straight-through gradient to the input
    codes: Codes
    losses: Mapping[str, Tensor]  # weighted terms, summed over the batch


class Quantizer(nn.Module, ABC):
    """Base class of quantizers: latents (B, H, W, D) become codes (B, H, W) of each level, and
    latents again.
    """

    config: Any  # its field `dim` is D

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Quantize; in training mode, update the codewords.

        Raises:
            NonFiniteError: A latent is not finite.
        """

    @abstractmethod
    def encode(self, latents: Tensor) -> Codes:
        """Return only the codes, and update nothing; raise the same errors as `forward`."""

    @abstractmethod
    def lookup(self, codes: Codes, *, check: bool = True) -> Tensor:
        """Return latents (B, H, W, D) for codes of the first levels.

        With `check` raise InputError for wrong codes; this waits for a GPU.
        """

    def codeword_indices(self, codes: Codes) -> Codes:
        """Return, in the shapes of the codes, the index of each codeword among all codewords of its
        level.
        """
        return codes

    def initialize(self, latents: Tensor, rng: torch.Generator, weight: float = 1.0) -> None:
        """Start the codewords from latents (..., D); each latent adds `weight` to the count of its
        codeword.
        """

    def restart_dead_codes(self, latents: Tensor, rng: torch.Generator) -> int:
        """Move dead codewords to latents (..., D) of a training batch; return how many moved."""
        return 0


def check_codes(codes: Codes, sizes: Sequence[int], scale: int = 1) -> None:
    """Raise InputError unless codes are int64 (B, H_l, W_l) of the first levels, less than the
    `sizes` of the levels.

    Each level has `scale` times the rows and columns of the coarser one. torch.compile leaves out
    the check of the values.
    """
    if not 1 <= len(codes) <= len(sizes):
        raise InputError(f"{len(codes)} levels of codes given; this model has 1 to {len(sizes)}")
    shape: tuple[int, ...] = tuple(codes[0].shape)
    pairs = zip(codes, sizes, strict=False)
    for level, (code, size) in enumerate(pairs, start=1):
        if code.shape != shape or code.dtype != torch.long:
            raise InputError(
                f"level {level} has codes {code.dtype} {tuple(code.shape)}; expected int64 {shape}"
            )
        shape = (*shape[:1], *(side * scale for side in shape[1:]))  # of the next level
        if torch.compiler.is_compiling() or not code.numel():
            continue
        lowest, highest = map(int, code.aminmax())
        if lowest < 0 or highest >= size:
            worst = lowest if lowest < 0 else highest
            raise InputError(f"level {level} has code {worst}; codes lie in 0..{size - 1}")
