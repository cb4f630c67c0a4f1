"""How a system learns: what it minimizes, and in which order. The training loop hands in the way to take a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol, TypeVar

from torch import Tensor, nn

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes

M = TypeVar("M", bound=nn.Module)
Metrics = Mapping[str, float]

MODEL = "model"
"""The name under which an objective asks for the model itself."""


class Place(Protocol):
    """Brings a network to the device and memory format of the training, and gives it back."""

    def __call__(self, model: M, /) -> M: ...


class Learner(Protocol):
    """What an objective may do to what is trained: the model, and the auxiliary networks it named.

    Attributes:
        step: steps taken before this one.
    """

    step: int

    def autocast(self) -> AbstractContextManager[None]:
        """Forward passes within compute in the precision of the run."""

    def take_gradient(self, losses: Mapping[str, Tensor], of: str = MODEL) -> dict[str, float]:
        """Give a network the gradient of the sum of the losses, and update nothing.

        Args:
            of: the model, or the name of an auxiliary network.

        Returns:
            The terms, their sum ("loss") and the gradient's norm ("gradient_norm").

        Raises:
            NonFiniteError: a term or the gradient is NaN or infinite.
        """

    def update(self, *names: str) -> None:
        """Move the model, or auxiliary networks, by the gradients they were given."""


class Objective(ABC):
    """One update of a system from a batch of images.

    Attributes:
        auxiliary: what is trained beside the model, such as a discriminator, by name; on its device.
    """

    auxiliary: Mapping[str, nn.Module] = MappingProxyType({})

    @abstractmethod
    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        """Update from images (B, C, Y, X) uint8, in training mode; -> what is logged, and the batch's codes."""


class SumOfLosses(Objective):
    """Minimize the sum of the losses that the model names."""

    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None:
        self.model = model

    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        with learner.autocast():
            result = self.model(images)
        metrics = learner.take_gradient(result.losses)
        learner.update(MODEL)
        return metrics, result.codes
