"""The transformer with a head for each level: what a code depends on, the network by hand, cached and plain sampler."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.priors.base import Level, build_prior, code_loss, total_bits
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.generative import KnownCodes, sample_cached, sample_codes
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from hrvqvae.utils.errors import InputError, NonFiniteError


def levels_of(
    grid: tuple[int, int], symbols: tuple[int, ...], *, linked: bool, classes: int = 0, unconditional: bool = False,
    coarser: tuple[int, ...] = (),
) -> list[Level]:  # fmt: skip
    """The levels of a tree, or of codebooks that are not linked, below `coarser` ones, to which they are not linked."""
    codewords = np.cumprod(symbols).tolist() if linked else list(symbols)
    return [
        Level(
            grid=grid, symbols=own, coarser=(*coarser, *codewords[:index]), codewords=codewords[index],
            classes=classes, unconditional=unconditional,
        )
        for index, own in enumerate(symbols)
    ]  # fmt: skip


def random_gpt(config: GPTConfig, levels: list[Level], seed: int = 0) -> GPT:
    """A prior in evaluation mode whose weights are large enough that everything matters."""
    torch.manual_seed(seed)
    prior = GPT(config, *levels).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def random_codes(levels: list[Level], batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(level.symbols, (batch, *level.grid), generator=generator) for level in levels]


SMALL = GPTConfig(hidden_units=12, layers=2, heads=3, dropout=0.3, path_units=5)


@pytest.mark.parametrize("linked", [True, False])
def test_a_code_depends_on_every_code_before_it_and_on_no_other(linked: bool) -> None:
    """Before it: at earlier positions of all levels, and of the levels before at its own position."""
    levels = levels_of((3, 4), (3, 2, 4), linked=linked, classes=3)
    prior, codes = random_gpt(SMALL, levels).double(), random_codes(levels, 1)

    def logits(codes: list[Tensor], label: int = 1) -> Tensor:
        found = prior.level_logits(codes, [], torch.tensor([label]))
        return torch.stack([one[0, 0] - one[0, 1] for one in found], -1).flatten()  # by position, then level

    before, reached = logits(codes), torch.zeros(36, 36, dtype=torch.bool)
    for place in range(36):
        changed = [one.clone() for one in codes]
        position, level = divmod(place, 3)
        changed[level].view(-1)[position] = (changed[level].view(-1)[position] + 1) % levels[level].symbols
        reached[place] = logits(changed) != before
    assert torch.equal(reached, torch.ones(36, 36).triu(1).bool())
    assert (logits(codes, label=2) != before).all(), "the class moves all"
    with pytest.raises(InputError, match="class-conditional"):
        prior.level_logits(codes, [], None)


def test_logits_by_hand() -> None:
    levels = levels_of((2, 3), (4, 2), linked=True, classes=2)
    config = GPTConfig(hidden_units=6, layers=1, heads=2, path_units=3)
    prior, codes, label = random_gpt(config, levels), random_codes(levels, 2), torch.tensor([1, 0])

    def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        return layer_norm(x, (6,), norm.weight, norm.bias)

    first, second = (table.weight for table in prior.embeddings.tables)
    own = [first[codes[0]], second[codes[0] * 2 + codes[1]]]
    seen, x = own[0] + own[1], torch.zeros(2, 6, 6)
    for place in range(6):
        row, column = divmod(place, 3)
        x[:, place] = prior.rows[row] + prior.columns[column] + prior.classes.weight[label]  # type: ignore[union-attr]
        x[:, place] += prior.left(seen[:, (place - 1) // 3, (place - 1) % 3] if place else torch.zeros(2, 3))
        for tap in range(3):
            if row and 0 <= column + tap - 1 < 3:
                x[:, place] += seen[:, row - 1, column + tap - 1] @ prior.above.weight[:, :, 0, tap].T
    layer = prior.layers[0]
    q, k, v = layer.inputs(normed(x, layer.attention_norm)).chunk(3, -1)
    parts = []
    for head in range(2):
        one = slice(3 * head, 3 * head + 3)
        scores = q[..., one] @ k[..., one].transpose(1, 2) / 3**0.5
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        parts.append(scores.softmax(-1) @ v[..., one])
    x = x + layer.output(torch.cat(parts, -1))
    x = x + layer.narrow(gelu(layer.widen(normed(x, layer.network_norm))))
    features, found = normed(x, prior.norm), prior.level_logits(codes, [], label)
    for head, before, logits in zip(prior.heads, (torch.zeros(2, 6, 3), own[0].flatten(1, 2)), found, strict=True):
        y = features + before @ head.before.weight.T
        y = y + head.narrow(gelu(head.widen(normed(y, head.norm))))
        expected = head.output(normed(y, head.last_norm))
        torch.testing.assert_close(logits.flatten(2).transpose(1, 2), expected)


def test_dropout_is_of_training_alone() -> None:
    levels = levels_of((2, 3), (4, 4), linked=False)
    prior, codes = random_gpt(SMALL, levels), random_codes(levels, 2)
    again = [prior.train(training).level_logits(codes, [], None)[0] for training in (False, False, True)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_paths_grow_from_their_parents_where_codebooks_are_linked() -> None:
    levels = levels_of((2, 3), (3, 2, 4), linked=True)
    codes = random_codes(levels, 2)
    expected = [codes[0], codes[0] * 2 + codes[1], (codes[0] * 2 + codes[1]) * 4 + codes[2]]
    found = random_gpt(SMALL, levels).paths(codes)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    found = random_gpt(SMALL, levels_of((2, 3), (3, 2, 4), linked=False)).paths(codes)
    assert all(torch.equal(one, other) for one, other in zip(found, codes, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_cached_and_plain_draw_the_same_codes(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = (int(random.integers(1, 5)), int(random.integers(1, 5)))
    symbols = tuple(int(random.integers(2, 6)) for _ in range(int(random.integers(1, 5))))
    classes, heads = int(random.integers(0, 4)), int(random.integers(1, 4))
    coarser = (3, 6)[: int(random.integers(3))]
    linked = bool(random.integers(2))
    levels = levels_of(grid, symbols, linked=linked, classes=classes, unconditional=classes > 0, coarser=coarser)
    prior = random_gpt(
        GPTConfig(hidden_units=4 * heads, layers=int(random.integers(1, 4)), heads=heads, path_units=6, most_paths=7),
        levels, seed,
    )  # fmt: skip
    params = SamplingParams(
        temperature=float(random.choice([0.7, 1.0])), top_k=int(random.integers(0, min(symbols) + 1)),
        guidance=float(random.choice([0.0, 1.0, 2.0])) if classes else 1.0,
    )  # fmt: skip
    batch, generator = int(random.integers(1, 5)), torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch,), generator=generator) if classes else None
    paths = [torch.randint(number, (batch, *grid), generator=generator) for number in coarser]
    given = random_codes(levels, batch, seed)
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


def test_a_sample_does_not_depend_on_its_batch_and_keeps_what_is_known() -> None:
    prior = random_gpt(SMALL, levels_of((4, 3), (3, 3), linked=True, classes=2))
    labels = torch.tensor([0, 1, 1, 0])

    def drawn(numbers: range, label: Tensor, known: KnownCodes | None = None) -> tuple[Tensor, ...]:
        return sample_codes(
            [prior], lambda _: (), numbers, seed=4, label=label, params=SamplingParams(), known=known
        )  # fmt: skip

    alone = drawn(range(2, 3), labels[2:3])
    for one, other in zip(drawn(range(4), labels), alone, strict=True):
        assert torch.equal(one[2:3], other)
    where = torch.zeros(4, 3, dtype=torch.bool)
    where[:2] = True
    for change in (0, 1):
        given = tuple((one + change) % 3 for one in alone)
        kept = drawn(range(2, 3), labels[2:3], KnownCodes(given, (where,) * 2))
        assert all(torch.equal(one[0][where], two[0][where]) for one, two in zip(kept, given, strict=True))
        own = all(torch.equal(one, two) for one, two in zip(kept, alone, strict=True))
        assert own == (change == 0), "its own codes change nothing"


@pytest.mark.parametrize("sampler", [sample_cached, sample_plain])
def test_level_and_position_of_logits_that_are_not_finite_are_named(sampler: Callable[..., None]) -> None:
    levels = levels_of((3, 4), (3, 3), linked=True)
    prior, codes = random_gpt(SMALL, levels), random_codes(levels, 2)
    prior.heads[1].output.bias[:] = float("nan")
    unknown = [torch.zeros_like(one, dtype=torch.bool) for one in codes]
    uniforms = [torch.full(one.shape, 0.5, dtype=torch.double) for one in codes]
    with pytest.raises(NonFiniteError, match="the prior of level 2 gives logits that are NaN .* row 0, column 0"):
        sampler(prior, codes, unknown, [], None, uniforms, SamplingParams())


def test_bits_are_of_each_level() -> None:
    levels = levels_of((3, 4), (3, 2), linked=True)
    prior, codes = random_gpt(SMALL, levels), random_codes(levels, 2)
    expected = []
    for own, logits in zip(codes, prior.level_logits(codes, [], None), strict=True):
        shares = logits.double().softmax(1).gather(1, own[:, None])
        expected.append(float(-shares.log2().sum()))
    assert total_bits(prior, codes, [], None) == pytest.approx(expected, rel=1e-5)
    nats = float(code_loss(prior, codes, [], None))
    assert nats / np.log(2) == pytest.approx(sum(expected) / 48, rel=1e-5)


def test_a_network_covers_the_levels_that_are_linked() -> None:
    config = override(get("treevq/cifar10").config, {"model.quantizer.levels": "7", "model.quantizer.linked": "3"})
    assert config.prior_levels == (range(3), range(3, 6), range(6, 7))
    prior = build_prior(config, range(3, 6), 10)
    assert [level.linked for level in prior.levels] == [False, True, True]
    assert [level.number for level in prior.levels] == [4, 5, 6]
    each = override(get("vqvae2/mnist").config, {"prior.network.kind": "gpt"})
    assert each.prior_levels == (range(1), range(1, 2), range(2, 3))


def test_sizes_out_of_range() -> None:
    for fields in ({"layers": 0}, {"hidden_units": 10}, {"path_units": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match=r"prior.network\."):
            GPTConfig(**fields)  # type: ignore[arg-type]
