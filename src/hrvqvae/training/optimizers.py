"""Optimizers and the learning rate: Adam alone, or Muon for matrices and Adam for the other
parameters.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hrvqvae.config import StageConfig

_ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024
_ITERATIONS = 5
_MOMENTUM = 0.95
# root mean square of the entries of Adam's usual step, in learning rates (Liu et al. 2025)
_ADAM_STEP = 0.2
_MIN_CHANNELS = 4  # inputs and outputs of a matrix; layers that read or write pixels have fewer


def make_optimizer(module: nn.Module, config: StageConfig) -> Optimizer:
    """Return the optimizer of a stage's configuration for the parameters of a network."""
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "muon":
        return Muon(module, config.learning_rate, betas)
    return Adam(module.parameters(), lr=config.learning_rate, betas=betas, fused=True)


def compute_learning_rate(config: StageConfig, step: int, fraction: float) -> float:
    """Return the learning rate of a step after `fraction` of the budget: constant, or a warm-up and
    a cosine to 0.
    """
    if config.schedule == "constant":
        return config.learning_rate
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return approximately U V^T of each matrix U S V^T (n, k).

    Five Newton-Schulz steps bring all singular values that are not tiny to between 0.7 and 1.2
    (Jordan et al. 2024). A zero matrix stays zero.
    """
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.T for matrix in matrices]
    by_side = defaultdict[int, list[int]](list)
    for index, matrix in enumerate(wide):
        by_side[len(matrix)].append(index)

    # X becomes P X in each step, where P = first + third G + fifth G G and G = X X^T. All P commute
    # with G, so the steps are taken on the small G, and X is multiplied once.
    for indices in by_side.values():
        products = _multiply_steps(torch.stack([wide[index] @ wide[index].T for index in indices]))
        for index, product in zip(indices, products, strict=True):
            wide[index] = product @ wide[index]
    pairs = zip(wide, matrices, strict=True)
    return [result if result.shape == matrix.shape else result.T for result, matrix in pairs]


def _multiply_steps(gram: Tensor) -> Tensor:
    """Return the product of all P, divided by the norm of X, for each X X^T (B, n, n)."""
    first, third, fifth = _ITERATION
    squared_norms = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-14
    gram = gram / squared_norms
    product = squared_norms.rsqrt()
    for step in range(_ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        polynomial.diagonal(dim1=1, dim2=2).add_(first)
        product = polynomial @ product if step else polynomial * product
        if step + 1 < _ITERATIONS:
            gram = polynomial @ gram @ polynomial
    return product


def select_matrices(module: nn.Module) -> list[Tensor]:
    """Return the weights that Muon treats as matrices: filters of convolutions and weights of
    linear layers.

    Adam gets layers that read or write pixels, embeddings, codewords, biases and scales. Unlike
    Jordan et al., Muon gets the output layers of priors.
    """
    linear = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    weights = [weight for weight in module.parameters() if weight.ndim == 4 or id(weight) in linear]
    return [weight for weight in weights if min(weight.shape[:2]) >= _MIN_CHANNELS]


class Muon(Adam):
    """Muon for matrices: momentum that is orthogonalized before the step (Jordan et al. 2024). Adam
    for the rest.

    A filter is flattened to a matrix (outputs, inputs * rows * columns), a filter of a transposed
    convolution to (inputs, outputs * rows * columns). The step is the learning rate times 0.2 *
    sqrt(longer side) times the orthogonal matrix. Its entries are about as large as those of Adam's
    steps, so both use the same learning rate (Liu et al. 2025). `torch.optim.Muon` takes no filters
    and includes no Adam. `betas` are the decays of Adam's moments.
    """

    def __init__(self, module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> None:
        orthogonal = select_matrices(module)
        matrix_ids = {id(weight) for weight in orthogonal}
        rest = [parameter for parameter in module.parameters() if id(parameter) not in matrix_ids]
        groups = [{"params": orthogonal, "orthogonal": True}, {"params": rest, "orthogonal": False}]
        super().__init__(groups, lr=learning_rate, betas=betas, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Adam's __setstate__ expects a step count for every parameter.
        Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["orthogonal"]:
                self._update_matrices(group["params"], group["lr"])
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        super().step()
        self.param_groups = groups

    def _update_matrices(self, parameters: list[Tensor], learning_rate: float) -> None:
        # update the momenta, and take Nesterov's look ahead
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if not parameters:
            return
        gradients: Any = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)

        # take the step
        updates = orthogonalize([tensor.flatten(1).float() for tensor in ahead])
        scale = -learning_rate * _ADAM_STEP
        torch._foreach_mul_(updates, [scale * math.sqrt(max(update.shape)) for update in updates])
        pairs = zip(updates, parameters, strict=True)
        shaped = [update.reshape(parameter.shape) for update, parameter in pairs]
        torch._foreach_add_(parameters, shaped)
