"""Codes chosen by error and bits: against a plain descent by the page's own decoder, and what never grows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hrvqvae.codec.choice import Models, choose
from hrvqvae.codec.stream import Codec
from tests.codec import oracle
from tests.codec.made import FLAT, HALF, TREE, bare, random_codes

CODECS = {"tree": TREE, "flat": FLAT, "half": HALF}
HEIGHT = 6  # of the images in pixels; the width is another


class Problem:
    """Images with candidates, of which the first is what they have, and errors in 64ths, which float32 holds."""

    def __init__(self, codec: Codec, width: int, count: int = 2, candidates: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.codec, self.size = codec, (HEIGHT, width)
        self.layout = codec.layout(self.size)
        self.images = random_codes(codec, self.size, count, seed)
        positions, levels = int(self.layout.begins[1]), len(codec.symbols)
        self.candidates = random.integers(0, codec.symbols, (count, positions, candidates, levels)).astype(np.int32)
        self.candidates[:, :, 0] = self.images.reshape(count, levels, positions).transpose(0, 2, 1)
        self.errors = (random.integers(0, 64, (count, positions, candidates)) / 64).astype(np.float32)
        self.chosen = np.zeros((count, positions), np.int64)
        self.places: NDArray[np.int64] = np.arange(positions)

    def choose(self, weight: float, places: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        models = Models.of(self.layout, [self.codec.network(level, True) for level in range(len(self.codec.symbols))])
        places = self.places if places is None else places
        return choose(models, self.images, self.candidates, self.errors, self.chosen, places, weight)

    def errors_of_chosen(self) -> NDArray[np.float64]:
        return np.take_along_axis(self.errors, self.chosen[:, :, None], 2).sum((1, 2)).astype(np.float64)


class ByThePage:
    """Bits of codes by the decoder that is written from docs/format.md."""

    def __init__(self, codec: Codec, size: tuple[int, int]) -> None:
        assert codec.tables is not None
        self.tables = oracle.TablesFile(codec.tables.content)
        self.grids = self.tables.grids(*size)

    def bits(self, codes: Any) -> float:
        """codes[level][y][x]"""
        total = 0.0
        for level, about in enumerate(self.tables.levels):
            if about is None:
                continue
            height, width = self.grids[level]
            for y in range(height):
                for x in range(width):
                    counts = self.tables.frequencies(level, self.grids, codes, y, x)
                    total += math.log2(sum(counts) / counts[codes[level][y][x]])
        return total


@pytest.mark.parametrize("name", CODECS)
def test_bits_are_those_of_the_page(name: str) -> None:
    problem = Problem(CODECS[name], 9)
    page = ByThePage(problem.codec, problem.size)
    grid = tuple(problem.layout.grids[0])
    expected = [page.bits(image.reshape(-1, *grid).tolist()) for image in problem.images]
    np.testing.assert_allclose(problem.choose(1.0, np.zeros(0, np.int64)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", CODECS)
def test_each_position_takes_the_candidate_of_the_least_sum(name: str) -> None:
    """The plain descent computes the bits of the whole image for every candidate. Twice, since rows are kept."""
    problem, weight = Problem(CODECS[name], 5 if name == "half" else 8, count=1, seed=3), 0.02
    page, grid = ByThePage(problem.codec, problem.size), tuple(problem.layout.grids[0])
    codes = problem.images[0].reshape(-1, *grid).tolist()
    chosen = [0] * len(problem.places)
    for _ in range(2):
        for place in problem.places.tolist():
            y, x = divmod(place, int(grid[1]))
            sums = []
            for number, candidate in enumerate(problem.candidates[0, place].tolist()):
                for level, code in enumerate(candidate):
                    codes[level][y][x] = code
                sums.append(float(problem.errors[0, place, number]) + weight * page.bits(codes))
            chosen[place] = min(range(len(sums)), key=lambda one: sums[one])
            for level, code in enumerate(problem.candidates[0, place, chosen[place]].tolist()):
                codes[level][y][x] = code
        bits = problem.choose(weight)
        assert problem.chosen[0].tolist() == chosen
        assert problem.images[0].reshape(-1, *grid).tolist() == codes
        assert bits[0] == pytest.approx(page.bits(codes), rel=1e-5)
    assert any(chosen), "nothing was better than what there was"


@pytest.mark.parametrize("name", CODECS)
def test_the_sum_never_grows_and_more_weight_means_fewer_bits(name: str) -> None:
    bits_by_weight = []
    for weight in (0.0, 0.05, 1.0):
        problem = Problem(CODECS[name], 30, count=10, candidates=5)
        sums = problem.errors_of_chosen() + weight * problem.choose(weight, problem.places[:0])
        for _ in range(3):
            bits = problem.choose(weight)
            now = problem.errors_of_chosen() + weight * bits
            assert (now <= sums + 1e-3).all()
            sums = now
        bits_by_weight.append(float(bits.sum()))
        if not weight:
            assert np.array_equal(problem.chosen, problem.errors.argmin(-1))
    assert bits_by_weight[0] > bits_by_weight[1] > bits_by_weight[2]


@pytest.mark.parametrize("codec", [TREE, bare(TREE)], ids=["tables", "bare"])
def test_other_positions_keep_what_they_have(codec: Codec) -> None:
    problem = Problem(codec, 11)
    before, some = problem.images.copy(), problem.places[1::3]
    problem.choose(0.01, some)
    others = np.setdiff1d(problem.places, some)
    assert not problem.chosen[:, others].any()
    assert problem.chosen[:, some].any()
    levels = problem.images.reshape(len(before), -1, len(problem.places))
    assert np.array_equal(levels[:, :, others], before.reshape(levels.shape)[:, :, others])
    taken = np.take_along_axis(problem.candidates, problem.chosen[:, :, None, None], 2)[:, :, 0]
    assert np.array_equal(levels.transpose(0, 2, 1), taken)


def test_without_models_the_least_error_is_taken() -> None:
    problem = Problem(bare(TREE), 9)
    assert not problem.choose(5.0).any()
    assert np.array_equal(problem.chosen, problem.errors.argmin(-1))
