"""What every quantizer gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Codes = tuple[Tensor, ...]
"""int64 tensors (B, H_l, W_l), coarse first."""


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization.

    Attributes:
        latents: (B, H, W, D) float32, the quantized ones, with the straight-through gradient of what came in.
        codes: a tensor (B, H, W) int64 for each level that the quantizer has.
        losses: the codebook and commitment terms by name, beta included; each a scalar, the squared error summed over
            the batch, as printed.
    """

    latents: Tensor
    codes: Codes
    losses: Mapping[str, Tensor]
