"""Convolutional encoders and decoders (van den Oord et al. 2017, section 4.1; Razavi et al. 2019,
appendix).

Shapes: (B, C, Y, X) images, (B, hidden, H, W) features, H = Y / stride. A conditional decoder has
cases, which are numbers of levels of positions, or classes.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hrvqvae.config import NetworkConfig
from hrvqvae.config.schema import RefinerConfig


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv(relu(x + bias)))), with a learned bias per case (0 cases: no bias)."""

    def __init__(
        self, hidden: int, inner: int, kernel: int, dilation: int = 1, cases: int = 0
    ) -> None:
        super().__init__()
        if cases:
            self.case = nn.Embedding(cases, hidden)
            nn.init.zeros_(self.case.weight)
        self.spatial = nn.Conv2d(
            hidden, inner, kernel, padding=dilation * (kernel // 2), dilation=dilation
        )
        self.pointwise = nn.Conv2d(inner, hidden, 1)

    def forward(self, features: Tensor, case: Tensor | None = None) -> Tensor:
        biased = features if case is None else features + self.case(case).movedim(-1, 1)
        return features + self.pointwise(relu(self.spatial(relu(biased))))


class ResidualStack(nn.Sequential):
    """Residual blocks, then a relu."""

    def __init__(self, hidden: int, inner: int, kernel: int, blocks: int) -> None:
        super().__init__(*(ResidualBlock(hidden, inner, kernel) for _ in range(blocks)), nn.ReLU())


def _widths(hidden: int, stride: int) -> list[int]:
    """Return the number of features at half the image's size, a quarter, ..., 1 / stride."""
    steps = stride.bit_length() - 1  # log2(stride)
    return [hidden // 2, *[hidden] * (steps - 1)]


class Encoder(nn.Sequential):
    """Images (B, C, Y, X) to latents (B, D, Y / stride, X / stride); the stride is a power of two,
    at least 2.

    image -> [conv 4x4, stride 2, relu] x log2(stride) -> conv -> residual stack -> conv 1x1 ->
    latents
    """

    def __init__(self, config: NetworkConfig, channels: int, dim: int, stride: int) -> None:
        hidden = config.hidden_units
        kernel = config.kernel
        layers: list[nn.Module] = []
        widths = [channels, *_widths(hidden, stride)]
        for width, next_width in pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 4, stride=2, padding=1), nn.ReLU()]
        layers.append(nn.Conv2d(widths[-1], hidden, kernel, padding=kernel // 2))
        layers.append(ResidualStack(hidden, config.residual_units, kernel, config.residual_blocks))
        layers.append(nn.Conv2d(hidden, dim, 1))
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents (B, D, H, W) to images (B, C, H * stride, W * stride).

    latents -> conv -> residual stack -> [transposed conv 4x4, stride 2, relu] x (log2(stride) - 1)
            -> transposed conv 4x4, stride 2 -> image
    """

    def __init__(self, config: NetworkConfig, channels: int, dim: int, stride: int) -> None:
        hidden = config.hidden_units
        kernel = config.kernel
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden, kernel, padding=kernel // 2)]
        layers.append(ResidualStack(hidden, config.residual_units, kernel, config.residual_blocks))
        widths = [hidden, *reversed(_widths(hidden, stride)[:-1])]
        for width, next_width in pairwise(widths):
            layers += [nn.ConvTranspose2d(width, next_width, 4, stride=2, padding=1), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1))
        super().__init__(*layers)


class Refiner(nn.Module):
    """latents + conv1x1(relu(blocks(conv(latents)))), with latents (B, D, H, W); initialized as the
    identity.

    The convolutions of the blocks are dilated by 1, 1, 2, 2, 4, 4, ...; each block has a bias per
    case.
    """

    def __init__(self, config: RefinerConfig, dim: int, cases: int) -> None:
        super().__init__()
        hidden = config.hidden_units
        inner = max(1, hidden // 2)
        kernel = config.kernel
        self.inward = nn.Conv2d(dim, hidden, kernel, padding=kernel // 2)
        dilations = [2 ** (index // 2) for index in range(config.residual_blocks)]
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden, inner, kernel, dilation, cases) for dilation in dilations
        )
        self.outward = nn.Conv2d(hidden, dim, 1)
        for parameter in self.outward.parameters():
            nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, case: Tensor) -> Tensor:
        """Refine latents by the case of each position, int64, (B, H, W) or what can be broadcast
        to it.
        """
        features = self.inward(latents)
        for block in self.blocks:
            features = block(features, case)
        return latents + self.outward(relu(features))


class ConditionalDecoder(nn.Module):
    """Latents (B, D, H, W) to images (B, C, Y, X): a refiner, then a decoder. Both know the case.

    The decoder may be conditional, too, with the same cases.

    Args:
        num_classes: The cases are 0 without a class, and 1 + k for class k of so many; with None,
            they are l - 1 where a position has l levels.
    """

    def __init__(
        self, refiner: Refiner, decoder: nn.Module, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.refiner = refiner
        self.decoder = decoder
        self.num_classes = num_classes

    def choose_case(self, levels: Tensor, classes: Tensor | None) -> Tensor:
        """Return the case of each position.

        Args:
            levels: Number of levels of each position, (B, H, W) int64.
            classes: Of the images, (B,) int64, -1 without a class (None: all without).
        """
        if self.num_classes is None:
            return levels - 1
        if classes is None:
            return torch.zeros_like(levels)
        # a prior of other data may have more classes
        cases = torch.where(classes < self.num_classes, classes + 1, 0).to(levels.device)
        return cases.view(-1, 1, 1)

    def forward(self, latents: Tensor, case: Tensor) -> Tensor:
        refined = self.refiner(latents, case)
        if isinstance(self.decoder, ConditionalDecoder):
            return self.decoder(refined, case)
        return self.decoder(refined)
