"""What turns gradients into steps: Adam, or Muon for the weights between layers and Adam for the rest; their rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hrvqvae.config import StageConfig

_ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024
_ITERATIONS = 5
_MOMENTUM = 0.95
_LIKE_ADAM = 0.2  # root mean square of an entry of Adam's usual step, in learning rates (Liu et al. 2025)
_FEWEST_CHANNELS = 4  # on both sides of a weight that is taken as a matrix: not of those that see or make pixels


def make_optimizer(module: nn.Module, config: StageConfig) -> Optimizer:
    """The optimizer of a network that a stage's configuration asks for."""
    betas = (0.9, config.adam_beta2)
    if config.optimizer == "muon":
        return Muon(module, config.learning_rate, betas)
    return Adam(module.parameters(), lr=config.learning_rate, betas=betas, fused=True)


def learning_rate(config: StageConfig, step: int, fraction: float) -> float:
    """Rate of a step, `fraction` of the budget being spent: constant, or linear warm-up and a cosine down to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T (n, k), roughly: all singular values that are not tiny come to lie near 1.

    By five steps of Newton and Schulz's iteration with coefficients that bring small values up fast, so that the values
    end between 0.7 and 1.2 (Jordan et al. 2024). 0 stays 0.
    """
    first, third, fifth = _ITERATION
    tall = matrix.shape[0] > matrix.shape[1]
    found: Tensor = matrix.T if tall else matrix
    found = found / (found.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = found @ found.T
        found = first * found + (third * square + fifth * square @ square) @ found
    return found.T if tall else found


def matrix_weights(module: nn.Module) -> list[Tensor]:
    """Weights that are taken as matrices: filters of convolutions and weights of linear layers, with enough channels.

    Not among them are those that see or make pixels, embeddings, codewords, biases and scales.
    """
    linear = {id(one.weight) for one in module.modules() if isinstance(one, nn.Linear)}
    found = [one for one in module.parameters() if one.ndim == 4 or id(one) in linear]  # each once, tied ones too
    return [one for one in found if min(one.shape[:2]) >= _FEWEST_CHANNELS]


class Muon(Adam):
    """Momentum whose matrices are orthogonalize before the step (Jordan et al. 2024); Adam for all that is no matrix.

    A filter (outputs, inputs, rows, columns) is the matrix (outputs, inputs * rows * columns); that of a transposed
    convolution, which torch keeps as (inputs, outputs, rows, columns), is (inputs, outputs * rows * columns). The step
    is the learning rate times 0.2 * sqrt(the longer side) times the orthogonal matrix. Its entries are about as large
    as those of Adam's steps, so that both take the same learning rate (Liu et al. 2025). `torch.optim.Muon` takes no
    filters, and has no Adam beside it.

    Args:
        module: whose parameters are trained; `matrix_weights` says which are taken as matrices.
        learning_rate: of both.
        betas: decays of Adam's moments.
    """

    def __init__(self, module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> None:
        orthogonal = matrix_weights(module)
        chosen = {id(one) for one in orthogonal}
        rest = [one for one in module.parameters() if id(one) not in chosen]
        groups = [{"params": orthogonal, "orthogonal": True}, {"params": rest, "orthogonal": False}]
        super().__init__([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # Adam's own asks every parameter for a number of steps

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        groups = self.param_groups
        for group in groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._orthogonal_step(parameter, parameter.grad, group["lr"])
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        super().step()
        self.param_groups = groups

    def _orthogonal_step(self, parameter: Tensor, gradient: Tensor, learning_rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(momentum, _MOMENTUM).flatten(1).float()
        scale = _LIKE_ADAM * math.sqrt(max(ahead.shape))
        parameter.add_(orthogonalize(ahead).view(parameter.shape), alpha=-learning_rate * scale)
