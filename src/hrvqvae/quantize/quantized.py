"""What quantizers give and take: latents, codes and losses, and the check of codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.utils.errors import InputError

Codes = tuple[Tensor, ...]  #: int64 tensors (B, H_l, W_l), coarse first.


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization."""

    latents: Tensor  # (B, H, W, D) float32, with the straight-through gradient to the input
    codes: Codes
    losses: Mapping[str, Tensor]  # weighted terms, summed over the batch


def check_codes(codes: Codes, sizes: Sequence[int], scale: int = 1) -> None:
    """Raise InputError unless codes are int64 (B, H_l, W_l) of the first levels, less than the
    `sizes` of the levels.

    Each level has `scale` times the rows and columns of the coarser one. torch.compile leaves out
    the check of the values.
    """
    if not 1 <= len(codes) <= len(sizes):
        raise InputError(f"{len(codes)} levels of codes given; this model has 1 to {len(sizes)}")
    shape = codes[0].shape
    pairs = zip(codes, sizes, strict=False)
    for level, (code, size) in enumerate(pairs, start=1):
        if code.shape != shape or code.dtype != torch.long:
            raise InputError(
                f"level {level} has codes {code.dtype} {[*code.shape]}; expected int64 {[*shape]}"
            )

        # of the next level; () if a code is a scalar
        shape = torch.Size([*shape[:1], *(side * scale for side in shape[1:])])
        if torch.compiler.is_compiling() or not code.numel():
            continue
        lowest, highest = map(int, code.aminmax())
        if lowest < 0 or highest >= size:
            worst = lowest if lowest < 0 else highest
            raise InputError(f"level {level} has code {worst}; codes lie in 0..{size - 1}")
