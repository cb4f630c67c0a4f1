"""Classifiers that judge images: their networks, and how each of them is trained.

Shapes: images (B, C, Y, X) float32 in [0, 1], at least 8 pixels a side; labels (B,) int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, pad


class Classifier(nn.Module):
    """image -> body -> features (B, width) -> logits (B, classes)."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.width, self.head = body, width, nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, width), what the last layer sees."""
        seen: Tensor = self.body(images * 2 - 1)
        return seen

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int, *, halve: bool = False) -> list[nn.Module]:
    halved = [nn.MaxPool2d(2)] if halve else []
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *halved, nn.BatchNorm2d(outputs), nn.ReLU()]


def small_classifier(channels: int, classes: int) -> Classifier:
    """Two stages of convolutions, each halving the sides, and 128 features: for digits and the like."""
    parts = [
        *_convolution(channels, 16), *_convolution(16, 16), nn.MaxPool2d(2),
        *_convolution(16, 32), *_convolution(32, 32), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
    ]  # fmt: skip
    return Classifier(nn.Sequential(*parts, nn.Linear(512, 128), nn.ReLU()), 128, classes)


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, images: Tensor) -> Tensor:
        added: Tensor = images + self.branch(images)
        return added


def natural_classifier(channels: int, classes: int) -> Classifier:
    """A small network with 192 features, for natural images of some 32x32 pixels.

    It has the shape of the fast classifiers of CIFAR10, made narrow: 3x3 convolutions, the sides halved three times and
    before each normalization, a residual branch, the maximum over what is left (after D. Page, "How to train your
    ResNet", 2018, and K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
    """
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 2), nn.ReLU(), *_convolution(16, 32, halve=True), *_convolution(32, 32),
        *_convolution(32, 96, halve=True), *_convolution(96, 96), *_convolution(96, 192, halve=True), _Residual(192),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Classifier(body, 192, classes)


def turned_and_shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images turned by up to 0.15 radians and shifted by up to 8% of a side, each by its own draw."""
    turn = (torch.rand(len(images), generator=generator) * 2 - 1) * 0.15
    shift = (torch.rand(len(images), 2, generator=generator) * 2 - 1) * 0.08 * 2
    rows = torch.stack([turn.cos(), -turn.sin(), shift[:, 0], turn.sin(), turn.cos(), shift[:, 1]], 1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(rows, list(images.shape), align_corners=False), align_corners=False)


def shifted_and_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images shifted by up to an eighth of a side, the border mirrored, and half of them flipped left to right."""
    count, _, height, width = images.shape
    reach = height // 8
    padded = pad(images, (reach, reach, reach, reach), mode="reflect")
    down, right = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    flipped = torch.rand(count, generator=generator) < 0.5
    columns = torch.arange(width)
    across = right[:, None] + torch.where(flipped[:, None], width - 1 - columns, columns)
    along = down[:, None] + torch.arange(height)
    return padded[torch.arange(count)[:, None, None], :, along[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is made and trained: AdamW, with one cycle of the learning rate.

    Attributes:
        network: (channels, classes) -> the classifier.
        augment: moves the images of a batch, each by its own draw.
    """

    network: Callable[[int, int], Classifier]
    augment: Callable[[Tensor, torch.Generator], Tensor]
    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0


SMALL = Recipe(network=small_classifier, augment=turned_and_shifted, epochs=4)
"""For images of digits and the like: a minute."""

NATURAL = Recipe(
    network=natural_classifier, augment=shifted_and_mirrored, epochs=8, learning_rate=5e-3, weight_decay=0.05,
    label_smoothing=0.1,
)  # fmt: skip
"""For natural images of some 32x32 pixels: half an hour to an hour on two CPU cores."""
