"""One prior for all levels: what a code depends on, the network by hand, the cached sampler, systems of one grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, elu, embedding

from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.priors.base import Level, Prior, build_prior, code_loss, total_bits
from hrvqvae.priors.configs import DepthConfig
from hrvqvae.priors.depth import DepthPrior
from hrvqvae.priors.generative import KnownCodes, sample_cached, sample_codes
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from hrvqvae.utils.errors import InputError, NonFiniteError


def levels_of(
    grid: tuple[int, int], symbols: tuple[int, ...], *, linked: bool, classes: int = 0, unconditional: bool = False
) -> list[Level]:
    """The levels of a tree with so many children at each depth, or of codebooks that are not linked."""
    codewords = np.cumprod(symbols).tolist() if linked else list(symbols)
    return [
        Level(
            grid=grid, symbols=own, coarser=tuple(codewords[:index]), codewords=codewords[index], classes=classes,
            unconditional=unconditional,
        )
        for index, own in enumerate(symbols)
    ]  # fmt: skip


def random_depth(levels: list[Level], seed: int = 0, **changes: object) -> DepthPrior:
    """A prior in evaluation mode whose weights are large enough that everything matters."""
    fields: dict[str, object] = {
        "hidden_units": 8, "residual_units": 6, "residual_blocks": 3, "attention_layers": 2, "attention_heads": 2,
        "kernel": 5, "dropout": 0.3, "head_units": 5,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = DepthConfig(**{**fields, **changes})  # type: ignore[arg-type]
    prior = DepthPrior(config, *levels).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def random_codes(levels: list[Level], batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(level.symbols, (batch, *level.grid), generator=generator) for level in levels]


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("attention", [0, 2])
def test_a_code_depends_on_the_positions_before_it_and_on_coarser_levels_at_its_own(
    attention: int, linked: bool
) -> None:
    levels = levels_of((4, 5), (3, 2, 4), linked=linked, classes=3)
    prior = random_depth(levels, attention_layers=attention).double()
    codes, label = random_codes(levels, 1), torch.tensor([1])
    before = prior.level_logits(codes, [], label)
    assert [tuple(one.shape) for one in before] == [(1, 3, 4, 5), (1, 2, 4, 5), (1, 4, 4, 5)]
    places = torch.arange(20)
    for changed_level in range(3):
        for place in range(20):
            changed = [one.clone() for one in codes]
            some = changed[changed_level].view(-1)
            some[place] = (some[place] + 1) % levels[changed_level].symbols
            after = prior.level_logits(changed, [], label)
            for level in range(3):
                moved = (after[level] != before[level]).any(1).flatten()
                own = moved[place]
                assert not moved[places < place].any(), "a position must not see later ones"
                assert bool(own) == (level > changed_level), "a level sees those before it at its position"
                if attention and place % 5 < 4:
                    assert moved[places > place].all(), "with attention every later position sees every level"
    other = prior.level_logits(codes, [], torch.tensor([2]))
    assert all((one != two).any(1).all() for one, two in zip(before, other, strict=True)), "the class moves all"


def test_paths_grow_from_their_parents_where_codebooks_are_linked() -> None:
    symbols = (3, 2, 4)
    codes = random_codes(levels_of((2, 3), symbols, linked=True), 2)
    tree = random_depth(levels_of((2, 3), symbols, linked=True))
    expected = [codes[0], codes[0] * 2 + codes[1], (codes[0] * 2 + codes[1]) * 4 + codes[2]]
    assert all(torch.equal(one, other) for one, other in zip(tree.paths(codes), expected, strict=True))
    flat = random_depth(levels_of((2, 3), symbols, linked=False))
    assert all(torch.equal(one, other) for one, other in zip(flat.paths(codes), codes, strict=True))


def test_a_head_by_hand() -> None:
    levels = levels_of((2, 3), (3, 2), linked=True)
    prior = random_depth(levels)
    codes = random_codes(levels, 2)
    base = prior.base([], None, 2)
    first, second = prior.embeddings
    embedded = embedding(codes[0], first.weight) + embedding(codes[0] * 2 + codes[1], second.weight)
    features = prior.features(embedded.permute(0, 3, 1, 2), base, prior.conditions(base))
    head = prior.heads[1]
    x = features + embedding(codes[0], head.paths[0].weight).permute(0, 3, 1, 2)
    inner = elu(conv2d(elu(x), head.narrow.weight, head.narrow.bias))
    value, gate = conv2d(inner, head.widen.weight, head.widen.bias).chunk(2, 1)
    expected = conv2d(elu(x + value * gate.sigmoid()), head.output.weight, head.output.bias)
    torch.testing.assert_close(prior.level_logits(codes, [], None)[1], expected)


def drawn(
    sampler: Callable[..., None],
    prior: Prior,
    label: Tensor | None,
    batch: int,
    seed: int,
    params: SamplingParams,
    keep: float,
) -> list[Tensor]:
    codes, generator = random_codes(list(prior.levels), batch, seed), torch.Generator().manual_seed(seed)
    known = [torch.rand(one.shape, generator=generator) < keep for one in codes]
    uniforms = [torch.rand(one.shape, generator=generator, dtype=torch.float64) for one in codes]
    given = [one.clone() for one in codes]
    sampler(prior, codes, known, [], label, uniforms, params)
    assert all(torch.equal(one[kept], two[kept]) for one, two, kept in zip(codes, given, known, strict=True))
    return codes


@pytest.mark.parametrize("seed", range(60))
def test_cached_and_plain_draw_the_same_codes(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def some(*values: object) -> object:
        return values[generator.integers(len(values))]

    heads, blocks = int(generator.integers(1, 4)), int(generator.integers(1, 4))
    symbols = tuple(generator.integers(2, 6, int(generator.integers(1, 4))).tolist())
    classes = int(generator.integers(0, 3))
    guided = classes > 0 and bool(generator.integers(2))
    grid = int(generator.integers(1, 5)), int(generator.integers(1, 5))
    levels = levels_of(grid, symbols, linked=bool(generator.integers(2)), classes=classes, unconditional=guided)
    prior = random_depth(
        levels, seed, hidden_units=heads * int(generator.integers(1, 6)), residual_units=int(generator.integers(1, 10)),
        residual_blocks=blocks, attention_layers=int(generator.integers(0, blocks + 1)), attention_heads=heads,
        kernel=some(3, 5, 7), head_units=int(generator.integers(1, 9)),
    )  # fmt: skip
    params = SamplingParams(
        temperature=some(1.0, 0.7, 1.5),  # type: ignore[arg-type]
        top_k=some(0, 1, min(symbols)),  # type: ignore[arg-type]
        top_p=some(1.0, 0.9, 0.4),  # type: ignore[arg-type]
        guidance=some(0.0, 1.5, 3.0) if guided else 1.0,  # type: ignore[arg-type]
    )
    batch, keep = int(generator.integers(1, 4)), float(some(0.0, 0.4))  # type: ignore[arg-type]
    label = torch.from_numpy(generator.integers(0, classes, batch)) if classes else None
    cached, plain = (drawn(one, prior, label, batch, seed, params, keep) for one in (sample_cached, sample_plain))
    assert all(torch.equal(one, other) for one, other in zip(cached, plain, strict=True))


def test_a_sample_does_not_depend_on_its_batch_and_keeps_what_is_known() -> None:
    levels = levels_of((4, 3), (3, 3), linked=True, classes=2)
    prior = random_depth(levels)

    def paths(codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(prior.paths(codes)) if codes else ()

    label = torch.tensor([0, 1, 1, 0])
    together = sample_codes([prior], paths, range(4), seed=4, label=label, params=SamplingParams())
    alone = sample_codes([prior], paths, [2], seed=4, label=label[2:3], params=SamplingParams())
    assert all(torch.equal(one[2:3], other) for one, other in zip(together, alone, strict=True))
    where = torch.zeros(4, 3, dtype=torch.bool)
    where[:2] = True
    other = tuple((one + 1) % 3 for one in alone)
    kept = sample_codes(
        [prior], paths, [2], seed=4, label=label[2:3], params=SamplingParams(), known=KnownCodes(other, (where,) * 2)
    )
    assert all(torch.equal(one[0][where], two[0][where]) for one, two in zip(kept, other, strict=True))
    again = sample_codes(
        [prior], paths, [2], seed=4, label=label[2:3], params=SamplingParams(), known=KnownCodes(alone, (where,) * 2)
    )
    assert all(torch.equal(one, two) for one, two in zip(again, alone, strict=True)), "its own codes change nothing"


@pytest.mark.parametrize("sampler", [sample_cached, sample_plain])
def test_level_and_position_of_logits_that_are_not_finite_are_named(sampler: Callable[..., None]) -> None:
    levels = levels_of((3, 4), (3, 3), linked=True)
    prior = random_depth(levels, attention_layers=0)
    prior.heads[1].output.bias[:] = float("nan")
    with pytest.raises(NonFiniteError, match="the prior of level 2 gives logits that are NaN .* row 0, column 0"):
        drawn(sampler, prior, None, 2, 0, SamplingParams(), 0.0)


def test_bits_are_of_each_level() -> None:
    levels = levels_of((3, 4), (3, 2), linked=True)
    prior, codes = random_depth(levels), random_codes(levels, 2)
    expected = []
    for own, logits in zip(codes, prior.level_logits(codes, [], None), strict=True):
        shares = logits.double().softmax(1).gather(1, own[:, None])
        expected.append(float(-shares.log2().sum()))
    assert total_bits(prior, codes, [], None) == pytest.approx(expected, rel=1e-5)
    nats = float(code_loss(prior, codes, [], None))
    assert nats / np.log(2) == pytest.approx(sum(expected) / 48, rel=1e-5)


@pytest.mark.parametrize("preset", ["hrvqvae/mnist", "rqvae/mnist", "vqvae/mnist", "fsq/mnist"])
def test_it_covers_the_levels_of_every_system_of_one_grid(preset: str) -> None:
    small = {"prior.network.kind": "depth", "data.size": "8", "prior.network.residual_blocks": "2"}
    config = override(get(preset).config, small)
    count = len(config.model.num_symbols)
    assert config.prior_levels == (range(count),)
    prior = build_prior(config, range(count), 10)
    code_loss(prior, random_codes(list(prior.levels), 2), [], torch.tensor([3, 9])).backward()  # type: ignore[no-untyped-call]
    reached = [bool(one.grad is not None and one.grad.abs().sum() > 0) for one in prior.parameters()]
    assert sum(reached) > 0.9 * len(reached), "every layer learns"
    assert [level.symbols for level in prior.levels] == list(config.model.num_symbols)
    assert [level.linked for level in prior.levels] == [preset.startswith("hrvqvae") and i > 0 for i in range(count)]


def test_a_system_of_several_grids_is_refused_in_a_line_that_says_what_to_take() -> None:
    config = override(get("vqvae2/mnist").config, {"prior.network.kind": "depth"})
    with pytest.raises(InputError, match=r"levels of one grid; this model has grids of .*: take pixelsnail"):
        config.prior_levels  # noqa: B018
    by_default = get("vqvae2/mnist").config
    assert by_default.prior_levels == tuple(range(i, i + 1) for i in range(len(by_default.model.num_symbols)))


def test_sizes_out_of_range() -> None:
    for fields in ({"attention_layers": 9}, {"hidden_units": 10}, {"head_units": 0}, {"dropout": 1.0}, {"kernel": 4}):
        with pytest.raises(InputError, match=r"prior.network\."):
            DepthConfig(**fields)  # type: ignore[arg-type]
