"""Objectives of systems: the losses, and the order in which networks are updated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol

from torch import Tensor, nn

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes

Metrics = Mapping[str, float | Tensor]
"""Values by name; on a GPU scalar tensors, so that a step does not wait for them."""
Place = Callable[[nn.Module], object]
"""Moves a network to the device and memory format of the training."""

MODEL = "model"  # the model's name among the networks of a learner


class Learner(Protocol):
    """Updates the model and its auxiliary networks for an objective."""

    step: int  # steps before this update

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in the precision of the run."""

    def take_gradient(self, losses: Mapping[str, Tensor], of: str = MODEL) -> Metrics:
        """Compute a network's gradient of the sum of the losses; return the terms, "loss" and "gradient_norm".

        Raises NonFiniteError if a term or the gradient is NaN or infinite, on a CPU.
        """

    def update(self, *names: str) -> None:
        """Update networks by their gradients."""


class Objective(ABC):
    """Updates the networks of a system from batches of images."""

    auxiliary: Mapping[str, nn.Module] = MappingProxyType({})  # trained beside the model, by name, on its device

    @abstractmethod
    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        """Update from images (B, C, Y, X) uint8, in training mode; return the values to log and the codes."""


class SumOfLosses(Objective):
    """Minimize the sum of the model's losses."""

    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None:
        self.model = model

    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        with learner.autocast():
            result = self.model(images)
        metrics = learner.take_gradient(result.losses)
        learner.update(MODEL)
        return metrics, result.codes
