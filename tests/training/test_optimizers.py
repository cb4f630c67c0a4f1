"""Muon against singular values, its definition and torch's Adam."""

import math

import torch
from torch import nn
from torch.testing import assert_close

from hrvqvae.priors.causal import CausalConv2d
from hrvqvae.training.optimizers import Muon, orthogonalize, select_matrices
from tests.conftest import normal, parametrize


@parametrize("shape, size", [((8, 8), 1e-6), ((64, 576), 1.0), ((48, 5), 1e4), ((1, 7), 1.0)])
def test_orthogonalized_keeps_the_directions_and_evens_the_sizes(shape, size):
    matrix = size * normal(*shape)
    (result,) = orthogonalize([matrix])
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    along = left.T @ result.double() @ right.T  # in the matrix's own directions: a diagonal
    values = along.diagonal()
    assert (along - values.diag()).abs().max() < 1e-3
    kept = sizes > 0.02 * sizes.norm()
    assert values[kept].min() > 0.6
    assert values.max() < 1.3
    assert not orthogonalize([0 * matrix])[0].any()


def test_matrices_are_the_weights_between_layers():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 16, 3),
        nn.GroupNorm(2, 16),
        CausalConv2d(16, 8, 3),
        nn.Linear(8, 8),
        nn.ConvTranspose2d(8, 1, 4),
        nn.Embedding(8, 8),
    )
    names = {id(weight): name for name, weight in module.named_parameters()}
    matrices = {names[id(weight)] for weight in select_matrices(module)}
    assert matrices == {"1.weight", "3.above", "3.left", "4.weight"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.SiLU(), nn.ConvTranspose2d(6, 3, 4)
    )


def backward(module, optimizer, step):
    optimizer.zero_grad()
    module(normal(4, 3, 8, 8, seed=step)).square().mean().backward()


def test_a_step_is_that_of_the_paper():
    """Momentum, Nesterov's look ahead, the orthogonal matrix and its size, by hand."""
    module = network()
    weight = module[2].weight
    momentum = torch.zeros_like(weight)
    expected = weight.detach().clone()
    optimizer = Muon(module, 0.01, (0.9, 0.99))
    for step in range(2):
        backward(module, optimizer, step)
        gradient = weight.grad.clone()
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = (0.05 * gradient + 0.95 * momentum).reshape(6, 72)
        (update,) = orthogonalize([ahead])
        expected = expected - 0.01 * 0.2 * math.sqrt(72) * update.reshape(weight.shape)
        optimizer.step()
        assert_close(weight.detach(), expected)
