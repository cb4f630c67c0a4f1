"""Classifier-free guidance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.priors.base import Level, Prior
from hrvqvae.priors.generative import KeptCodes, Sampler, sample_cached, sample_codes
from hrvqvae.priors.sampling import SamplingParams, draw_code, expand_labels, sample_plain
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from tests.conftest import same, threads
from tests.priors.test_gpt import SMALL
from tests.priors.test_pixelsnail import network, random_prior

_LABEL = torch.tensor([2, 0, 1, 1, 2])


def random_network(kind: str, level: Level, seed: int = 0) -> Prior:
    """A network of that kind whose weights are large enough that everything matters."""
    return random_prior(network() if kind == "pixelsnail" else SMALL, level, seed=seed)


def two_levels(kind: str, grid: tuple[int, int], symbols: int, seed: int) -> list[Prior]:
    levels = [
        Level(grid=grid, symbols=symbols, coarser=coarser, classes=3, unconditional=True)
        for coarser in ((), (symbols,))
    ]
    return [random_network(kind, level, seed + index) for index, level in enumerate(levels)]


def paths(codes: Codes) -> tuple[Tensor, ...]:
    return codes


def sampled(
    priors: list[Prior], params: SamplingParams, sampler: Sampler = sample_cached, kept: KeptCodes | None = None
) -> Codes:
    indices = range(len(_LABEL))
    return sample_codes(priors, paths, indices, seed=6, label=_LABEL, params=params, kept=kept, sampler=sampler)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.5, 3.0])
def test_codes_are_drawn_by_the_mixture_of_both_logits(guidance: float) -> None:
    prior = random_network("gpt", Level(grid=(2, 3), symbols=4, classes=3, unconditional=True))
    (codes,) = sampled([prior], SamplingParams(guidance=guidance), sample_plain)
    for index, label in enumerate(_LABEL.tolist()):
        generator = np.random.default_rng((6, index))
        generator.random()  # the class
        expected = torch.zeros(1, 2, 3, dtype=torch.long)
        for place, uniform in enumerate(generator.random(6)):
            c, u = (
                prior.level_logits([expected], [], torch.tensor([condition]))[0].flatten(2)[0, :, place]
                for condition in (label, 3)
            )
            mixed = np.exp((u + guidance * (c - u)).double().numpy())
            expected.view(-1)[place] = int(np.searchsorted(np.cumsum(mixed / mixed.sum()), uniform, side="right"))
        assert torch.equal(codes[index], expected[0])


@pytest.mark.parametrize("kind", ["pixelsnail", "gpt"])
def test_guidance_matters_and_two_threads_draw_the_same(kind: str) -> None:
    priors = two_levels(kind, (5, 4), 4, 0)
    weak, strong = (sampled(priors, SamplingParams(guidance=guidance)) for guidance in (1.0, 3.0))
    assert not torch.equal(weak[0], strong[0])
    with threads(2):
        assert same(strong, sampled(priors, SamplingParams(guidance=3.0)))


@pytest.mark.parametrize("kind", ["pixelsnail", "gpt"])
def test_unguided_codes_are_those_of_a_prior_without_the_row_and_guidance_0_withholds_the_class(kind: str) -> None:
    level = Level(grid=(4, 5), symbols=4, classes=3, unconditional=True)
    guided = random_network(kind, level)
    plain = random_network(kind, Level(grid=(4, 5), symbols=4, classes=3))
    weights = guided.state_dict()
    weights["classes.weight"] = weights["classes.weight"][:3]
    plain.load_state_dict(weights)
    assert torch.equal(sampled([guided], SamplingParams())[0], sampled([plain], SamplingParams())[0])
    without = SamplingParams(guidance=0)
    other = sample_codes([guided], paths, range(5), seed=6, label=0 * _LABEL, params=without, sampler=sample_cached)
    assert torch.equal(sampled([guided], without)[0], other[0]), "whatever the class"


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5),
)
def test_the_largest_guidance_and_the_least_temperature_draw_the_likeliest(
    left: list[float], right: list[float]
) -> None:
    length = min(len(left), len(right))
    params = SamplingParams(guidance=1000, temperature=1e-6)
    given_class, without = np.float32(left[:length]), np.float32(right[:length])
    _, mixing = expand_labels(Level(grid=(1, 1), symbols=2, classes=1, unconditional=True), torch.tensor([0]), 1000)
    mixed = (np.stack([given_class, without]) * mixing.numpy()[:, None]).sum(0)
    assert mixed[draw_code(mixed, 0.0, params)] >= mixed.max() - 1e-3


def test_what_was_trained_without_class_dropout_is_not_guided() -> None:
    levels = [
        Level(grid=(2, 2), symbols=3, classes=3, unconditional=True),
        Level(grid=(2, 2), symbols=3, coarser=(3,), classes=3),
    ]
    priors: list[Prior] = [random_network("gpt", level) for level in levels]
    line = "guidance is 1.5, but the prior of level 2 was trained without class dropout: train it with --prior.class_dr"
    with pytest.raises(InputError, match=line):
        sampled(priors, SamplingParams(guidance=1.5))
    classless = [random_network("gpt", Level(grid=(1, 1), symbols=2))]
    with pytest.raises(InputError, match=r"guidance is 1.5, but the prior of level 1 knows no classes: leave it at 1"):
        sample_codes(classless, paths, [0], seed=0, label=None, params=SamplingParams(guidance=1.5))
