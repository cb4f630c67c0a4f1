"""Images that need not fill their latent grid: grown before encoding, cropped after decoding."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from hrvqvae.config import Grid
from hrvqvae.utils.errors import InputError


def framed(images: Tensor, padding: int, height: int, width: int) -> Tensor:
    """(B, C, Y, X) in [0, 1] -> (B, C, height, width) in [-1, 1], with `padding` pixels above and to the left.

    The border is repeated. What was added is cropped after decoding and never enters a loss.
    """
    below, right = height - images.shape[-2] - padding, width - images.shape[-1] - padding
    return pad(images * 2 - 1, (padding, right, padding, below), mode="replicate")


def cropped(decoded: Tensor, padding: int, size: Grid | None) -> Tensor:
    """A decoder's output without what `framed` added, float32, not clamped; None is the largest size there is.

    Raises:
        InputError: the size does not fit.
    """
    largest = (decoded.shape[-2] - 2 * padding, decoded.shape[-1] - 2 * padding)
    height, width = size or largest
    if not (1 <= height <= largest[0] and 1 <= width <= largest[1]):
        raise InputError(f"size {height}x{width} does not fit these codes; at most {largest[0]}x{largest[1]}")
    return decoded[..., padding : padding + height, padding : padding + width].float()
