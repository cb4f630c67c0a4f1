"""Codewords in training: when they are restarted, and that the averaged model has those that belong to its encoder."""

from __future__ import annotations

import pytest
import torch

from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.models.build import build, build_objective
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import Budget, TrainState
from hrvqvae.utils.device import Compute
from tests.conftest import with_quantizer, with_training

FAR = 50.0


class Started:
    """A model after its start, which takes steps on one batch."""

    def __init__(self, config: Config, budget: Budget) -> None:
        torch.manual_seed(0)
        compute = Compute.of(config.training)
        model = build(config)
        assert isinstance(model, SingleGridAutoencoder)
        self.model = model
        images = torch.randint(256, (8, 1, 12, 12), dtype=torch.uint8)
        model.initialize(images, torch.Generator().manual_seed(0))
        objective = build_objective(model, config, compute.place_model)
        self.state = TrainState.start(model, config.training)
        self.step = AutoencoderTask(model, objective, config, compute, budget)
        self.batch = Batch(images, torch.zeros(8).long())

    def train(self) -> dict[str, float]:
        metrics = dict(self.step(self.state, self.batch))
        self.state.step += 1
        return metrics

    def codewords(self, *, averaged: bool = False) -> list[torch.Tensor]:
        """Copies of each level's codewords (m^l, m, D)."""
        model = self.state.averaged.module if averaged else self.model
        assert isinstance(model, SingleGridAutoencoder)
        return [one.clone() for one in model.linked_codebooks]

    def let_one_die(self) -> None:
        """Codeword 1 of level 1, in the model and its average, where nothing is."""
        for model in (self.model, self.state.averaged.module):
            assert isinstance(model, SingleGridAutoencoder)
            model.quantizer.levels[0].set_codewords(torch.tensor([1]), torch.full((1, 4), FAR), torch.zeros(1))


@pytest.mark.parametrize(
    ("budget", "expected"), [(Budget(20, None), [2, 5, 8, 11, 14, 17]), (Budget(None, 30.0), [2, 5, 8, 11, 14, 17, 20])]
)
def test_nothing_is_revived_in_the_last_tenth_of_the_budget(
    budget: Budget, expected: list[int], tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third step, in a budget of 20 steps, or of 30 seconds of which each step takes 1.25."""
    config = with_quantizer(tiny, restart_every=3)
    started, restarted = Started(config, budget), list[int]()

    def restart_dead_codes(self: SingleGridAutoencoder, images: torch.Tensor, generator: torch.Generator) -> int:
        restarted.append(started.state.step)
        return 0

    monkeypatch.setattr(SingleGridAutoencoder, "restart_dead_codes", restart_dead_codes)
    while not budget.spent(started.state):
        started.train()
        started.state.seconds += 1.25
    assert restarted == expected


def test_the_last_revival_is_before_the_last_tenth(tiny: Config) -> None:
    """With a codeword that dies in every step: restarted in step 18 of 20, and left as it is in the two that follow."""
    started = Started(with_quantizer(tiny, restart_every=1), Budget(20, None))
    counted = []
    for _ in range(20):
        started.let_one_die()
        counted.append(started.train().get("restarted", 0.0))
    assert all(count >= 1 for count in counted[:18])
    assert counted[18:] == [0, 0]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_averaged_codewords_are_the_moving_average_of_the_models(update: str, tiny: Config) -> None:
    config = with_training(with_quantizer(tiny, update=update, restart_every=0), polyak_decay=0.75)
    started = Started(config, Budget(None, None))
    started.train()
    expected = started.codewords()
    for _ in range(4):
        started.train()
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, started.codewords(), strict=True)]
    for found, one, own in zip(started.codewords(averaged=True), expected, started.codewords(), strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, own, rtol=1e-3, atol=1e-4), "the model's own are elsewhere by now"


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_revived_codeword_is_no_mean_of_two_places(update: str, tiny: Config) -> None:
    """It and its subtree are taken over as they are, the others are averaged, and Adam has forgotten the old place."""
    config = with_training(with_quantizer(tiny, update=update, restart_every=3), polyak_decay=0.75)
    started = Started(config, Budget(None, None))
    started.train()
    started.train()
    started.let_one_die()
    before = started.codewords(averaged=True)
    assert started.train()["restarted"] == 1
    own, averaged = started.codewords(), started.codewords(averaged=True)
    assert own[0][0, 1].abs().max() < FAR / 2
    assert torch.equal(averaged[0][0, 1], own[0][0, 1])
    assert torch.equal(averaged[1][1], own[1][1])
    for level, others in ((0, (0, [0, 2])), (1, ([0, 2],))):
        torch.testing.assert_close(averaged[level][others], 0.75 * before[level][others] + 0.25 * own[level][others])
    if update == "gradient":
        moments = started.state.optimizer.state[started.model.get_parameter("quantizer.codebooks.0.codewords")]
        assert moments["exp_avg"][0, 1].abs().max() == moments["exp_avg_sq"][0, 1].abs().max() == 0
        assert moments["exp_avg"][0, 0].abs().max() > 0
