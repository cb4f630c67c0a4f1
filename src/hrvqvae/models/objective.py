"""Objectives, which compute the losses of a system's networks from batches of images."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from hrvqvae.config import Config
from hrvqvae.quantize import Codes

Metrics = Mapping[str, float | Tensor]
"""Values to log, by name. On a GPU they are scalar tensors, so that a step does not wait for the
GPU.
"""
MODEL = "model"  # the model's name among the networks of a training


class Goal(NamedTuple):
    """What a training step minimizes and logs."""

    losses: Mapping[str, Mapping[str, Tensor]]  #: of each network by name; their sum is minimized
    metrics: Metrics  #: further values to log
    codes: Codes  #: of the images


class Objective(nn.Module):
    """The sum of the model's losses, and the base class of other objectives.

    Args:
        config: The configuration of the run.

    Raises:
        InputError: A network that the objective needs is missing on this machine.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.auxiliary: Mapping[str, nn.Module] = {}  #: further networks to train, by name

    def forward(self, model: nn.Module, images: Tensor, step: int) -> Goal:
        """Return the losses of a training step for images (B, C, Y, X) uint8; `step` counts from 0.

        It is called inside the autocast context of the run.
        """
        result = model(images)
        return Goal({MODEL: result.losses}, {}, result.codes)
