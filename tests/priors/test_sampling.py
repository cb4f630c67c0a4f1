"""Cached samplers draw the codes of the plain sampler; options, kept codes, guidance, attention,
dropout.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax
from torch.testing import assert_close

from hrvqvae.model import load
from hrvqvae.priors.base import Level, LogitSteps, Priors
from hrvqvae.priors.causal import attend
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.generative import (
    KeptCodes,
    draw_labels,
    mask_kept_codes,
    sample_codes,
    weigh_classes,
)
from hrvqvae.priors.sampling import (
    SamplingParams,
    draw,
    draw_positions,
)
from tests.conftest import (
    approx,
    cells_of,
    double_precision,
    generator,
    input_error,
    nonfinite_error,
    parametrize,
    random_images,
    same,
)
from tests.newest.waits import CountReads
from tests.priors.networks import (
    SMALL,
    inputs,
    level_of,
    levels_of,
    network,
    of_each_kind,
    random_codes,
    random_prior,
)

PLAIN = SamplingParams()


def drawn(
    prior,
    batch,
    seed,
    params=PLAIN,
    keep=0.0,
):
    """Random codes, of which a share `keep` is kept and the rest is drawn."""
    codes = random_codes(prior.levels, batch, seed)
    rng = generator(seed)
    _, coarser, label = inputs(prior.level, batch, seed)
    kept = [torch.rand(tensor.shape, generator=rng) < keep for tensor in codes]
    uniforms = [torch.rand(tensor.shape, generator=rng, dtype=torch.float64) for tensor in codes]
    before = [tensor.clone() for tensor in codes]
    draw_positions(prior, codes, kept, coarser, label, uniforms, params)
    for changed, original, mask in zip(codes, before, kept, strict=True):
        assert same(changed[mask], original[mask])
    return codes


class LeafSteps(LogitSteps):
    """All leaves of a position, by the logits of the levels for the codes of each."""

    def logits(self, level):
        prior = self.prior
        symbols = [entry.symbols for entry in prior.levels]
        leaves = []
        for leaf in itertools.product(*map(range, symbols)):
            codes = [level_codes.clone() for level_codes in self.codes]
            for level_codes, code in zip(codes, leaf, strict=True):
                level_codes[:, *self.place] = code
            nats = 0
            expanded = [level_codes.repeat(self.num_labels, 1, 1) for level_codes in codes]
            logits = prior.level_logits(expanded, self.coarser, self.label)
            for level_logits, code in zip(logits, leaf, strict=True):
                nats = nats + level_logits.log_softmax(1)[:, code, *self.place]
            leaves.append(nats)
        stacked = torch.stack(leaves, -1)
        return self.mix(stacked.view(self.num_labels, -1, len(leaves)))


@parametrize("kind", ["pixelsnail", "choices", "sums"])
@parametrize("seed", range(8))
def test_cached_and_plain_draw_the_same_codes(kind, seed):
    random = np.random.default_rng(seed)

    def choose(*values):
        return values[random.integers(len(values))]

    def draw(most, least=1):
        return int(random.integers(least, most + 1))

    grid = (draw(7), draw(6))
    heads = draw(3)
    layers = draw(4)
    classes = draw(3, 0)
    unconditional = classes > 0 and choose(True, False)
    options = {"classes": classes, "unconditional": unconditional}
    options["coarser"] = choose((), (3,), (3, 6))
    if kind == "pixelsnail":
        levels = [Level(grid=grid, symbols=draw(8, 2), **options)]
        config = network(
            hidden_units=heads * draw(5),
            residual_units=draw(9),
            residual_blocks=layers,
            attention_heads=heads,
            attention_layers=(draw(layers, 0),),
            kernel=choose(3, 5, 7),
        )
    else:
        symbols = tuple(draw(4, 2) for _ in range(draw(3)))
        levels = levels_of(grid, symbols, **options)
        config = GPTConfig(
            hidden_units=4 * heads,
            layers=layers,
            heads=heads,
            path_units=6,
            most_paths=7,
            output=kind,
        )
    fewest = min(level.symbols for level in levels)
    params = SamplingParams(
        temperature=choose(1.0, 0.7, 1.5),
        top_k=choose(0, 1, fewest),
        top_p=choose(1.0, 0.9, 0.4),
        guidance=choose(0.0, 1.0, 3.0, (1.5, 0.0)) if unconditional else 1.0,
    )
    prior = random_prior(config, *levels, seed=seed)
    batch = choose(1, 3, 9)
    keep = choose(0.0, 0.0, 0.4)
    cached = drawn(prior, batch, seed, params, keep)
    prior.steps = LeafSteps if kind == "sums" else LogitSteps
    plain = drawn(prior, batch, seed, params, keep)
    assert same(cached, plain)


def draw_code(logits, uniform, params):
    """Draw a code from logits (m,); None if they have no distribution."""
    uniforms = torch.tensor([[uniform]], dtype=torch.float64)
    codes, total = draw(torch.from_numpy(logits)[None], uniforms, params)
    return None if total.isnan() else int(codes)


def chosen_by_definition(logits, uniform, params):
    shares = softmax(logits.astype(np.float64) / params.temperature)
    order = np.argsort(-shares, kind="stable")[: params.top_k or None]
    likelier = np.cumsum(shares[order]) - shares[order]
    kept = order[likelier < params.top_p * shares[order].sum() - 1e-12]
    left = np.zeros_like(shares)
    left[kept] = shares[kept]
    return int(np.searchsorted(np.cumsum(left / left.sum()), uniform, side="right"))


@parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.7},
        {"temperature": 2, "top_k": 4, "top_p": 0.8},
    ],
)
def test_a_code_is_drawn_as_described(options):
    """Some logits are equal; of those the lower codes are kept."""
    generator = np.random.default_rng(3)
    params = SamplingParams(**options)
    for _ in range(300):
        logits = generator.normal(size=6).astype(np.float32).round() * 2
        uniform = float(generator.random())
        assert draw_code(logits, uniform, params) == chosen_by_definition(logits, uniform, params)


def tree_paths(codes):
    return tuple(itertools.accumulate(codes, lambda parent, code: parent * 3 + code))


@pytest.fixture(params=["pixelsnail", "gpt"])
def three_levels(request):
    levels = levels_of((4, 3), (3, 3, 3), classes=2)
    if request.param == "gpt":
        return [random_prior(SMALL, *levels)]
    return [random_prior(network(), level, seed=seed) for seed, level in enumerate(levels)]


def sampled(priors, indices, seed=4, kept=None):
    """Codes (levels, N, 4, 3)."""
    label = torch.tensor([index % 2 for index in indices])
    codes = sample_codes(
        priors, tree_paths, indices, seed=seed, label=label, params=PLAIN, kept=kept
    )
    return torch.stack(codes)


def test_a_sample_is_the_same_in_every_batch(three_levels):
    together = sampled(three_levels, range(5))
    for index in range(5):
        assert same(together[:, [index]], sampled(three_levels, [index]))
    assert not same(together, sampled(three_levels, range(5), seed=5))


def test_labels_come_as_often_as_in_training():
    priors = Priors((), ("cat", "dog"), (1, 1))
    for name in ("dog", "1", 1):
        assert priors.class_index(name) == 1
    numbered = Priors((), ("1", "2", "3"), (1, 1, 1))
    assert [numbered.class_index(name) for name in (0, 1, 2, "1", "2", "0")] == [0, 1, 2, 0, 1, 0]
    labels = draw_labels([10, 0, 30], seed=0, indices=range(4000))
    counts = torch.bincount(labels, minlength=3).tolist()
    assert counts[1] == 0
    assert abs(counts[0] - 1000) < 100


@parametrize(
    "options, message",
    cells_of("""
        temperature: 0 | temperature is .* from 1e-6 to 1e6
        top_k: -1 | top-k is -1
        top_p: 0 | top-p is 0
        top_p: 1.5 | top-p is 1.5
        guidance: -0.5 | guidance is -0.5; it must
        guidance: [2, -1] | guidance is .2, -1.; it must
        guidance: "5" | guidance is .*; it must be
        guidance: [3, 2, 1] | guidance is .*; it must be
    """),
)
def test_options_out_of_range(options, message):
    with input_error(message):
        SamplingParams(**yaml.safe_load(options))


@parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@parametrize("params", [PLAIN, SamplingParams(top_k=2), SamplingParams(top_p=0.5)])
def test_logits_without_a_distribution_give_no_code(bad, params):
    logits = np.array([0.0, 1.0, 2.0, 0.5], np.float32)
    for code in range(4):
        changed = logits.copy()
        changed[code] = bad
        drawn_code = draw_code(changed, 0.3, params)
        assert drawn_code is None if bad != -np.inf else drawn_code not in (None, code)
    assert draw_code(np.full(4, bad, np.float32), 0.3, params) is None


def test_logits_that_are_not_finite_are_refused():
    prior = random_prior(SMALL, *levels_of((3, 4), (3, 3), coarser=(3, 9)))
    prior.heads[1].output.bias[:] = torch.nan
    with nonfinite_error("level 3 gives logits that are NaN or infinite"):
        drawn(prior, 2, 0, SamplingParams(top_k=2))


def test_what_is_kept():
    coarse, middle, fine = mask_kept_codes("0.3", [(4, 4), (8, 8), (16, 16)])
    assert coarse.sum() == 4
    for row, column in np.ndindex(4, 4):
        assert same(fine[row::4, column::4], coarse)
        assert same(middle[row % 2 :: 2, column % 2 :: 2], coarse)


def test_a_mask_keeps_codes_whose_pixels_are_all_kept():
    mask = torch.ones(8, 8).bool()
    mask[5, 2] = False
    coarse, fine = mask_kept_codes(mask, [(4, 4), (8, 8)])
    assert (~coarse).nonzero().tolist() == [[2, 1]]
    assert (~fine).nonzero().tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]


@parametrize("length", [1, 31, 32, 33, 65, 130, 256])
@parametrize("causal", [True, False])
def test_attention_is_a_masked_softmax(length, causal):
    rng = generator(length)
    inputs = [
        torch.randn(2, 3, length, 4, generator=rng, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    queries, keys, values = inputs
    scores = queries @ keys.transpose(-1, -2) / 2
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ values
    attended = attend(*inputs, causal=causal)
    assert_close(attended, expected)
    outer = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    gradients = (torch.autograd.grad((each * outer).sum(), inputs) for each in (attended, expected))
    assert_close(*gradients)


_LABEL = torch.tensor([2, 0, 1, 1, 2])


def two_levels(config, grid=(5, 4), symbols=4):
    """Priors of two levels, with three classes and without."""
    levels = levels_of(grid, (symbols, symbols), classes=3, unconditional=True)
    return [random_prior(config, level, seed=seed) for seed, level in enumerate(levels)]


def guided_codes(priors, **options):
    return sample_codes(
        priors,
        lambda codes: codes,
        range(len(_LABEL)),
        seed=6,
        label=_LABEL,
        params=SamplingParams(**options),
    )


@parametrize("guidance", [0.0, 0.5, 1.0, 3.0, (1.5, 0.0), (1.0, 3.0), (2.0,)])
def test_codes_are_drawn_by_the_mixture_of_both_logits(guidance):
    levels = levels_of((2, 3), (4, 3), classes=3, unconditional=True)
    prior = random_prior(SMALL, *levels)
    prior.steps = LogitSteps
    codes = torch.stack(guided_codes([prior], guidance=guidance))
    first, last = np.broadcast_to(guidance, 2)
    weights = first + (last - first) * np.linspace(0, 1, 6) ** 0.5
    for index, label in enumerate(_LABEL.tolist()):
        generator = np.random.default_rng((6, index))
        generator.random()  # the class
        uniforms = generator.random(12).reshape(2, 6)
        expected = torch.zeros(2, 1, 2, 3).long()
        for place, level in itertools.product(range(6), range(2)):
            c, u = (
                prior.level_logits(expected, [], torch.tensor([condition]))[level]
                for condition in (label, 3)
            )
            mixed = (u + weights[place] * (c - u)).flatten(2)[0, :, place].numpy()
            expected[level].view(-1)[place] = draw_code(mixed, uniforms[level, place], PLAIN)
        assert same(codes[:, index], expected[:, 0])


def test_what_was_trained_without_class_dropout_is_not_guided():
    guided, unguided, classless = (
        random_prior(SMALL, level_of(coarser=(3,) * index, **fields))
        for index, fields in enumerate(({"classes": 3, "unconditional": True}, {"classes": 3}, {}))
    )
    for priors in ([guided, unguided], [classless]):
        with input_error("guidance is 1.5, but a prior .* without class dropout"):
            guided_codes(priors, guidance=1.5)


@of_each_kind
def test_tensors_are_made_on_the_device_of_the_prior(config):
    """A default device "meta" breaks every operation with a tensor that was made elsewhere."""
    draw = partial(guided_codes, two_levels(config), guidance=2.0, top_k=3)
    expected = draw()
    with double_precision(), torch.device("meta"):
        assert same(draw(), expected)


@of_each_kind
def test_no_position_waits_for_a_gpu(config):
    reads = []
    for grid in ((2, 3), (4, 5)):
        priors = two_levels(config, grid)
        with CountReads() as mode:
            guided_codes(priors, guidance=2.0)
        reads.append(mode.reads)
    assert reads[0] == reads[1] > 0


@of_each_kind
def test_the_class_of_a_completion_follows_from_the_kept_codes(config):
    prior = two_levels(config, (2, 2), symbols=2)[0]
    codes = torch.tensor([[[1, 0], [0, 1]]])
    counts = (5, 0, 20)
    top = torch.tensor([[True, True], [False, False]])
    kept = KeptCodes((codes,), (top,))
    weights = weigh_classes(prior, counts, kept)

    # by definition: the sum over all codes that agree with the kept codes
    filled = codes.repeat(4, 1, 1)
    filled[:, 1] = torch.tensor([*itertools.product(range(2), repeat=2)])
    shares = []
    for label, count in enumerate(counts):
        logits = prior.level_logits([filled], [], torch.full((4,), label))[0]
        chosen = logits.double().softmax(1).gather(1, filled[:, None])
        shares.append(count * chosen.flatten(1).prod(1).sum().item())
    assert weights == approx([share / sum(shares) for share in shares], rel=1e-4)
    labels = draw_labels(weights, 0, range(400))
    assert (labels == 2).double().mean().item() == approx(weights[2], abs=0.08)

    # with a drawn code before a kept one
    weights = weigh_classes(prior, counts, KeptCodes((codes,), (~top,)))
    assert weights[1] == 0
    assert sum(weights) == approx(1)


def test_the_kept_part_of_a_completion_shows_all_levels():
    model = load("treevq-cifar10")
    image = random_images(3, 32, 32)
    reconstruction = model.decode(model.encode(image[None]))[0]
    completed = model.complete(image, class_name=0, params=SamplingParams(levels=4))[0]
    assert same(completed[:, :16], reconstruction[:, :16])
    assert not same(completed[:, 16:], reconstruction[:, 16:])
