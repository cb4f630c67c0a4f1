"""The k-means start: counts are those of the clusters, and nothing of vectors by clusters is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import kmeans as module
from hrvqvae.quantize.kmeans import kmeans, seed_clusters
from hrvqvae.quantize.search import search


def vectors_of(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_sizes_are_those_of_the_clusters() -> None:
    vectors = vectors_of(500, 3)
    centers, sizes = kmeans(vectors, 12, generator())
    assert torch.equal(sizes.long(), torch.bincount(search(vectors, [centers[None]])[0], minlength=12))
    assert sizes.min() >= 1


def test_of_duplicates_one_gets_all_vectors() -> None:
    """Two distinct vectors for five clusters: the others are copies that code nothing, and say so."""
    vectors = torch.tensor([[1.0, 0.0]]).repeat(7, 1)
    vectors[2:] = torch.tensor([0.0, 3.0])
    centers, sizes = kmeans(vectors, 5, generator())
    assert sorted(sizes.tolist()) == [0, 0, 0, 2, 5]
    assert {tuple(center) for center in centers.tolist()} == {(1.0, 0.0), (0.0, 3.0)}


def test_a_codebook_that_gets_no_data_waits_for_its_first() -> None:
    """A second level of a codeword that codes nothing: it has no count, and the first vector that comes is its mean."""
    quantizer = ResidualQuantizer(QuantizerConfig(levels=2, codewords=2, dim=2, decay=0.9))
    quantizer.initialize(torch.ones(1, 5, 4, 2), generator(), 1.0)
    counts = quantizer.levels[1].count
    assert sorted(counts.sum(1).tolist()) == [0, 20]
    assert torch.isfinite(quantizer.levels[1].codewords).all()
    empty = int(counts.sum(1).argmin())
    quantizer.levels[0].set_codewords(torch.tensor([empty]), torch.tensor([[9.0, 9.0]]), torch.tensor([5.0]))
    latents = torch.full((1, 1, 1, 2), 8.0)
    quantizer.train()(latents)
    child = int(quantizer.levels[1].count[empty].argmax())
    torch.testing.assert_close(quantizer.levels[1].codewords[empty, child], torch.tensor([-1.0, -1.0]))
    assert quantizer.levels[1].count[empty].tolist().count(0) == 1
    quantizer.restart_dead_codes(latents, generator())
    assert torch.isfinite(quantizer.levels[1].codewords).all()


class LargestTensor(TorchDispatchMode):
    """Remembers how many values the largest tensor had that any operation gave."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return result


def test_4096_clusters_of_many_vectors_need_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of(20_000, 2)
    with LargestTensor() as of_seeds:
        seed_clusters(vectors, 50, generator())
    monkeypatch.setattr(module, "seed_clusters", lambda vectors, number, _: vectors[:number].clone())
    with LargestTensor() as seen:
        centers, sizes = kmeans(vectors, 4096, generator())
    assert max(seen.largest, of_seeds.largest) <= vectors.numel()
    assert centers.shape == (4096, 2)
    assert sizes.sum() == 20_000


def test_seeds_are_vectors_and_distinct_where_they_can_be() -> None:
    vectors = vectors_of(50, 3).repeat(4, 1)
    seeds = seed_clusters(vectors, 50, generator())
    assert {tuple(seed) for seed in seeds.tolist()} == {tuple(vector) for vector in vectors.tolist()}
