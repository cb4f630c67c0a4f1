"""What quantizers give and take: latents, codes and losses, and the check of codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.utils.errors import InputError

QUALITIES = 8  # of files in which each position stops at a level of its own
Codes = tuple[Tensor, ...]
"""int64 tensors (B, H_l, W_l), coarse first. On one grid, a position may stop after any level: its
codes of all finer levels are -1."""


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization."""

    latents: Tensor  # (B, H, W, D) float32, with the straight-through gradient to the input
    codes: Codes
    losses: Mapping[str, Tensor]  # weighted terms, summed over the batch


def count_levels(codes: Codes) -> Tensor:
    """Return the number of levels of each position, (B, H, W) int64, before it stops."""
    return (torch.stack(codes) >= 0).sum(0)


def choose_depths(distances: Tensor, prices: Tensor) -> Tensor:
    """Return how many levels each position keeps, (B, H, W) int64: those of the least sum of
    distance and price (Chou, Lookabaugh and Gray 1989).

    Arguments are `ResidualQuantizer.prefix_distances` and `ResidualQuantizer.price_bits`.
    """
    return (distances + prices).argmin(0) + 1


def stop_at(codes: Codes, depths: Tensor) -> Codes:
    """Return codes whose positions stop after `depths` (B, H, W) levels."""
    return tuple(torch.where(level < depths, code, -1) for level, code in enumerate(codes))


def check_codes(codes: Codes, sizes: Sequence[int], scale: int = 1) -> None:
    """Raise InputError unless codes are int64 (B, H_l, W_l) of the first levels, less than the
    `sizes` of the levels, or -1 where a position has stopped.

    Each level has `scale` times the rows and columns of the coarser one; only with equal grids may
    positions stop. torch.compile leaves out the check of the values.
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
        least = -1 if level > 1 and scale == 1 else 0
        if lowest < least or highest >= size:
            worst = lowest if lowest < least else highest
            raise InputError(f"level {level} has code {worst}; codes lie in 0..{size - 1}")
        if least and bool(((code >= 0) & (codes[level - 2] < 0)).any()):
            raise InputError(f"level {level} has codes at positions that have stopped before it")
