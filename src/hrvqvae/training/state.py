"""What a run must remember between two steps, and its form on disk.

The order of the data, the augmentation and every random draw depend on (seed, step) alone, so the state is the weights,
their moving average, the optimizer, the step, and the seconds spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrvqvae.config import TrainingConfig
from hrvqvae.errors import DamagedFileError


@dataclass
class TrainState:
    """Model, averaged model, optimizer, and how far they are.

    Attributes:
        model: what is trained.
        averaged: moving average of its weights (Polyak averaging, Table 6); buffers are the model's own.
        optimizer: Adam.
        step: steps taken.
        seconds: wall-clock time spent in training, evaluation included, over all resumptions.
    """

    model: nn.Module
    averaged: AveragedModel
    optimizer: Optimizer
    step: int = 0
    seconds: float = 0.0

    @staticmethod
    def start(model: nn.Module, config: TrainingConfig) -> TrainState:
        average = get_ema_multi_avg_fn(config.polyak_decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(model, multi_avg_fn=average)
        optimizer = Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=True)
        return TrainState(model, averaged, optimizer)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name."""
        named = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        named |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
        return named

    def meta(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take a state back, bit for bit.

        Raises:
            DamagedFileError: it is of another model.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            self.averaged.load_state_dict(part("averaged."))
            self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        except (RuntimeError, KeyError) as error:
            raise DamagedFileError("the checkpoint does not fit the run's configuration") from error
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".", 1)
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # the optimizer walks memory: moments need their weight's memory format
                tensor = torch.empty_like(like).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
