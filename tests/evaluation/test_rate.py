"""The baselines beside the priors' bits: sources whose entropy is known are coded at it, never below."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.evaluation.rate import ContextCode, ContextCounts, label_bits, measure_rate
from hrvqvae.priors.base import Level, LevelPrior
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.utils.errors import InputError


class Paths:
    """A model that is asked for nothing but paths, which are its codes."""

    def paths(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return codes


def maps_of(*levels: np.ndarray, labels: np.ndarray | None = None, classes: int = 0) -> CodeMaps:
    known = np.zeros(len(levels[0]), np.int64) if labels is None else labels
    return CodeMaps(levels, known, tuple(map(str, range(classes))))


def bits_a_code(train: CodeMaps, test: CodeMaps, symbols: int, classes: int = 0) -> list[tuple[float, float]]:
    """Of each level, by the path, and by the path and the neighbours."""
    levels = len(train.levels)
    baselines = ContextCounts(Paths(), [symbols] * levels, [symbols] * (levels - 1), classes)  # type: ignore[arg-type]
    baselines.count(train)
    sizes = [level.size for level in test.levels]
    return [(path / size, around / size) for (path, around), size in zip(baselines.bits(test), sizes, strict=True)]


def test_uniform_codes_of_many_symbols_take_what_they_take() -> None:
    """Nearly every pair of neighbours is seen once at most: as an entropy of the counts it would look certain."""
    generator = np.random.default_rng(0)
    train, test = (maps_of(generator.integers(0, 1024, (count, 8, 8))) for count in (400, 60))
    ((path, neighbours),) = bits_a_code(train, test, 1024)
    assert path == pytest.approx(10, abs=0.1)
    assert neighbours == pytest.approx(path, abs=0.01)


def test_codes_that_follow_from_their_neighbours_take_nothing() -> None:
    generator = np.random.default_rng(0)

    def stripes(count: int) -> CodeMaps:
        first = generator.integers(0, 16, (count, 1, 1))
        return maps_of((first + np.arange(64)[:, None] + 3 * np.arange(64)) % 16)

    ((path, neighbours),) = bits_a_code(stripes(60), stripes(20), 16)
    assert path == pytest.approx(4, abs=0.02)
    assert neighbours < 0.01


def test_a_path_and_a_class_are_known() -> None:
    """Level 2 is its parent plus its class; the level is twice as fine as level 1."""
    generator = np.random.default_rng(0)

    def classed(count: int) -> CodeMaps:
        coarse, labels = generator.integers(0, 8, (count, 4, 4)), generator.integers(0, 5, count)
        fine = (coarse.repeat(2, 1).repeat(2, 2) + labels[:, None, None]) % 8
        return maps_of(coarse, fine, labels=labels, classes=5)

    train, test = classed(300), classed(40)
    knowing, guessing = (bits_a_code(train, test, 8, classes)[1] for classes in (5, 0))
    assert max(knowing) < 0.01
    assert guessing[0] == pytest.approx(np.log2(5), abs=0.03), "parent plus one of five"
    assert guessing[1] < 0.6 * guessing[0], "a neighbour tells the class"


@pytest.mark.parametrize(("symbols", "images"), [(4, 400), (16, 400), (64, 100), (256, 20)])
def test_the_entropy_of_a_chain_is_reached_from_above(symbols: int, images: int) -> None:
    """Each code follows from the one to its left by a known table of probabilities: the entropy rate is known too."""
    generator = np.random.default_rng(symbols)
    table = generator.dirichlet(np.full(symbols, 0.3), symbols)
    limits = table.cumsum(1)

    def chains(count: int) -> tuple[CodeMaps, float]:
        codes = np.zeros((count * 8, 33), np.int64)
        spent = 0.0
        for column in range(1, 33):
            before = codes[:, column - 1]
            drawn = (generator.random((len(codes), 1)) > limits[before]).sum(1).clip(max=symbols - 1)
            codes[:, column] = drawn
            spent -= np.log2(table[before, drawn]).sum()
        return maps_of(codes[:, 1:].reshape(count, 8, 32)), spent / (count * 8 * 32)

    (train, _), (test, truth) = chains(images), chains(100)
    ((path, neighbours),) = bits_a_code(train, test, symbols)
    assert neighbours > truth - 0.02
    assert path > truth
    assert neighbours < path + 0.01, "contexts that are too rare to tell something cost nothing"
    if images == 400:
        assert neighbours < 0.35 * truth + 0.65 * path, "and others are used"


def test_codes_and_contexts_never_seen_have_a_price() -> None:
    code = ContextCode(4, [3])
    ones = np.ones(50, np.int64)
    code.count(ones, [ones])
    code.choose_weights(ones[:5], [ones[:5]])
    never, elsewhere = np.array([3]), np.array([2])
    assert 2 < code.bits(never, [ones[:1]])[0] < 20
    assert code.bits(never, [elsewhere]) == [2.0], "an unknown context tells nothing: 2 bits for one of four"
    assert ContextCode(4, [3]).bits(never, [elsewhere]) == [2.0], "nothing is counted"


def test_the_shares_of_all_symbols_add_up() -> None:
    generator = np.random.default_rng(1)
    codes, contexts = generator.integers(0, 6, 80), [generator.integers(0, 5, 80), generator.integers(0, 40, 80)]
    code = ContextCode(6, [5, 40])
    code.count(codes[:60], [context[:60] for context in contexts])
    code.choose_weights(codes[60:], [context[60:] for context in contexts])
    for one, other in [(0, 0), (4, 17), (2, 39)]:
        spent = [code.bits(np.array([symbol]), [np.array([one]), np.array([other])]) for symbol in range(6)]
        assert np.exp2(-np.array(spent)).sum(0) == pytest.approx([1, 1])


def test_more_contexts_than_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="too many to be numbered"):
        ContextCode(2**13, [2**50])


def test_a_label_takes_the_bits_of_its_frequency() -> None:
    counted = np.array([0] * 7 + [1] * 3 + [2] * 3 + [3] * 0)  # each once more: 8, 4, 4 and 1 of 17
    assert label_bits(counted, np.array([0, 1]), 4) == pytest.approx(np.log2(17) - 2.5)
    assert label_bits(counted, np.array([3]), 4) == pytest.approx(np.log2(17))


class Knowing(LevelPrior):
    """A prior that gives the class's own code half of the probability."""

    def logits(self, codes: Tensor, coarser: object, label: Tensor | None) -> Tensor:
        assert label is not None
        shares = torch.full((len(codes), self.level.symbols), 0.5 / (self.level.symbols - 1))
        shares[torch.arange(len(codes)), label] = 0.5
        return shares.log()[:, :, None, None].expand(-1, -1, *self.level.grid)


def test_everything_is_given_the_class_and_the_class_stands_beside() -> None:
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 4, count) for count in (100, 30)]
    train, test = (
        maps_of(np.broadcast_to(one[:, None, None], (len(one), 3, 5)).copy(), labels=one, classes=4) for one in labels
    )
    priors = [Knowing(PixelSNAILConfig(), Level(grid=(3, 5), symbols=4, classes=4))]
    rate = measure_rate(priors, Paths(), test, train, torch.device("cpu"))  # type: ignore[arg-type]
    assert rate.prior_bits_per_image == pytest.approx(15)
    assert rate.levels[0].prior == pytest.approx(1)
    assert rate.path_bits_per_image < 0.1
    assert rate.label_bits_per_image == pytest.approx(2, abs=0.1)
