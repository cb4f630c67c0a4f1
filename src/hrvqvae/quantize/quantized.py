"""What every quantizer gives and takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.utils.errors import InputError

Codes = tuple[Tensor, ...]
"""int64 tensors (B, H_l, W_l), coarse first."""


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization."""

    latents: Tensor  # (B, H, W, D) float32, with the straight-through gradient of what came in
    codes: Codes
    losses: Mapping[str, Tensor]  # codebook and commitment terms, beta included; squared errors summed over the batch


def check_codes(code: Tensor, shape: Sequence[int], size: int, level: int) -> None:
    """Raises InputError where a level's codes are not int64 (B, H, W) of that shape in [0, size).

    Values are not known while a graph is traced, and are not looked at then.
    """
    if code.shape != tuple(shape) or code.dtype != torch.long:
        raise InputError(f"level {level} has codes {code.dtype} {tuple(code.shape)}; expected int64 {tuple(shape)}")
    if not torch.compiler.is_compiling() and code.numel() and (code.min() < 0 or code.max() >= size):
        worst = int(code.min()) if code.min() < 0 else int(code.max())
        raise InputError(f"level {level} has code {worst}; codes lie in 0..{size - 1}")
