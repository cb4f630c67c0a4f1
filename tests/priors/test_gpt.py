"""The transformer with a head for each level: what a code depends on, and its cached sampler against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from tests.priors.test_depth import levels_of


def random_gpt(config: GPTConfig, levels: list[Level], seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    prior = GPT(config, *levels).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def coarser_levels(levels: list[Level], coarser: tuple[int, ...]) -> list[Level]:
    """The same levels below other ones, to which they are not linked."""
    return [
        Level(
            grid=level.grid, symbols=level.symbols, coarser=(*coarser, *level.coarser), codewords=level.codewords,
            classes=level.classes, unconditional=level.unconditional,
        )
        for level in levels
    ]  # fmt: skip


SMALL = GPTConfig(hidden_units=12, layers=2, heads=3, dropout=0.3, path_units=5)


@pytest.mark.parametrize("linked", [True, False])
def test_a_code_depends_on_every_code_before_it_and_on_no_other(linked: bool) -> None:
    """Before it: at earlier positions of all levels, and of the levels before at its own position."""
    levels = levels_of((3, 4), (3, 2, 4), linked=linked)
    prior = random_gpt(SMALL, levels).double()
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(level.symbols, (1, 3, 4), generator=generator) for level in levels]

    def logits(codes: list[torch.Tensor]) -> torch.Tensor:
        found = prior.level_logits(codes, [], None)
        return torch.stack([one[0, 0] - one[0, 1] for one in found], -1).flatten()  # by position, then level

    before, reached = logits(codes), torch.zeros(36, 36, dtype=torch.bool)
    for place in range(36):
        changed = [one.clone() for one in codes]
        position, level = divmod(place, 3)
        changed[level].view(-1)[position] = (changed[level].view(-1)[position] + 1) % levels[level].symbols
        reached[place] = logits(changed) != before
    assert torch.equal(reached, torch.ones(36, 36).triu(1).bool())


@pytest.mark.parametrize("seed", range(16))
def test_cached_and_plain_draw_the_same_codes(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = (int(random.integers(1, 5)), int(random.integers(1, 5)))
    symbols = tuple(int(random.integers(2, 6)) for _ in range(int(random.integers(1, 5))))
    classes, heads = int(random.integers(0, 4)), int(random.integers(1, 4))
    levels = levels_of(grid, symbols, linked=bool(random.integers(2)), classes=classes, unconditional=classes > 0)
    coarser = (3, 6)[: int(random.integers(3))]
    levels = coarser_levels(levels, coarser)
    prior = random_gpt(
        GPTConfig(hidden_units=4 * heads, layers=int(random.integers(1, 4)), heads=heads, path_units=6, most_paths=7),
        levels, seed,
    )  # fmt: skip
    params = SamplingParams(
        temperature=float(random.choice([0.7, 1.0])), guidance=float(random.choice([1.0, 2.0])) if classes else 1.0
    )
    batch, generator = int(random.integers(1, 5)), torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch,), generator=generator) if classes else None
    paths = [torch.randint(number, (batch, *grid), generator=generator) for number in coarser]
    given = [torch.randint(level.symbols, (batch, *grid), generator=generator) for level in levels]
    known = [torch.rand(batch, *grid, generator=generator) < random.choice([0.0, 0.4]) for _ in levels]
    uniforms = [torch.rand(batch, *grid, generator=generator, dtype=torch.double) for _ in levels]
    drawn = []
    for sampler in (sample_cached, sample_plain):
        codes = [one.clone() for one in given]
        sampler(prior, codes, known, paths, label, uniforms, params)
        drawn.append(codes)
    for cached, plain, before, kept in zip(*drawn, given, known, strict=True):
        assert torch.equal(cached, plain)
        assert torch.equal(cached[kept], before[kept])


def test_a_network_covers_the_levels_that_are_linked() -> None:
    config = override(get("treevq/cifar10").config, {
        "model.quantizer.levels": "7", "model.quantizer.linked": "3", "prior.network.kind": "gpt",
    })  # fmt: skip
    assert config.prior_levels == (range(3), range(3, 6), range(6, 7))
    each = override(get("vqvae2/mnist").config, {"prior.network.kind": "gpt"})
    assert each.prior_levels == (range(1), range(1, 2), range(2, 3))
