"""The encoder and decoder of `convolutional.py` with normalized residual blocks, and without transposed convolutions.

A transposed convolution with stride 2 can treat its four output phases differently and draws a grid, which is seen in
photographs. Here a convolution gives four values a position, which are laid out as 2x2 pixels (Shi et al. 2016); its
four kernels begin equal (Aitken et al. 2017), so that no phase differs at the start.

The normalization is over the channels of each position, not over positions, so that what a position becomes does not
depend on how large the image is.

Shapes: (B, C, Y, X) images, (B, hidden, H, W) features, H = Y / stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrvqvae.nn.convolutional import halvings


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each position: (B, C, H, W) kept (Ba et al. 2016)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormalizedBlock(nn.Module):
    """x + conv1x1(silu(norm(conv(silu(norm(x)))))), whose last convolution begins at zero: shape kept."""

    def __init__(self, hidden: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(hidden), nn.SiLU(), nn.Conv2d(hidden, inner, kernel, padding=kernel // 2),
            ChannelNorm(inner), nn.SiLU(), nn.Conv2d(inner, hidden, 1),
        )  # fmt: skip
        last = self.residual[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.residual(features)
        return features + residual


class NormalizedStack(nn.Sequential):
    """Residual blocks, a last normalization and SiLU: shape kept."""

    def __init__(self, hidden: int, inner: int, kernel: int, blocks: int) -> None:
        super().__init__(
            *(NormalizedBlock(hidden, inner, kernel) for _ in range(blocks)), ChannelNorm(hidden), nn.SiLU()
        )


class Enlarge(nn.Sequential):
    """(B, wide, H, W) -> (B, narrow, 2 H, 2 W), by a convolution whose four kernels of a channel begin equal."""

    def __init__(self, wide: int, narrow: int) -> None:
        convolution = nn.Conv2d(wide, 4 * narrow, 3, padding=1)
        with torch.no_grad():
            convolution.weight.copy_(convolution.weight[::4].repeat_interleave(4, 0))
            assert convolution.bias is not None
            convolution.bias.copy_(convolution.bias[::4].repeat_interleave(4, 0))
        super().__init__(convolution, nn.PixelShuffle(2))


class NormalizedEncoder(nn.Sequential):
    """(B, C, Y, X) -> (B, D, Y / stride, X / stride); the stride is a power of two, at least 2.

    image -> [conv 4x4, stride 2, silu] x log2(stride) -> conv -> residual stack -> conv 1x1 -> latents
    """

    def __init__(
        self, *, channels: int, dim: int, stride: int, hidden: int, inner: int, blocks: int, kernel: int
    ) -> None:
        layers: list[nn.Module] = []
        width = channels
        for step in range(halvings(stride)):
            wider = hidden // 2 if step == 0 else hidden
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.SiLU()]
            width = wider
        layers.append(nn.Conv2d(width, hidden, kernel, padding=kernel // 2))
        layers.append(NormalizedStack(hidden, inner, kernel, blocks))
        layers.append(nn.Conv2d(hidden, dim, 1))
        super().__init__(*layers)


class NormalizedDecoder(nn.Sequential):
    """(B, D, H, W) -> (B, C, H * stride, W * stride): the encoder's mirror.

    latents -> conv -> residual stack -> [enlarge twofold, silu] x (log2(stride) - 1) -> enlarge twofold
    """

    def __init__(
        self, *, channels: int, dim: int, stride: int, hidden: int, inner: int, blocks: int, kernel: int
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden, kernel, padding=kernel // 2)]
        layers.append(NormalizedStack(hidden, inner, kernel, blocks))
        width = hidden
        for step in reversed(range(1, halvings(stride))):
            narrower = hidden // 2 if step == 1 else hidden
            layers += [Enlarge(width, narrower), nn.SiLU()]
            width = narrower
        layers.append(Enlarge(width, channels))
        super().__init__(*layers)
