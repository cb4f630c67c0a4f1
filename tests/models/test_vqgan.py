"""The objective of a VQGAN."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import relu
from torch.testing import assert_close

from hrvqvae.config.schema import decide_auto
from hrvqvae.models.adversarial import (
    PatchDiscriminator,
    VQGANObjective,
    compute_adaptive_weight,
    fix_gradient,
)
from hrvqvae.models.build import build
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute
from tests.conftest import (
    approx,
    generator,
    input_error,
    parametrize,
    random_images,
    same,
    with_data,
    with_fields,
)
from tests.models.small import config_of

with_model = partial(with_fields, "model")
GAN = config_of("vqgan", adversarial_start=0, discriminator_units=4, discriminator_layers=2)


@pytest.fixture
def gan(tiny):
    return replace(tiny, name="gan", model=GAN)


class Started:
    def __init__(self, config):
        torch.manual_seed(0)
        self.model = build(config)
        self.images = random_images(4, 1, 12, 12)
        self.model.initialize(self.images, generator())
        self.objective = Compute(config.training).place_model(VQGANObjective(config))
        auxiliary = self.objective.auxiliary
        self.state = TrainState.start(self.model.train(), config.training, auxiliary)
        self.discriminator = self.state.networks["discriminator"].module

    def step(self):
        goal = self.objective(self.model, self.images, self.state.step)
        return {**self.state.minimize(goal.losses), **goal.metrics}, goal.codes


def test_the_adaptive_weight_is_bounded_and_accumulates_no_gradient():
    last_layer = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    reconstruction = last_layer.square().sum()
    weight = compute_adaptive_weight(reconstruction, last_layer.sum() * 0, last_layer)
    assert weight == 1e4
    assert not weight.requires_grad
    assert last_layer.grad is None


def test_a_known_gradient_is_the_losses_own():
    """Nothing beside the image gets a gradient."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    image = weight.sin()

    def gradient(loss):
        return torch.autograd.grad(3 * loss + image.sum(), weight, retain_graph=True)[0]

    loss = network(image).square().mean()
    expected = gradient(loss)
    passes = []
    network.register_full_backward_hook(lambda *_: passes.append(1))
    taken = fix_gradient(network(image).square().mean(), image)
    assert float(taken.detach()) == approx(float(loss.detach()))
    for _ in range(2):
        assert_close(gradient(taken), expected)
    assert len(passes) == 1
    taken.backward()
    assert network.weight.grad is None


def test_the_step_by_hand(gan):
    started = Started(gan)
    by_hand = Started(gan)
    metrics, codes = started.step()
    model = by_hand.model
    judge = by_hand.discriminator.train()
    optimizers = {name: part.optimizer for name, part in by_hand.state.networks.items()}
    real = by_hand.images.float() / 255 * 2 - 1
    result = model(by_hand.images)
    fake = result.images * 2 - 1
    adversarial = -judge(fake).mean()
    reconstruction = result.losses["reconstruction"]
    last = model.decoder[-1].weight
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]
    weight = float(norms[0] / (norms[1] + 1e-6))
    weighted = 0.8 * weight * adversarial
    optimizers["model"].zero_grad()
    (reconstruction + result.losses["commitment"] + weighted).backward()
    optimizers["model"].step()
    optimizers["discriminator"].zero_grad()
    hinge = (relu(1 - judge(real)).mean() + relu(1 + judge(fake.detach())).mean()) / 2
    hinge.backward()
    optimizers["discriminator"].step()
    assert metrics["adaptive_weight"] == approx(weight, rel=1e-4)
    assert metrics["adversarial"] == approx(float(weighted.detach()), rel=1e-3)
    assert metrics["discriminator"] == approx(float(hinge.detach()), rel=1e-4)
    assert same(codes, result.codes)
    for updated, expected in ((started.model, model), (started.discriminator, judge)):
        parameters = (dict(network.named_parameters()) for network in (updated, expected))
        assert_close(*parameters, rtol=1e-3, atol=1e-5)


@parametrize("layers", [1, 3])
def test_images_too_small_for_the_discriminator_are_refused_before_a_run_begins(layers, gan):
    config = with_model(gan, discriminator_layers=layers, adversarial_start=1_000)
    smallest = 3 * 2**layers
    judge = PatchDiscriminator(1, 2, layers).train()
    config.model.check_images(smallest)
    assert judge(torch.rand(2, 1, smallest, smallest)).shape == (2, 1, 1, 1)
    small = with_data(config, size=smallest - 1)
    with input_error(f"images of {smallest} pixels a side"):
        decide_auto(small, "model")
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        judge(torch.rand(2, 1, smallest - 1, smallest - 1))
