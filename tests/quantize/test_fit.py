"""TreeVQ fitted to vectors that are there already."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae import InputError, TreeVQ
from hrvqvae.quantize import fitting
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.utils.errors import NonFiniteError

DIM, SIZE, LEVELS = 5, 3, 3


def vectors_of(count: int, seed: int = 0) -> Tensor:
    """(N, D): most of them close together, the others far out and thin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator) * torch.rand(count, 1, generator=generator).pow(4) * 8


def layer(**options: object) -> TreeVQ:
    return TreeVQ(DIM, SIZE, LEVELS, **({"start_vectors": 300} | options))  # type: ignore[arg-type]


def error(one: TreeVQ, vectors: Tensor) -> float:
    return float((one.get_output_from_indices(one.encode(vectors)) - vectors).square().mean())


def equal(one: TreeVQ, other: TreeVQ) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(some, same) for some, same in pairs)


@pytest.mark.parametrize("beam", [1, 4])
def test_all_leaves_live_and_passes_help(beam: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, other = vectors_of(2_000), vectors_of(2_000, seed=1)
    once, often = (layer(beam=beam).fit(vectors, passes=passes) for passes in (1, 10))
    assert often.paths(often.encode(vectors))[:, -1].unique().numel() == SIZE**LEVELS
    assert error(often, other) < error(once, other) < 0.6 * float(other.var(0).mean())
    # A start with dead codewords at every level: copies of one, which the search never takes.
    monkeypatch.setattr(fitting, "kmeans", None)
    monkeypatch.setattr(fitting, "_start", lambda quantizer, *_: [book.codewords.zero_() for book in quantizer.levels])
    assert layer(beam=beam).fit(vectors).encode(vectors).unique(dim=0).shape[0] == SIZE**LEVELS


def test_a_refit_is_the_mean_of_what_codewords_stand_for() -> None:
    one, vectors = layer(beam=4), vectors_of(400).double()
    leaf = torch.randint(SIZE**LEVELS, (400,), generator=torch.Generator().manual_seed(1))
    total = torch.zeros(SIZE**LEVELS, DIM, dtype=torch.float64).index_add_(0, leaf, vectors)
    fitting._refit(one.quantizer, torch.bincount(leaf, minlength=SIZE**LEVELS).float(), total.float(), 0.5)
    residual = vectors.clone()
    for level, book in enumerate(one.quantizer.levels):
        path = leaf // SIZE ** (LEVELS - 1 - level)
        means = [residual[path % SIZE == child].mean(0) for child in range(SIZE)]
        for number, word in enumerate(book.codewords.flatten(0, 1)):
            own = residual[path == number]
            lean = 2 if level else 0
            expected = (own.sum(0) + lean * means[number % SIZE]) / (len(own) + lean)
            np.testing.assert_allclose(word.numpy(), expected.numpy(), atol=1e-5)
            assert float(book.count.view(-1)[number]) == len(own) / 2
        residual = residual - book.codewords.flatten(0, 1)[path]


def test_levels_with_few_vectors_have_one_codebook_where_there_are_none() -> None:
    one = TreeVQ(DIM, 6, 3, beam=1).fit(vectors_of(200), passes=2)  # 216 leaves
    assert one.encode(vectors_of(200)).shape == (200, 3)
    last = one.quantizer.levels[-1]
    empty = last.codewords[last.count.sum(1) == 0]
    assert len(empty) > 10
    assert empty[0].abs().min() > 0
    torch.testing.assert_close(empty, empty[:1].expand_as(empty))


def test_arrays_files_and_batches_are_alike(tmp_path: Path) -> None:
    vectors = vectors_of(1_000).half()
    np.save(tmp_path / "vectors.npy", vectors.numpy())
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    expected = layer().fit(vectors, passes=2, batch=400)
    for same in (vectors.numpy(), mapped, list(vectors.split(400)), [vectors[:800].double(), mapped[800:]]):
        assert equal(layer().eval().fit(same, passes=2, batch=400), expected)
    assert not equal(layer().fit(vectors, passes=2, batch=400, seed=1), expected)
    indices = expected.eval()(vectors)[1]
    assert torch.equal(expected.encode(mapped, batch=300), indices)
    assert expected.encode(vectors[:0]).shape == (0, LEVELS)


def test_training_goes_on_from_there() -> None:
    vectors = vectors_of(2_000)
    one = layer(restart_every=0).fit(vectors, batch=500)
    fitted = copy.deepcopy(one)
    for seed in range(5):
        one(vectors_of(500, seed=seed))
    assert one.steps == 6
    assert not equal(one, fitted)
    for book, old in zip(one.quantizer.levels, fitted.quantizer.levels, strict=True):
        assert float(book.count.sum()) == pytest.approx(500, rel=1e-3), "counts are those of a batch"
        assert float((book.codewords - old.codewords).norm() / old.codewords.norm()) < 0.1


def test_what_it_is_given_is_checked() -> None:
    one, vectors = layer(), vectors_of(50)
    before = copy.deepcopy(one)
    holed = vectors.clone()
    holed[7, 1] = torch.nan
    for wrong, line in (
        (iter([vectors]), "an iterator, which ends"), (vectors[:0], "no vectors"), ([], "no vectors"),
        (vectors[:, 1:], r"float32 \(50, 4\); they must be floating-point \(N, 5\)"), (vectors.long(), "int64"),
        ([vectors, vectors[0]], r"float32 \(5,\)"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=line):
            one.fit(wrong)
    with pytest.raises(NonFiniteError, match="1 of 250 values"):
        one.fit(holed)
    assert equal(one, before)


def test_even_clusters_have_about_equally_many_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2_000, DIM, generator=generator) * torch.rand(2_000, 1, generator=generator)
    for even in (False, True):
        centers, sizes = kmeans(vectors, 8, torch.Generator().manual_seed(0), even)
        assert centers.shape == (8, DIM)
        assert int(sizes.sum()) == 2_000
        assert (float(sizes.max()) < 400) == even
