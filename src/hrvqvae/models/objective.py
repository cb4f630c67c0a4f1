"""Objectives, which update the networks of a system from batches of images."""

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
"""Values to log, by name. On a GPU they are scalar tensors, so that a step does not wait for the
GPU.
"""
MoveNetwork = Callable[[nn.Module], object]
"""Moves a network to the device and memory format of the training."""

MODEL = "model"  # the model's name among the networks of a learner


class Learner(Protocol):
    """Computes the gradients and the updates that an objective asks for."""

    step: int  # number of completed steps

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in the precision of the run."""

    def take_gradient(self, losses: Mapping[str, Tensor], of: str = MODEL) -> Metrics:
        """Compute a network's gradient of the sum of the losses; return each loss, "loss" (the
        sum), "gradient_norm".

        Raises NonFiniteError, on a CPU, if a loss or the gradient is NaN or infinite. `of` is the
        network's name.
        """

    def update(self, *names: str) -> None:
        """Update networks, given by name, with the gradients of `take_gradient`."""


class Objective(ABC):
    """Updates the networks of a system from batches of images."""

    auxiliary: Mapping[str, nn.Module] = MappingProxyType({})  # further networks to train, by name

    @abstractmethod
    def __init__(self, model: Autoencoder, config: Config, move: MoveNetwork) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        """Take a training step with images (B, C, Y, X) uint8; return the values to log and the
        codes of the images.
        """


class SumOfLosses(Objective):
    """Minimize the sum of the model's losses."""

    def __init__(self, model: Autoencoder, config: Config, move: MoveNetwork) -> None:
        self.model = model

    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        with learner.autocast():
            result = self.model(images)
        metrics = learner.take_gradient(result.losses)
        learner.update(MODEL)
        return metrics, result.codes
