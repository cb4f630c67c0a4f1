"""Attention by blocks against a masked softmax, at sizes below, at and beyond a block."""

from __future__ import annotations

import pytest
import torch

from hrvqvae.priors.base import Level
from hrvqvae.priors.causal import attend, cheap_dropout
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from tests.priors.test_pixelsnail import inputs, network, random_prior
from tests.priors.test_sampling import drawn


@pytest.mark.parametrize("number", [1, 31, 32, 33, 65, 130, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_a_masked_softmax(number: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(number)
    queries, keys, values = (torch.randn(2, 3, number, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    scores = queries @ keys.transpose(-1, -2) / 2
    if causal:
        scores = scores.masked_fill(torch.ones(number, number).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attend(queries, keys, values, causal=causal), scores.softmax(-1) @ values)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    features = torch.ones(20, 16, 11, 13).to(memory_format=memory_format)
    dropped = cheap_dropout(features, share, True)
    assert dropped.is_contiguous(memory_format=memory_format)
    assert abs(float((dropped == 0).double().mean()) - share) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.03
    assert len(dropped.unique()) == 2
    by_place = (dropped == 0).double().flatten(1).mean(0)
    assert by_place.std() < 1.3 * (share * (1 - share) / 20) ** 0.5, "every place alike"
    assert not torch.equal(cheap_dropout(features, share, True), dropped)
    torch.manual_seed(0)
    assert torch.equal(cheap_dropout(features, share, True), dropped)
    assert cheap_dropout(features, share, False) is features


def test_dropout_of_nearly_everything_stays_finite() -> None:
    """Rounded to 1/256 such a share would be all, and what is kept would be divided by zero."""
    torch.manual_seed(0)
    dropped = cheap_dropout(torch.ones(1, 4, 200, 200), 0.999, True)
    assert torch.isfinite(dropped).all()
    assert dropped.max() == 256


@pytest.mark.parametrize("grid", [(16, 16), (12, 9)])
def test_grids_beyond_a_block_are_causal(grid: tuple[int, int]) -> None:
    level = Level(grid=grid, symbols=3)
    prior = random_prior(network(residual_blocks=2, attention_layers=(1,)), level).double()
    codes, _, _ = inputs(level, 1)
    before = prior.logits(codes, [], None)[0].flatten(1)
    for place in (0, 40, 63, 64, 65, 100):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 3
        moved = (prior.logits(changed, [], None)[0].flatten(1) != before).any(0)
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].any()


def test_cached_and_plain_agree_on_a_printed_grid() -> None:
    level = Level(grid=(16, 16), symbols=4, coarser=(4,), classes=10)
    config = PixelSNAILConfig(hidden_units=16, residual_units=16, residual_blocks=4)
    prior = random_prior(config, level)
    cached, plain = (
        drawn(sampler, prior, level, 2, 0, SamplingParams(), 0.0) for sampler in (sample_cached, sample_plain)
    )
    assert torch.equal(cached, plain)
