"""The contract of a distance between images by the features of a network, named for what it is in every log and table.

Shapes: images (B, C, Y, X) float32 in [0, 1], C is 1 or 3; a reconstruction may lie outside that range a little.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class PerceptualDistance(nn.Module, ABC):
    """A distance between two batches of images; its network is never trained.

    Attributes:
        name: as the configuration and the log have it.
        title: its true name, for people.
    """

    name: str
    title: str

    @staticmethod
    @abstractmethod
    def there() -> bool:
        """Whether its network is on this machine."""

    @abstractmethod
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Distance between two batches, mean over the batch: a scalar, with the gradient of either."""


def three_channels(images: Tensor) -> Tensor:
    """(B, 3, Y, X): greyscale images as grey ones in colour."""
    return images.expand(-1, 3, -1, -1)
