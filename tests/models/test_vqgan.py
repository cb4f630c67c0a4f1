"""The objective of a VQGAN."""

import dataclasses

import pytest
import torch
from torch import nn

from hrvqvae.config import Config, QuantizerConfig
from hrvqvae.config.model import VQGANConfig
from hrvqvae.config.schema import decide_auto
from hrvqvae.models import vqgan
from hrvqvae.models.build import build
from hrvqvae.models.objective import Metrics
from hrvqvae.models.perceptual import PerceptualDistance
from hrvqvae.models.vqgan import (
    AdversarialObjective,
    PatchDiscriminator,
    compute_adaptive_weight,
    fix_gradient,
)
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.conftest import same, state_of, with_data

GAN = VQGANConfig(
    stride=2,
    padding=1,
    hidden_units=8,
    residual_units=8,
    residual_blocks=1,
    perceptual="none",
    adversarial_start=0,
    discriminator_units=4,
    discriminator_layers=2,
    quantizer=QuantizerConfig(codewords=9, dim=4, init_vectors=500),
)


@pytest.fixture
def gan(tiny: Config) -> Config:
    return dataclasses.replace(tiny, name="gan", model=GAN)


class Started:
    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        self.compute = Compute(config.training)
        model = build(config)
        self.model = model
        self.images = torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8)
        model.initialize(self.images, torch.Generator().manual_seed(0))
        self.objective = self.compute.place_model(AdversarialObjective(config))
        self.state = TrainState.start(model.train(), config.training, self.objective.auxiliary)

    @property
    def discriminator(self) -> nn.Module:
        return self.state.networks["discriminator"].module

    def step(self) -> tuple[Metrics, tuple[torch.Tensor, ...]]:
        goal = self.objective(self.model, self.images, self.state.step)
        return {**self.state.minimize(goal.losses), **goal.metrics}, goal.codes


def test_hinge_losses() -> None:
    real = torch.tensor([2.0, 0.5, -1.0])
    fake = torch.tensor([-3.0, 0.0, 0.25])
    assert float(vqgan.hinge_loss(real, fake)) == pytest.approx(
        (0 + 0.5 + 2) / 6 + (0 + 1 + 1.25) / 6
    )


def test_the_adaptive_weight_is_bounded_and_accumulates_no_gradient() -> None:
    last_layer = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    reconstruction = last_layer.square().sum()
    adversarial = -last_layer.sum()
    weight = compute_adaptive_weight(reconstruction, adversarial, last_layer)
    assert float(weight) == pytest.approx(2 * 15**0.5 / 4**0.5, rel=1e-5)
    assert not weight.requires_grad
    assert last_layer.grad is None
    assert float(compute_adaptive_weight(reconstruction, adversarial * 0, last_layer)) == 1e4


def test_a_known_gradient_is_the_losses_own() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    passes: list[int] = []
    network.register_full_backward_hook(lambda *_: passes.append(1))
    image = weight.sin()
    loss = network(image).square().mean()
    expected = torch.autograd.grad(3 * loss + image.sum(), weight, retain_graph=True)[0]
    passes.clear()
    taken = fix_gradient(network(image).square().mean(), image)
    assert float(taken.detach()) == pytest.approx(float(loss.detach()))
    for _ in range(2):
        gradient = torch.autograd.grad(3 * taken + image.sum(), weight, retain_graph=True)[0]
        torch.testing.assert_close(gradient, expected)
    assert len(passes) == 1
    taken.backward()
    assert network.weight.grad is None, "nothing beside the image gets a gradient"


def test_the_step_by_hand(gan: Config) -> None:
    started = Started(gan)
    by_hand = Started(gan)
    metrics, codes = started.step()
    other = by_hand.model
    twin = by_hand.state
    real = by_hand.images.float() / 255 * 2 - 1
    result = other(by_hand.images)
    judge = by_hand.discriminator.train()
    fake = result.images * 2 - 1
    adversarial = -judge(fake).mean()
    last = other.decoder[-1].weight
    losses = (result.losses["reconstruction"], adversarial)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in losses]
    weight = float(norms[0] / (norms[1] + 1e-6))
    assert metrics["adaptive_weight"] == pytest.approx(weight, rel=1e-4)
    assert metrics["adversarial"] == pytest.approx(
        0.8 * weight * float(adversarial.detach()), rel=1e-3
    )
    loss = (
        result.losses["reconstruction"] + result.losses["commitment"] + 0.8 * weight * adversarial
    )
    twin.networks["model"].optimizer.zero_grad()
    loss.backward()
    twin.networks["model"].optimizer.step()
    network = twin.networks["discriminator"]
    network.optimizer.zero_grad()
    of_judge = vqgan.hinge_loss(judge(real), judge(fake.detach()))
    of_judge.backward()
    network.optimizer.step()
    assert metrics["discriminator"] == pytest.approx(float(of_judge.detach()), rel=1e-4)
    assert torch.equal(codes[0], result.codes[0])
    for updated, expected in ((started.model, other), (started.discriminator, judge)):
        for a, b in zip(updated.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_before_its_start_the_discriminator_rests(gan: Config) -> None:
    config = dataclasses.replace(gan, model=dataclasses.replace(GAN, adversarial_start=1))
    started = Started(config)
    before = state_of(started.discriminator)
    metrics, _ = started.step()
    assert "adversarial" not in metrics
    assert same(started.discriminator.state_dict(), before)
    started.state.step = 1
    metrics, _ = started.step()
    assert {"adversarial", "discriminator", "adaptive_weight"} <= set(metrics)
    assert not same(started.discriminator.state_dict(), before)


def test_a_discriminator_that_is_not_finite_stops_before_the_update(gan: Config) -> None:
    started = Started(gan)
    before = [parameter.detach().clone() for parameter in started.model.parameters()]
    handle = started.discriminator.register_forward_hook(
        lambda module, inputs, output: (
            output * float("nan") if not inputs[0].requires_grad else output
        )
    )
    with pytest.raises(NonFiniteError, match="discriminator nan"):
        started.step()
    handle.remove()
    assert same(before, list(started.model.parameters()))


class Halved(PerceptualDistance):
    name = title = "halved"

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean() / 2


def test_the_perceptual_loss_is_named_for_its_network(
    gan: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        vqgan, "perceptual_distance", lambda name: {"efficientnet-lite0": Halved}[name]()
    )
    model = dataclasses.replace(GAN, perceptual="efficientnet-lite0", perceptual_weight=2.0)
    started = Started(dataclasses.replace(gan, model=model))
    expected = 2 * started.objective.distance(
        started.images.float() / 255, started.model(started.images).images
    )
    metrics, _ = started.step()
    assert metrics["perceptual (halved)"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_best_distance_is_decided_when_a_run_begins(
    gan: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrvqvae.models.perceptual.choose_perceptual", lambda _: "none")
    left_open = dataclasses.replace(gan, model=dataclasses.replace(GAN, perceptual="auto"))
    assert decide_auto(left_open, "model") == gan


@pytest.mark.parametrize("layers", [1, 3])
def test_images_too_small_for_the_discriminator_are_refused_before_a_run_begins(
    layers: int, gan: Config
) -> None:
    model = dataclasses.replace(GAN, discriminator_layers=layers, adversarial_start=1_000)
    smallest = 3 * 2**layers
    judge = PatchDiscriminator(1, 2, layers).train()
    model.check_images(smallest)
    assert judge(torch.rand(2, 1, smallest, smallest)).shape == (2, 1, 1, 1)
    small = with_data(dataclasses.replace(gan, model=model), size=smallest - 1)
    with pytest.raises(
        InputError, match=f"images of {smallest} pixels a side; these have {smallest - 1}"
    ):
        decide_auto(small, "model")
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        judge(torch.rand(2, 1, smallest - 1, smallest - 1))
