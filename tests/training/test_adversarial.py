"""VQGAN: its losses by hand, the adaptive weight, the late start, and a run that is stopped and goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hrvqvae import storage
from hrvqvae.checkpoint import RunFolder
from hrvqvae.config import Config, QuantizerConfig, VQGANConfig
from hrvqvae.errors import NonFiniteError
from hrvqvae.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    gradient_taken,
    hinge_loss,
)
from hrvqvae.losses.perceptual import PerceptualDistance
from hrvqvae.models import VQGAN, build
from hrvqvae.training import adversarial
from hrvqvae.training.adversarial import AdversarialObjective, partners_of
from hrvqvae.training.autoencoder import train
from hrvqvae.training.device import Compute
from hrvqvae.training.state import TrainState
from tests.conftest import with_training

GAN = VQGANConfig(
    stride=2, padding=1, hidden_units=8, residual_units=8, residual_blocks=1, perceptual="none", adversarial_start=0,
    discriminator_units=4, discriminator_layers=2, quantizer=QuantizerConfig(codewords=9, dim=4, init_vectors=500),
)  # fmt: skip


@pytest.fixture
def gan(tiny: Config) -> Config:
    return dataclasses.replace(tiny, name="gan", model=GAN)


def started(config: Config) -> tuple[VQGAN, TrainState, AdversarialObjective, torch.Tensor]:
    torch.manual_seed(0)
    compute = Compute.of(config.training)
    model = build(config)
    assert isinstance(model, VQGAN)
    images = torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8)
    model.initialize(images, torch.Generator().manual_seed(0))
    state = TrainState.start(model.train(), config.training, partners_of(config, compute))
    return model, state, AdversarialObjective(model, config, compute), images


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.25])
    assert float(hinge_loss(real, fake)) == pytest.approx((0 + 0.5 + 2) / 6 + (0 + 1 + 1.25) / 6)
    assert float(generator_loss(fake)) == pytest.approx(2.75 / 3)


def test_the_adaptive_weight_by_gradients_computed_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    x, target, direction = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), torch.tensor([2.0, -1.0])
    output = weight @ x
    reconstruction, adversarial = (output - target).square().sum(), -(direction * output).sum()
    found = adaptive_weight(reconstruction, adversarial, weight)
    by_hand = np.outer(2 * ((weight.detach() @ x) - target).numpy(), x.numpy())
    of_adversarial = np.outer(-direction.numpy(), x.numpy())
    assert float(found) == pytest.approx(np.linalg.norm(by_hand) / (np.linalg.norm(of_adversarial) + 1e-6))
    assert not found.requires_grad
    assert weight.grad is None, "nothing is accumulated"
    assert float(adaptive_weight(reconstruction, adversarial * 0, weight)) == 1e4, "bounded"


def test_a_gradient_that_is_taken_is_the_losses_own() -> None:
    torch.manual_seed(0)
    network, weight = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    passes: list[int] = []
    network.register_full_backward_hook(lambda *_: passes.append(1))
    image = weight.sin()
    loss = network(image).square().mean()
    expected = torch.autograd.grad(3 * loss + image.sum(), weight, retain_graph=True)[0]
    passes.clear()
    taken = gradient_taken(network(image).square().mean(), image)
    assert float(taken.detach()) == pytest.approx(float(loss.detach()))
    for _ in range(2):
        found = torch.autograd.grad(3 * taken + image.sum(), weight, retain_graph=True)[0]
        torch.testing.assert_close(found, expected)
    assert len(passes) == 1
    taken.backward()
    assert network.weight.grad is None, "nothing beside the image gets a gradient"


def test_the_step_by_hand(gan: Config) -> None:
    """One update of generator and discriminator, against the same put together from its parts."""
    model, state, objective, images = started(gan)
    other, twin, _, _ = started(gan)
    metrics, codes = objective(state, images)
    real = images.float() / 255 * 2 - 1
    result = other(images)
    judge = twin.partners["discriminator"].module.train()
    fake = result.images * 2 - 1
    adversarial = -judge(fake).mean()
    last = other.decoder[-1].weight
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (result.losses["reconstruction"], adversarial)
    ]
    weight = float(norms[0] / (norms[1] + 1e-6))
    assert metrics["adaptive_weight"] == pytest.approx(weight, rel=1e-4)
    assert metrics["adversarial"] == pytest.approx(0.8 * weight * float(adversarial.detach()), rel=1e-3)
    loss = result.losses["reconstruction"] + result.losses["commitment"] + 0.8 * weight * adversarial
    twin.optimizer.zero_grad()
    loss.backward()
    twin.optimizer.step()
    partner = twin.partners["discriminator"]
    partner.optimizer.zero_grad()
    of_judge = hinge_loss(judge(real), judge(fake.detach()))
    of_judge.backward()
    partner.optimizer.step()
    assert metrics["discriminator"] == pytest.approx(float(of_judge.detach()), rel=1e-4)
    assert torch.equal(codes[0], result.codes[0])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for one, two in zip(state.partners["discriminator"].module.parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_beta_weighs_the_commitment_and_nothing_else(gan: Config) -> None:
    quantizer = dataclasses.replace(GAN.quantizer, update="gradient", beta=0.25)
    one = started(dataclasses.replace(gan, model=dataclasses.replace(GAN, quantizer=quantizer)))
    four = started(
        dataclasses.replace(gan, model=dataclasses.replace(GAN, quantizer=dataclasses.replace(quantizer, beta=1.0)))
    )
    losses = [dict(model(images).losses) for model, _, _, images in (one, four)]
    torch.testing.assert_close(losses[1]["commitment"], 4 * losses[0]["commitment"])
    torch.testing.assert_close(losses[1]["codebook"], losses[0]["codebook"])


def test_before_its_start_the_discriminator_rests(gan: Config) -> None:
    config = dataclasses.replace(gan, model=dataclasses.replace(GAN, adversarial_start=1))
    _, state, objective, images = started(config)
    before = {name: one.clone() for name, one in state.partners["discriminator"].module.state_dict().items()}
    metrics, _ = objective(state, images)
    assert "adversarial" not in metrics
    after = state.partners["discriminator"].module.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    state.step = 1
    metrics, _ = objective(state, images)
    assert {"adversarial", "discriminator", "adaptive_weight"} <= set(metrics)
    assert any(not torch.equal(one, after[name]) for name, one in before.items())


def test_a_discriminator_that_is_not_finite_stops_before_the_update(gan: Config) -> None:
    model, state, objective, images = started(gan)
    partner = state.partners["discriminator"].module
    before = [parameter.detach().clone() for parameter in model.parameters()]
    handle = partner.register_forward_hook(
        lambda module, inputs, output: output * float("nan") if not inputs[0].requires_grad else output
    )
    with pytest.raises(NonFiniteError, match="discriminator nan"):
        objective(state, images)
    handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_stopping_and_resuming_changes_nothing(gan: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(gan, model=dataclasses.replace(GAN, adversarial_start=3))
    config = with_training(config, max_steps=9, schedule="constant")

    def run_to(steps: int, folder: Path, resume: bool = False) -> None:
        train(with_training(config, max_steps=steps), RunFolder(folder), resume=resume, say=lambda _: None)

    run_to(9, tmp_path / "whole")
    run_to(2, tmp_path / "parts")
    for steps in (5, 9):
        run_to(steps, tmp_path / "parts", resume=True)
    whole, parts = (storage.read(RunFolder(tmp_path / name).saved()[0])[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(one, parts[name]) for name, one in whole.items())
    assert any(name.startswith("discriminator_model.") for name in whole)
    assert any(name.startswith("discriminator_optimizer.") for name in whole)
    model, _ = storage.read(RunFolder(tmp_path / "whole").model)
    assert not any("discriminator" in name for name in model), "the model that others load has none"


def test_the_discriminator_tells_patches(gan: Config) -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(1, 4, 2).eval()
    images = torch.randn(2, 1, 32, 32)
    before = judge(images)
    assert before.shape[1] == 1
    images[0, 0, 0, 0] += 5
    moved = judge(images) != before
    assert moved[0, 0, 0, 0]
    assert not moved[0, 0, -1, -1], "an answer sees a patch, not the image"
    assert not moved[1].any()


class Halved(PerceptualDistance):
    """Stands for a published network."""

    name = title = "halved"

    @staticmethod
    def there() -> bool:
        return True

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean() / 2


def test_the_perceptual_loss_is_named_for_its_network(gan: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "perceptual_distance", lambda name: {"efficientnet-lite0": Halved}[name]())
    config = dataclasses.replace(
        gan, model=dataclasses.replace(GAN, perceptual="efficientnet-lite0", perceptual_weight=2.0)
    )
    model, state, objective, images = started(config)
    assert objective.distance is not None
    expected = 2 * objective.distance(images.float() / 255, model(images).images)
    metrics, _ = objective(state, images)
    assert metrics["perceptual (halved)"] == pytest.approx(float(expected.detach()), rel=1e-4)
