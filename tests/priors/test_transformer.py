"""The transformer prior: causal, conditioned, by hand, and its cached sampler against the plain one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import TransformerConfig
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from hrvqvae.priors.transformer import Transformer
from hrvqvae.utils.errors import InputError
from tests.priors.test_pixelsnail import inputs
from tests.priors.test_sampling import drawn


def random_transformer(config: TransformerConfig, level: Level, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    prior = Transformer(config, level, 0).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


SMALL = TransformerConfig(hidden_units=12, layers=2, heads=3, dropout=0.3)


@pytest.mark.parametrize(("coarser", "classes"), [((), 0), ((3, 9), 4)])
def test_every_later_position_sees_every_earlier_code_and_no_other(coarser: tuple[int, ...], classes: int) -> None:
    level = Level(grid=(4, 5), symbols=3, coarser=coarser, classes=classes)
    prior = random_transformer(SMALL, level).double()
    codes, paths, label = inputs(level, 1)
    before = prior.logits(codes, paths, label)[0].flatten(1)
    reached = torch.zeros(20, 20, dtype=torch.bool)
    for place in range(20):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 3
        reached[place] = (prior.logits(changed, paths, label)[0].flatten(1) != before).any(0)
    later = torch.arange(20)[None] > torch.arange(20)[:, None]
    assert torch.equal(reached, later)


def test_logits_by_hand() -> None:
    level = Level(grid=(2, 3), symbols=4, classes=2)
    prior = random_transformer(TransformerConfig(hidden_units=6, layers=1, heads=2), level)
    codes, _, label = inputs(level, 2)
    assert label is not None
    before = torch.cat([torch.full((2, 1), 4), codes.flatten(1)[:, :-1]], 1)
    place = torch.stack([prior.rows[i // 3] + prior.columns[i % 3] for i in range(6)])
    x = prior.embedding.weight[before] + place + prior.classes.weight[label][:, None]
    layer = prior.layers[0]
    q, k, v = layer.inputs(layer_norm(x, (6,), layer.attention_norm.weight, layer.attention_norm.bias)).chunk(3, -1)
    parts = []
    for head in range(2):
        one = slice(3 * head, 3 * head + 3)
        scores = q[..., one] @ k[..., one].transpose(1, 2) / 3**0.5
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        parts.append(scores.softmax(-1) @ v[..., one])
    x = x + layer.output(torch.cat(parts, -1))
    normed = layer_norm(x, (6,), layer.network_norm.weight, layer.network_norm.bias)
    x = x + layer.narrow(gelu(layer.widen(normed)))
    expected = prior.head(layer_norm(x, (6,), prior.norm.weight, prior.norm.bias))
    torch.testing.assert_close(prior.logits(codes, [], label).flatten(2).transpose(1, 2), expected)


def test_dropout_is_of_training_alone() -> None:
    level = Level(grid=(2, 3), symbols=4)
    prior, (codes, _, _) = random_transformer(SMALL, level), inputs(level, 2)
    assert torch.equal(prior.logits(codes, [], None), prior.logits(codes, [], None))
    prior.train()
    assert not torch.equal(prior.logits(codes, [], None), prior.logits(codes, [], None))


@pytest.mark.parametrize("seed", range(40))
def test_cached_and_plain_draw_the_same_codes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    heads = int(generator.integers(1, 4))
    symbols = int(generator.integers(2, 9))
    level = Level(
        grid=(int(generator.integers(1, 6)), int(generator.integers(1, 6))), symbols=symbols,
        coarser=tuple(symbols**power for power in range(1, int(generator.integers(1, 3)))),
        classes=int(generator.integers(0, 4)),
    )  # fmt: skip
    config = TransformerConfig(
        hidden_units=heads * int(generator.integers(1, 6)), layers=int(generator.integers(1, 4)), heads=heads
    )
    params = SamplingParams(
        temperature=float(generator.choice([0.7, 1.0])), top_k=int(generator.integers(0, symbols + 1))
    )
    prior, keep = random_transformer(config, level, seed), float(generator.choice([0.0, 0.4]))
    batch = int(generator.integers(1, 5))
    cached = drawn(sample_cached, prior, level, batch, seed, params, keep)
    assert torch.equal(cached, drawn(sample_plain, prior, level, batch, seed, params, keep))


def test_the_class_is_asked_for() -> None:
    level = Level(grid=(2, 3), symbols=4, classes=2)
    prior, (codes, _, _) = random_transformer(SMALL, level), inputs(level, 1)
    with pytest.raises(InputError, match="class-conditional"):
        prior.logits(codes, [], None)
    one, other = (copy.deepcopy(prior).logits(codes, [], torch.tensor([label])) for label in (0, 1))
    assert (one != other).any(1).all()
