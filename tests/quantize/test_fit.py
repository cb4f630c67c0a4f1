"""TreeVQ fitted to vectors that are there already, the k-means start, and identifiers of items."""

import copy
import math
from itertools import product

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import one_hot
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hrvqvae import TreeVQ
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer, fitting, identifiers
from hrvqvae.quantize import kmeans as module
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.kmeans import kmeans, seed_clusters
from tests.conftest import (
    approx,
    double_precision,
    generator,
    input_error,
    nonfinite_error,
    normal,
    parametrize,
    same,
)

DIM = 5
SIZE = 3
LEVELS = 3


def vectors_of(count, seed=0):
    """(N, D): most of them close together, the others far out and thin."""
    random = generator(seed)
    directions = torch.randn(count, DIM, generator=random)
    return directions * torch.rand(count, 1, generator=random).pow(4) * 8


def layer(**options):
    return TreeVQ(DIM, SIZE, LEVELS, **({"start_vectors": 300} | options))


def error(tree, vectors):
    return (tree.get_output_from_indices(tree.encode(vectors)) - vectors).square().mean()


@parametrize("codewords, levels, linked", [(600, 1, 0), (16, 2, 0), (520, 2, 1)])
def test_data_far_from_the_origin(codewords, levels, linked):
    """Up to 100,000 times the spread, codewords are used and fit as for centred data."""
    vectors = normal(2_500, DIM)
    errors = []
    for ratio in (0, 10_000, 100_000):
        far = vectors + ratio * normal(DIM, seed=1)
        for fitted in (True, False):
            tree = TreeVQ(DIM, codewords, levels, linked=linked, start_vectors=2_500)
            if fitted:
                tree.fit(far, passes=2)
            else:
                tree(far)
            indices = tree.encode(far)
            assert num_unique(indices[:, :1]) > 0.99 * codewords
            errors.append(error(tree, far))
    assert max(errors) < 1.1 * max(errors[:2])


@parametrize("beam", [1, 4])
def test_all_leaves_live_and_passes_help(beam, monkeypatch):
    vectors = vectors_of(2_000)
    held_out = vectors_of(2_000, seed=1)
    once, often = (layer(beam=beam).fit(vectors, passes=passes) for passes in (1, 10))
    assert num_unique(often.encode(vectors)) == SIZE**LEVELS
    assert error(often, held_out) < error(once, held_out) < 0.6 * held_out.var(0).mean()
    # A start with dead codewords at every level: copies of one, which the search never takes.
    monkeypatch.setattr(LevelCodebooks, "initialize", lambda book, *_: book.codewords.zero_())
    split = layer(beam=beam).fit(vectors)
    assert num_unique(split.encode(vectors)) == SIZE**LEVELS
    begun = layer(beam=beam).fit(vectors, passes=1)
    for tree in (often, begun):
        counts = [float(level.count.sum()) for level in tree.quantizer.levels]
        assert counts == approx([2_000] * LEVELS)


def test_a_refit_is_the_mean_of_what_codewords_stand_for():
    """Of linked levels with two vectors more, at the mean of all codewords with the same code."""
    levels = layer(beam=4).quantizer.levels
    vectors = vectors_of(400).double()
    leaf = torch.randint(SIZE**LEVELS, (400,), generator=generator(1))
    members = []  # of each codeword, (codewords, N)
    for finer, book in enumerate(reversed(levels)):
        members.insert(0, one_hot(leaf // SIZE**finer, book.num_codewords).double().T)
    fitting._refit(
        levels,
        [chosen.sum(1).view(-1, SIZE) for chosen in members],
        [(chosen @ vectors).view(-1, SIZE, DIM) for chosen in members],
        0.5,
    )
    residual = vectors
    for book, chosen in zip(levels, members, strict=True):
        same_code = chosen.view(-1, SIZE, 400).sum(0)
        means = same_code @ residual / same_code.sum(1, keepdim=True)
        lean = 2 if book.num_books > 1 else 0
        totals = chosen @ residual + lean * means.repeat(book.num_books, 1)
        count = chosen.sum(1, keepdim=True)
        codewords = book.codewords.flatten(0, 1).double()
        assert_close(codewords, totals / (count + lean), atol=1e-5, rtol=0)
        assert same(book.count.view(-1, 1), count.float() / 2)
        residual = residual - chosen.T @ codewords


def test_levels_with_few_vectors_have_one_codebook_where_there_are_none():
    tree = TreeVQ(DIM, 6, beam=1).fit(vectors_of(200), passes=2)  # 216 leaves
    last = tree.quantizer.levels[-1]
    empty = last.codewords[last.count.sum(1) == 0]
    assert len(empty) > 10
    assert empty[0].abs().min() > 0
    assert_close(empty, empty[:1].expand_as(empty))


def test_sums_of_many_vectors_far_from_the_origin_are_exact():
    """The first level's residuals are the vectors; float32 sums of them lose all but the offset."""
    vectors = 4096 + normal(200_000, 1)
    tree = TreeVQ(1, 4, 1).fit(vectors, passes=10)
    assert error(tree, vectors) < 0.12  # 0.1175: the best four values of a normal distribution
    codes = tree.encode(vectors)[:, 0]
    means = [vectors[codes == code].double().mean() for code in range(4)]
    codewords = tree.fit(vectors, passes=11).quantizer.levels[0].codewords.flatten().double()
    assert_close(codewords, torch.stack(means), atol=1e-3, rtol=0)


def test_the_last_step_of_a_fit_is_a_refit():
    """No codeword is split after it, though most are unused."""
    vectors = normal(4, DIM).repeat(50, 1)
    for passes in (1, 2):
        assert error(TreeVQ(DIM, 16, 1).fit(vectors, passes=passes), vectors) < 1e-10


def test_arrays_files_and_batches_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "MOST_VALUES", 400 * DIM)
    vectors = vectors_of(1_000).half()
    np.save(tmp_path / "vectors.npy", vectors.numpy())
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")

    def fit(given, seed=0):
        return layer().eval().fit(given, passes=2, seed=seed)

    expected = fit(vectors)
    batches = [vectors[:800].double(), mapped[800:]]
    for alike in (vectors.numpy(), mapped, list(vectors.split(400)), batches):
        assert same(fit(alike), expected)
    assert not same(fit(vectors, seed=1), expected)
    assert same(expected.encode(mapped), expected(vectors)[1])
    assert expected.encode(vectors[:0]).shape == (0, LEVELS)


def test_training_goes_on_from_there():
    vectors = vectors_of(2_000)
    tree = layer(restart_every=0)
    with torch.device("meta"):  # a default for new tensors
        tree.fit(vectors.split(500))
    fitted = copy.deepcopy(tree)
    for seed in range(5):
        tree(vectors_of(500, seed=seed))
    assert tree.schedule.steps == 6
    assert not same(tree, fitted)
    for book, old in zip(tree.quantizer.levels, fitted.quantizer.levels, strict=True):
        assert float(book.count.sum()) == approx(500, rel=1e-3)  # counts of a batch
        assert (book.codewords - old.codewords).norm() < 0.2 * old.codewords.norm()


def test_what_it_is_given_is_checked():
    tree = layer()
    vectors = vectors_of(50)
    before = copy.deepcopy(tree)
    for wrong, line in (
        (iter([vectors]), "an iterator, which ends"),
        (vectors[:0], "no vectors"),
        ([], "no vectors"),
        (vectors[:, 1:], r"\(50, 4\); it must be \(N, 5\)"),
        ([vectors, vectors[0]], r"the shape \(5,\)"),
    ):
        with input_error(line):
            tree.fit(wrong)
    vectors[7, 1] = torch.nan
    for call in (tree.fit, tree.encode, tree.unique_indices):
        with nonfinite_error("some vectors are NaN"):
            call(vectors)
    assert same(tree, before)


def test_a_codebook_that_gets_no_data_waits_for_its_first():
    """A second level of a codeword that codes nothing: it has no count, and the first vector that
    comes is its mean.
    """
    quantizer = ResidualQuantizer(QuantizerConfig(levels=2, codewords=2, dim=2, decay=0.9))
    quantizer.initialize(torch.ones(20, 2), generator())
    first, second = quantizer.levels
    assert sorted(second.count.sum(1).tolist()) == [0, 20]
    assert second.codewords.isfinite().all()
    empty = int(second.count.sum(1).argmin())
    first.set_codewords(torch.full((2,), 9.0), torch.tensor([5.0]), empty)
    latents = torch.full((1, 2), 8.0)
    quantizer.train()(latents)
    child = int(second.count[empty].argmax())
    assert second.codewords[empty, child].tolist() == approx([-1, -1])
    assert second.count[empty].count_nonzero() == 1
    quantizer.restart_dead_codes(latents, generator())
    assert second.codewords.isfinite().all()


class LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


def test_4096_clusters_of_many_vectors_need_no_matrix(monkeypatch):
    vectors = normal(20_000, 2)
    with LargestTensor() as seen:
        seed_clusters(vectors, 50, generator())
        monkeypatch.setattr(module, "seed_clusters", lambda x, count, _: x[:count].clone())
        centers, nearest = kmeans(vectors, 4096, generator())
    assert seen.largest <= vectors.numel()
    assert centers.shape == (4096, 2)
    assert nearest.shape == (20_000,)


def test_seeds_are_vectors_and_distinct_where_they_can_be():
    vectors = normal(50, 3)
    seeds = seed_clusters(vectors.repeat(4, 1), 50, generator())
    assert sorted(seeds.tolist()) == sorted(vectors.tolist())


WIDTH = 4


def items_of(count, seed=0):
    return normal(count, WIDTH, seed=seed) ** 3  # crowded near zero


def fitted(*sizes, **options):
    """A tree that is fitted to items."""
    return TreeVQ(WIDTH, *sizes, **options).fit(items_of(400), passes=2)


def num_unique(indices):
    return len(indices.unique(dim=0))


def are_alone(indices):
    """Which items have a leaf of their own."""
    _, leaf, count = indices.unique(dim=0, return_inverse=True, return_counts=True)
    return count[leaf] == 1


@parametrize(
    "options", [{}, {"codewords": (5, 3, 2)}, {"linked": 1}, {"levels": 1, "codewords": 30}]
)
def test_no_two_items_have_the_same_indices(options, monkeypatch):
    """Up to as many items as there are leaves; an item moves only if another has its leaf."""
    fields = {"codewords": 3, "levels": 3} | options
    tree = fitted(**fields)
    leaves = math.prod(tree.quantizer.config.sizes)
    for count in (0, leaves // 2, leaves):
        vectors = items_of(count, seed=1)
        usual = tree.encode(vectors)
        unique = tree.unique_indices(vectors)
        assert unique.dtype == torch.int64
        assert num_unique(unique) == count
        alone = are_alone(usual)
        assert same(unique[alone], usual[alone])
    message = f"{leaves + 1} vectors can't have unique indices: there are {leaves} leaves"
    with input_error(message):
        tree.unique_indices(items_of(leaves + 1))
    monkeypatch.setattr(identifiers, "_MAX_EDGES", 3 * leaves)  # three items at a time, at last
    assert num_unique(tree.unique_indices(vectors)) == leaves


@parametrize("beam", [1, 4])
def test_moved_items_get_the_leaves_that_add_least_error(beam):
    """Within 5% of an optimal assignment to all free leaves; the first round sees 16 leaves of each
    item.
    """
    tree = fitted((4, 8), 2, beam=beam, coarse_weight=0.0)
    crowd = items_of(4, seed=5).repeat_interleave(6, 0) + 0.05 * items_of(24, seed=6)
    items = torch.cat([crowd, items_of(8)])
    usual = tree.encode(items)
    unique = tree.unique_indices(items)
    assert num_unique(unique) == len(items) == 32
    is_moved = ~are_alone(usual)
    every = torch.tensor(list(product(range(4), range(8))))
    free = every[(every[:, None] != usual[~is_moved]).any(-1).all(-1)]
    moved = items[is_moved]
    costs = torch.cdist(moved, tree.get_output_from_indices(free)).square().double()
    least = costs[linear_sum_assignment(costs.numpy())].sum()
    total = (tree.get_output_from_indices(unique[is_moved]) - moved).square().sum()
    assert total <= 1.05 * least
    with double_precision(), torch.device("meta"):
        assert same(tree.unique_indices(items), unique)


def test_a_fit_to_few_vectors_leaves_few_of_them_to_move():
    """Leaves, and branches with more leaves than vectors, split those with more vectors than
    leaves.
    """
    vectors = normal(30, 64).repeat_interleave(20, 0) + 0.2 * normal(600, 64, seed=1)
    tree = TreeVQ(64, 16).fit(vectors)
    unique = tree.unique_indices(vectors)
    assert (tree.encode(vectors) != unique).any(-1).double().mean() < 0.01
    moved_error = (tree.get_output_from_indices(unique) - vectors).square().mean()
    assert moved_error < 1.01 * error(tree, vectors)


def test_what_may_come_next_is_what_items_have():
    sizes = (5, 3, 2)
    tree = fitted(sizes)
    indices = tree.unique_indices(items_of(15, seed=1))
    for length in range(3):
        every = torch.tensor([*product(*map(range, sizes[: length + 1]))])
        rows = every[:: sizes[length], :length]
        mask = tree.valid_next(rows, indices.view(3, 5, 3))
        prefixes = indices[:, : length + 1].tolist()
        assert mask.flatten().tolist() == [prefix in prefixes for prefix in every.tolist()]
    assert not tree.valid_next(torch.tensor([[1]]), indices[:0]).any()
    assert tree.valid_next(indices[:, :1].reshape(3, 5, 1), indices).shape == (3, 5, 3)
    item = torch.tensor([[200, 7]], dtype=torch.uint8)  # too small for 256 itself
    mask = TreeVQ(WIDTH, 256, 2).valid_next(item[:, :1], item)
    assert mask.nonzero().tolist() == [[0, 7]]
