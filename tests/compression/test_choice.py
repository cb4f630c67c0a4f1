"""Codes chosen by error and bits: against a plain descent, and what never grows."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hrvqvae.compression import choice
from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.levels import encode_level
from tests.compression.made import FLAT, HALF, TREE, bits_of, random_codes

ENTROPY_MODELS = {"tree": TREE, "flat": FLAT, "half": HALF}
HEIGHT = 6  # of the images in pixels; the width is another


class Problem:
    """Images with candidates, of which the first is what they have, and errors in 64ths, which float32 holds."""

    def __init__(
        self, entropy_model: EntropyModel, width: int, count: int = 2, candidates: int = 3, seed: int = 0,
        height: int = HEIGHT,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)
        self.entropy_model, self.size = entropy_model, (height, width)
        layout = entropy_model.layout(self.size)
        images = random_codes(entropy_model, self.size, count, seed)
        positions, levels = int(layout.begins[1]), len(entropy_model.symbols)
        shape = (count, positions, candidates, levels)
        self.candidates = random.integers(0, entropy_model.symbols, shape).astype(np.int32)
        self.candidates[:, :, 0] = images.reshape(count, levels, positions).transpose(0, 2, 1)
        self.errors = (random.integers(0, 64, (count, positions, candidates)) / 64).astype(np.float32)
        self.grid = (int(layout.grids[0, 0]), int(layout.grids[0, 1]))
        self.places: NDArray[np.int64] = np.arange(positions)
        networks = [entropy_model.network(level) for level in range(levels)]
        numbers = np.arange(count * positions * candidates, dtype=np.int32).reshape(count, positions, candidates)
        self.choice = Choice(layout, networks, self.candidates.reshape(-1, levels), numbers)
        assert np.array_equal(self.choice.codes, images)

    def choose(self, lmbda: float, places: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Bits of the images after that."""
        places = self.places if places is None else places
        lmbdas = np.full(len(self.errors), lmbda, np.float32)
        self.choice.update(places, np.ascontiguousarray(self.errors[:, places]), lmbdas)
        return self.choice.bits

    def errors_of_chosen(self) -> NDArray[np.float64]:
        return np.take_along_axis(self.errors, self.choice.chosen[:, :, None], 2).sum((1, 2)).astype(np.float64)


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_bits_are_those_that_a_file_takes(name: str) -> None:
    entropy_model, size = ENTROPY_MODELS[name], (40, 50)
    codes = random_codes(entropy_model, size, 5)
    levels, layout = len(entropy_model.symbols), entropy_model.layout(size)
    networks = [(level, network) for level, network in enumerate(entropy_model.networks) if network]
    lengths = [[len(stream) for stream in encode_level(codes, layout, *pair)] for pair in networks]
    excess = 8 * np.sum(lengths, 0) - bits_of(entropy_model, size, codes, levels)
    assert (excess > -0.1).all()
    assert (excess < 12 * len(networks)).all()


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_each_position_takes_the_candidate_of_the_least_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain descent computes the bits of the whole image for every candidate. Twice, since rows are kept."""
    monkeypatch.setattr(choice, "_MARGINS", (1e6, 1e6))
    problem, lmbda = Problem(ENTROPY_MODELS[name], 5 if name == "half" else 8, count=1, seed=3), 0.02
    candidates, errors = problem.candidates[0], problem.errors[0]
    (count, levels), chosen = candidates.shape[1:], np.zeros(len(candidates), np.int32)
    codes = problem.choice.codes.reshape(1, levels, -1).copy()
    for _ in range(2):
        for place in problem.places.tolist():
            each = np.repeat(codes, count, 0)
            each[:, :, place] = candidates[place]
            bits = bits_of(problem.entropy_model, problem.size, each.reshape(count, -1), levels)
            chosen[place] = (errors[place] + lmbda * bits).argmin()
            codes[0, :, place] = candidates[place, chosen[place]]
        found = problem.choose(lmbda)
        assert np.array_equal(problem.choice.chosen[0], chosen)
        assert np.array_equal(problem.choice.codes, codes.reshape(1, -1))
        bits = bits_of(problem.entropy_model, problem.size, codes.reshape(1, -1), levels)
        assert found == pytest.approx(bits, rel=1e-5)
    assert chosen.any(), "nothing was better than what there was"


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_the_sum_never_grows_and_a_larger_lambda_means_fewer_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that are left out hardly matter."""
    used = []
    for lmbda in (0.0, 0.05, 1.0):
        problem = Problem(ENTROPY_MODELS[name], 30, count=10, candidates=5)
        sums = problem.errors_of_chosen() + lmbda * problem.choice.bits
        for _ in range(3):
            bits = problem.choose(lmbda)
            now = problem.errors_of_chosen() + lmbda * bits
            assert (now <= sums + 1e-3).all()
            sums = now
        used.append(float(bits.sum()))
        if not lmbda:
            assert np.array_equal(problem.choice.chosen, problem.errors.argmin(-1))
        with monkeypatch.context() as patched:
            patched.setattr(choice, "_MARGINS", (1e6, 1e6))
            every = Problem(ENTROPY_MODELS[name], 30, count=10, candidates=5)
            for _ in range(3):
                bits = every.choose(lmbda)
            assert sums.sum() < 1.005 * (every.errors_of_chosen() + lmbda * bits).sum()
    assert used[0] > used[1] > used[2]


@pytest.mark.parametrize("entropy_model", [TREE, TREE.bare], ids=["tables", "bare"])
def test_other_positions_keep_what_they_have(entropy_model: EntropyModel) -> None:
    problem = Problem(entropy_model, 11)
    before, some = problem.choice.codes.copy(), problem.places[1::3]
    problem.choose(0.01, some)
    others = np.setdiff1d(problem.places, some)
    assert not problem.choice.chosen[:, others].any()
    assert problem.choice.chosen[:, some].any()
    assert entropy_model.networks or np.array_equal(problem.choice.chosen[:, some], problem.errors.argmin(-1)[:, some])
    levels = problem.choice.codes.reshape(len(before), -1, len(problem.places))
    assert np.array_equal(levels[:, :, others], before.reshape(levels.shape)[:, :, others])
    taken = np.take_along_axis(problem.candidates, problem.choice.chosen[:, :, None, None], 2)[:, :, 0]
    assert np.array_equal(levels.transpose(0, 2, 1), taken)


def test_threads_do_not_change_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image of several strips, and of a part of its places."""
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        problem = Problem(TREE, 8, count=1, height=208)
        assert problem.grid[0] > 3 * choice._STRIP_ROWS
        problem.choose(0.02, problem.places[::3])
        bits = problem.choose(0.02)
        found.append((problem.choice.codes.tolist(), bits.tolist()))
    assert found[0] == found[1]
