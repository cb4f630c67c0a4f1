"""The state of a training between two steps: weights, moving average, optimizer, step, and seconds
spent.

The state holds no random generator: every draw depends on the seed and on its place (step, rank,
epoch, image).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from hrvqvae import distributed
from hrvqvae.config import TrainingConfig
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.training.optimizers import make_optimizer
from hrvqvae.utils.errors import InputError, NonFiniteError

_NORM = "gradient_norm"
# parts of a prior whose shapes depend on classes, copies and the kind of output
_PARTS = {"classes", "copies", "heads"}


def make_step_rng(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's random draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def count_parameters(model: nn.Module) -> int:
    """Count the trained values of a model: parameters, and codewords that follow moving
    averages.
    """
    buffers = model.named_buffers()
    codewords = (tensor for name, tensor in buffers if f".{name}".endswith(".codewords"))
    return sum(tensor.numel() for tensor in (*model.parameters(), *codewords))


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model. A part of `_PARTS` with other shapes keeps its new values.

    Raises InputError, which names the `source`, if another weight is missing, unknown or of another
    shape.
    """
    here = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    there = {name: list(weight.shape) for name, weight in weights.items()}
    kept = set()
    for name in here | there:
        shapes = (there.get(name), here.get(name))
        if shapes[0] == shapes[1]:
            continue
        part = name.split(".")[0]
        if part not in _PARTS:
            raise InputError(
                f"{source} does not fit: {name} is {shapes[0]} there, {shapes[1]} here"
            )
        kept.add(part)
    copied = {name: weights[name] for name in weights if name.split(".")[0] not in kept}
    model.load_state_dict(copied, strict=False)


def read_finite(metrics: Metrics, step: int) -> dict[str, float]:
    """Return metrics as floats; a GPU is waited for. Raises NonFiniteError if the loss or the norm
    of a gradient is NaN or infinite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if (name == "loss" or name.endswith(_NORM)) and not math.isfinite(value):
            raise NonFiniteError(
                f"step {step}: {name} is {value}; the step was not saved: try a lower learning rate"
                " in a new run"
            )
    return values


class MovingAverage(AveragedModel):
    """The exponential moving average of a model's weights and codewords; integers are copied.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten, also in a training that is shorter than the average.
    """

    module: Any

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._mix, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def _mix(self, averaged: Any, current: Any, _: Any) -> None:
        if not averaged[0].is_floating_point():  # each call gets tensors of one type
            torch._foreach_copy_(averaged, current)
            return
        updates = int(self.n_averaged)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(averaged, current, 1 - decay)


class TrainedNetwork(NamedTuple):
    """A network, its optimizer, and the exchange of its gradients."""

    module: nn.Module
    optimizer: Optimizer
    pass_loss: nn.Module  #: maps a loss to itself (`distributed.average_gradients`)
    prefix: str  #: the names of its tensors in a checkpoint begin with it


@dataclass
class TrainState:
    """The networks and the progress of a training."""

    networks: dict[str, TrainedNetwork]  #: the model and the networks trained beside it, by name
    #: moving average of the model's weights and codewords (docs/paper-tables.md, Table 6)
    averaged: MovingAverage
    max_steps: float = math.inf  #: the training ends after so many steps
    max_seconds: float = math.inf  #: or after so many seconds
    step: int = 0  #: steps taken
    seconds: float = 0.0  #: wall-clock time spent, evaluation included, over all resumptions
    #: metrics of the steps since the last log
    unlogged: list[Metrics] = field(default_factory=list)

    @staticmethod
    def start(
        model: nn.Module,
        config: TrainingConfig,
        auxiliary: Mapping[str, nn.Module] | None = None,
        num_samples: int = 0,
    ) -> TrainState:
        """Return the state before the first step. An epoch has `num_samples` samples; `model` and
        `auxiliary` are on the device of the training.
        """
        averaged = MovingAverage(model, config.polyak_decay)
        networks = {}
        for name, module in {MODEL: model, **(auxiliary or {})}.items():
            networks[name] = TrainedNetwork(
                module,
                make_optimizer(module, config),
                distributed.average_gradients(module),
                prefix="" if name == MODEL else f"{name}_",
            )
        max_steps = config.max_steps or math.inf
        if config.epochs:
            epoch_steps = num_samples * config.epochs // config.batch_size
            max_steps = min(max_steps, max(1, epoch_steps))
        max_seconds = config.max_minutes * 60 or math.inf
        return TrainState(networks, averaged, max_steps, max_seconds)

    @property
    def model(self) -> Any:
        """The network of the task."""
        return self.networks[MODEL].module

    @property
    def fraction(self) -> float:
        """The spent share of the budget: the larger of the shares of steps and of seconds."""
        return max(self.step / self.max_steps, self.seconds / self.max_seconds)

    def minimize(self, losses: Mapping[str, Mapping[str, Tensor]]) -> Metrics:
        """Update each named network with the gradient of the sum of its losses. The gradient is the
        mean over all processes.

        Returns:
            The mean over all processes of each loss of the model by name, their sum "loss", and
            the "gradient_norm". Another network adds only the sum of its losses, by the name of the
            network, and the norm of its gradient. On a GPU the values stay there; they are checked
            when they are logged.

        Raises:
            NonFiniteError: on a CPU, before any update, if the loss of the model or a gradient is
                NaN or infinite.
        """
        metrics: dict[str, float | Tensor] = {}
        for name, terms in losses.items():
            # compute the gradient
            network = self.networks[name]
            network.optimizer.zero_grad()
            stacked = torch.stack(list(terms.values()))
            network.pass_loss(stacked.sum()).backward()

            # collect the metrics
            (means,) = distributed.all_reduce_mean([stacked.detach()])
            means = means.double()
            weights = network.module.parameters()
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if name == MODEL:
                metrics |= zip(terms, means, strict=True)
                metrics |= {"loss": means.sum(), _NORM: norm}
            else:
                metrics |= {name: means.sum(), f"{name}_{_NORM}": norm}

        if norm.device.type == "cpu":
            metrics = dict(read_finite(metrics, self.step))
        for name in losses:
            self.networks[name].optimizer.step()
        return metrics

    def read_unlogged(self) -> list[dict[str, float]]:
        """Return the metrics of the steps since the last log; raise as `read_finite`."""
        first = self.step - len(self.unlogged)
        return [read_finite(metrics, step) for step, metrics in enumerate(self.unlogged, first)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by their names in a checkpoint."""
        groups = {"averaged": self.averaged.state_dict()}
        for network in self.networks.values():
            groups[f"{network.prefix}model"] = network.module.state_dict()
            for index, moments in network.optimizer.state_dict()["state"].items():
                groups[f"{network.prefix}optimizer.{index}"] = moments
        return {
            f"{group}.{name}": tensor
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
        }

    def meta(self) -> dict[str, Any]:
        """Return the rest of the state, as plain values. Raises as `read_unlogged`."""
        return {"step": self.step, "seconds": self.seconds, "window": self.read_unlogged()}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore a saved state bit for bit."""

        def select(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }

        for network in self.networks.values():
            network.module.load_state_dict(select(f"{network.prefix}model."))
            _restore_moments(network.optimizer, select(f"{network.prefix}optimizer."))
        self.averaged.load_state_dict(select("averaged."))
        self.step = meta["step"]
        self.seconds = meta["seconds"]
        self.unlogged = meta["window"]


def _restore_moments(optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Restore moments from names such as "3.exp_avg": parameter index and key."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = defaultdict[int, dict[str, Tensor]](dict)
    for name, tensor in moments.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]

        # The fused optimizer pairs elements by their order in memory. A tensor that was read is
        # contiguous, a parameter may be channels-last: give the tensor the parameter's strides.
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        state[int(index)][key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
