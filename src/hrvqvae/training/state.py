"""What a run must remember between two steps, and its form on disk.

The order of the data, the augmentation and every random draw depend on (seed, step) alone, so the state is the weights,
their moving average, the optimizer, the step, and the seconds spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrvqvae.config import TrainingConfig
from hrvqvae.training.optimizers import make_optimizer
from hrvqvae.utils.errors import DamagedFileError


@dataclass
class AuxiliaryNetwork:
    """A network that is trained beside the model, such as a discriminator, and its own optimizer."""

    module: nn.Module
    optimizer: Optimizer


@dataclass
class TrainState:
    """Model, averaged model, optimizer, and how far they are.

    Attributes:
        model: what is trained.
        averaged: moving average of its weights (Polyak averaging, docs/paper-tables.md, Table 6) and of its codewords,
            which belong together.
        optimizer: of the model's weights.
        auxiliary: what is trained beside the model, by name.
        step: steps taken.
        seconds: wall-clock time spent in training, evaluation included, over all resumptions.
    """

    model: nn.Module
    averaged: AveragedModel
    optimizer: Optimizer
    auxiliary: dict[str, AuxiliaryNetwork] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0

    @staticmethod
    def start(
        model: nn.Module, config: TrainingConfig, auxiliary: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> TrainState:
        averaged = AveragedModel(model, multi_avg_fn=_moving_average(config.polyak_decay), use_buffers=True)
        beside = {name: AuxiliaryNetwork(one, make_optimizer(one, config)) for name, one in auxiliary.items()}
        return TrainState(model, averaged, make_optimizer(model, config), beside)

    def _trained(self) -> dict[str, tuple[nn.Module, Optimizer]]:
        """Prefix of the names on disk -> what is trained there, and by which optimizer."""
        trained = {"": (self.model, self.optimizer)}
        return trained | {f"{name}_": (one.module, one.optimizer) for name, one in self.auxiliary.items()}

    @property
    def optimizers(self) -> list[Optimizer]:
        """Every optimizer."""
        return [optimizer for _, optimizer in self._trained().values()]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name."""
        named = {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for prefix, (module, optimizer) in self._trained().items():
            named |= {f"{prefix}model.{name}": tensor for name, tensor in module.state_dict().items()}
            for index, values in optimizer.state_dict()["state"].items():
                named |= {f"{prefix}optimizer.{index}.{name}": tensor for name, tensor in values.items()}
        return named

    @property
    def device(self) -> str:
        """Kind of device that the model is on."""
        return next(self.model.parameters()).device.type

    def meta(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "device": self.device}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take a state back, bit for bit.

        Raises:
            DamagedFileError: it is of another model.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        try:
            for prefix, (module, _) in self._trained().items():
                module.load_state_dict(part(f"{prefix}model."))
            self.averaged.load_state_dict(part("averaged."))
            self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        except (RuntimeError, KeyError) as error:
            raise DamagedFileError("the checkpoint does not fit the run's configuration") from error
        for prefix, (_, optimizer) in self._trained().items():
            _restore(optimizer, part(f"{prefix}optimizer."))


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """torch's, but for whole numbers, which have no mean: the averaged model takes those of the model."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def follow(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        if averaged[0].is_floating_point():  # torch hands in one type at a time
            average(averaged, current, steps)
        else:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    return follow


def _restore(optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Give an optimizer its moments back, from names such as "3.exp_avg"."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        if tensor.shape == like.shape:  # the optimizer walks memory: moments need their weight's memory format
            tensor = torch.empty_like(like).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
