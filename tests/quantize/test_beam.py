"""The beam against a beam of lists and fractions, the nearest of all leaves, and the tree that uses it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.codebook import EMACodebook
from hrvqvae.quantize.search import Beam, compiled_beam, search_tree
from hrvqvae.quantize.search.beam import search_beam
from hrvqvae.quantize.search.compiled import filled_up
from hrvqvae.quantize.search.compiled_beam import search_beam_compiled
from hrvqvae.utils.errors import InputError, NonFiniteError

FORMS = (search_beam, search_beam_compiled)


def oracle(vector: list[int], books: list[list[list[list[int]]]], width: int, weight: Fraction) -> list[int]:
    """The path of each level, from whole numbers, so that equal costs are equal."""
    size = len(books[0][0])
    beam = [(Fraction(0), 0, tuple(vector))]  # what the levels before add, path, residual
    for level, book in enumerate(books, start=1):
        longer = []
        for before, path, residual in beam:
            for child, codeword in enumerate(book[path]):
                left = tuple(r - c for r, c in zip(residual, codeword, strict=True))
                distance = sum(x * x for x in left)
                longer.append((distance + before, weight * distance + before, path * size + child, left))
        longer.sort(key=lambda one: one[0])  # stable
        beam = [one[1:] for one in longer[: width if level < len(books) else 1]]
    return [beam[0][1] // size ** (len(books) - level) for level in range(1, len(books) + 1)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_beam_agrees_with_the_oracle(data: st.DataObject) -> None:
    levels, size, dim = (data.draw(st.integers(*bounds)) for bounds in ((1, 4), (2, 9), (1, 20)))
    if size**levels > 1000:
        levels = 2
    width, weight = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0, 0.25, 1, 3]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    books = [random.integers(-4, 5, (size**level, size, dim)) for level in range(levels)]
    vectors = random.integers(-9, 10, (5, dim))
    plain = [book.tolist() for book in books]
    expected = [oracle(one.tolist(), plain, width, Fraction(weight)) for one in vectors]
    tensors = [torch.tensor(book, dtype=torch.float32) for book in books]
    for form in FORMS:
        found = form(torch.tensor(vectors, dtype=torch.float32), tensors, width, weight)
        assert found.paths.T.tolist() == expected, form
        sums = sum(book.reshape(-1, dim)[path] for book, path in zip(books, found.paths.numpy(), strict=True))
        assert found.quantized.tolist() == sums.tolist()


def random_books(levels: int, size: int, dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size**level, size, dim, generator=generator) * 0.7**level for level in range(levels)]


def test_a_beam_as_wide_as_the_tree_finds_the_nearest_of_all_leaves() -> None:
    books, latents = random_books(3, 5, 7), torch.randn(2000, 7)
    leaves = sum(
        book.flatten(0, 1).repeat_interleave(5 ** (2 - level), 0) for level, book in enumerate(books)
    )  # (125, D)
    nearest = torch.cdist(latents.double(), leaves.double()).square().sort(1)
    clear = nearest.values[:, 1] - nearest.values[:, 0] > 1e-4
    found = Beam(25)(latents, books)
    assert torch.equal(found.paths[-1][clear], nearest.indices[clear, 0])
    greedy = (latents - search_tree(latents, books).quantized).square().sum(1)
    exact = (latents - found.quantized).square().sum(1)
    assert (exact <= greedy + 1e-4).all()
    assert exact.sum() < 0.99 * greedy.sum()
    wider = Beam(10**15)(latents, books)  # takes room for the paths that there are
    assert torch.equal(wider.paths, found.paths)
    assert torch.equal(Beam(10**15)(latents, books[:1]).paths, search_tree(latents, books[:1]).paths)


def test_a_beam_of_one_is_the_greedy_search_whatever_the_weight() -> None:
    books, latents = random_books(3, 8, 32), torch.randn(1500, 32)
    for weight in (0.0, 0.5):
        assert torch.equal(Beam(1, weight)(latents, books).paths, search_tree(latents, books).paths)


def test_a_weight_on_the_coarser_levels_makes_prefixes_better_and_the_whole_worse() -> None:
    books, latents = random_books(3, 8, 16), torch.randn(3000, 16)
    errors = []
    for weight in (0.0, 0.3, 3.0):
        paths = Beam(8, weight)(latents, books).paths
        coarse = books[0].flatten(0, 1)[paths[0]]
        whole = sum(book.flatten(0, 1)[path] for book, path in zip(books, paths, strict=True))
        errors.append([float((latents - one).square().mean()) for one in (coarse, whole)])
    assert errors[0][0] > errors[1][0] > errors[2][0]
    assert errors[0][1] < errors[1][1] < errors[2][1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(form, value: float) -> None:  # type: ignore[no-untyped-def]
    books, latents = random_books(3, 3, 5), torch.randn(40, 5)
    latents[17, 2] = value
    with pytest.raises(NonFiniteError, match="latents: 1 of 200"):
        form(latents, books, 4, 0.1)
    assert form(latents[:0], books, 4, 0.1).paths.shape == (3, 0)


@pytest.mark.parametrize("size", [3, 8, 9])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_latents_that_are_not_finite_lead_to_no_codebook_that_is_not_there(size: int, bad: float) -> None:
    books = [filled_up(book).flatten(0, 1).numpy() for book in random_books(3, size, 7)]
    latents = np.zeros((5, 7), np.float32)
    latents[2, 3] = bad
    paths, quantized = np.full((3, 5), -1), np.zeros((5, 7), np.float32)
    out = (0, 5, size, 12, np.float32(0.1), paths, quantized)
    assert not np.isfinite(compiled_beam._beam(latents, tuple(books), *out))
    assert all(path.min() >= 0 and path.max() < size ** (level + 1) for level, path in enumerate(paths))


def test_what_a_beam_refuses() -> None:
    with pytest.raises(InputError, match="width of a beam is 0"):
        Beam(0)
    with pytest.raises(InputError, match="weight of coarser residuals is -1"):
        Beam(2, -1)
    with pytest.raises(InputError, match=r"model\.quantizer\.beam is 0"):
        QuantizerConfig(levels=3, codewords=8, beam=0)
    with pytest.raises(InputError, match=r"model\.quantizer\.coarse_weight is nan"):
        QuantizerConfig(levels=3, codewords=8, coarse_weight=float("nan"))


CONFIG = QuantizerConfig(dim=6, codewords=4, levels=3, init_vectors=1, beam=4, coarse_weight=0.1)


def test_every_level_starts_from_what_the_beam_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, latents, seen = ResidualQuantizer(CONFIG), torch.randn(3000, 6), []
    start = EMACodebook.initialize

    def watched(self, residual, parent, *rest):  # type: ignore[no-untyped-def]
        seen.append((residual.clone(), parent.clone()))
        start(self, residual, parent, *rest)

    monkeypatch.setattr(EMACodebook, "initialize", watched)
    quantizer.initialize(latents, torch.Generator().manual_seed(0))
    for level, (residual, parent) in enumerate(seen):
        coded = torch.zeros_like(latents)
        for above in range(level):
            coded += quantizer.levels[above].lookup(parent // 4 ** (level - 1 - above))
        torch.testing.assert_close(residual, latents - coded)


def test_a_tree_with_a_beam_learns_what_its_beam_chose() -> None:
    quantizer, latents = ResidualQuantizer(dataclasses.replace(CONFIG, decay=0.0)), torch.randn(1, 50, 60, 6)
    quantizer.initialize(latents, torch.Generator().manual_seed(0))
    codes = quantizer.encode(latents)
    greedy = ResidualQuantizer(dataclasses.replace(CONFIG, beam=1))
    greedy.load_state_dict(quantizer.state_dict())
    assert not torch.equal(codes[-1], greedy.encode(latents)[-1])
    residuals, before = latents.flatten(0, -2), []
    for codebook, path in zip(quantizer.levels, quantizer.paths(codes), strict=True):
        before.append((codebook, residuals, path.flatten()))
        residuals = residuals - codebook.lookup(path.flatten())
    for (codebook, residual, path), kept in zip(
        before, [codebook.codewords.clone() for codebook, *_ in before], strict=True
    ):
        means = kept.flatten(0, 1)
        for codeword in path.unique():
            means[codeword] = residual[path == codeword].mean(0)
        codebook.expected = means  # type: ignore[assignment]
    result = quantizer.train()(latents)
    assert torch.equal(result.codes[-1], codes[-1])
    for codebook, *_ in before:
        torch.testing.assert_close(codebook.codewords.flatten(0, 1), codebook.expected, atol=1e-5, rtol=1e-4)
