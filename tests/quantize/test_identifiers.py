"""Identifiers of items: unique indices, and the indices that may come next."""

from itertools import product

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hrvqvae import InputError, TreeVQ

DIM = 4


def vectors_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).pow(3)  # crowded near zero


@pytest.mark.parametrize("options", [{}, {"codewords": (5, 3, 2)}, {"linked": 1}, {"levels": 1, "codewords": 30}])
def test_no_two_items_have_the_same_indices(options: dict[str, object]) -> None:
    """Up to as many items as there are leaves; an item moves only if another has its leaf."""
    tree = TreeVQ(**({"dim": DIM, "codewords": 3, "levels": 3} | options)).fit(vectors_of(400), passes=2)  # type: ignore[arg-type]
    leaves = int(torch.tensor(tree.quantizer.config.sizes).prod())
    for count in (leaves // 2, leaves):
        vectors = vectors_of(count, seed=1)
        usual, unique = tree.encode(vectors), tree.unique_indices(vectors)
        assert (unique.shape, unique.dtype) == (usual.shape, torch.int64)
        assert len(unique.unique(dim=0)) == count
        _, leaf, items = usual.unique(dim=0, return_inverse=True, return_counts=True)
        alone = items[leaf] == 1
        assert torch.equal(unique[alone], usual[alone])
    with pytest.raises(InputError, match=f"{leaves + 1} vectors can't have unique indices: there are {leaves} leaves"):
        tree.unique_indices(vectors_of(leaves + 1))
    assert tree.unique_indices(vectors_of(0)).shape == (0, tree.quantizer.config.levels)


@pytest.mark.parametrize("beam", [1, 4])
def test_moved_items_get_the_leaves_that_add_least_error(beam: int) -> None:
    """Within 5% of an optimal assignment to all free leaves; the first round sees 16 leaves of each item."""
    tree = TreeVQ(DIM, (4, 8), 2, beam=beam, coarse_weight=0.0).fit(vectors_of(400), passes=2)
    items = torch.cat([vectors_of(4, seed=5).repeat_interleave(6, 0) + 0.05 * vectors_of(24, seed=6), vectors_of(8)])
    usual, unique = tree.encode(items), tree.unique_indices(items)
    assert len(unique.unique(dim=0)) == len(items) == 32
    _, leaf, count = usual.unique(dim=0, return_inverse=True, return_counts=True)
    every = torch.tensor(list(product(range(4), range(8))))
    alone = usual[count[leaf] == 1]
    free = every[(every[:, None] != alone).any(-1).all(-1)]
    costs = torch.cdist(items[count[leaf] > 1], tree.get_output_from_indices(free)).square().double()
    rows, columns = linear_sum_assignment(costs.numpy())
    moved = unique[count[leaf] > 1]
    error = (tree.get_output_from_indices(moved) - items[count[leaf] > 1]).square().sum()
    assert float(error) <= 1.05 * float(costs[rows, columns].sum())
    twins = tree.unique_indices(items[:1].repeat(32, 1))
    assert len(twins.unique(dim=0)) == 32


@pytest.mark.parametrize("shrinkage", [0.0, 2.0])
def test_a_fit_to_few_vectors_leaves_few_of_them_to_move(shrinkage: float) -> None:
    """Leaves, and branches with more leaves than vectors, split those with more vectors than leaves."""
    rng = torch.Generator().manual_seed(0)
    centres, noise = torch.randn(30, 64, generator=rng), torch.randn(600, 64, generator=rng)
    vectors = centres.repeat_interleave(20, 0) + 0.2 * noise
    tree = TreeVQ(64, 16, 3, shrinkage=shrinkage).fit(vectors)
    usual, unique = tree.encode(vectors), tree.unique_indices(vectors)
    assert (usual != unique).any(-1).double().mean() < (0.3 if shrinkage else 0.01)
    errors = [(tree.get_output_from_indices(indices) - vectors).square().mean() for indices in (usual, unique)]
    assert shrinkage or errors[1] < 1.01 * errors[0]


def test_what_may_come_next_is_what_items_have() -> None:
    tree = TreeVQ(DIM, (5, 3, 2)).fit(vectors_of(400), passes=2)
    indices = tree.unique_indices(vectors_of(15, seed=1))
    items = {tuple(row) for row in indices.tolist()}
    for length, size in enumerate((5, 3, 2)):
        rows = list(product(*map(range, (5, 3, 2)[:length])))
        every = torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)
        mask = tree.valid_next(every, indices)
        assert mask.shape == (len(every), size)
        for prefix, row in zip(every.tolist(), mask.tolist(), strict=True):
            assert row == [any(item[: length + 1] == (*prefix, child) for item in items) for child in range(size)]
    assert not tree.valid_next(torch.tensor([[-1], [5]]), indices).any()
    assert tree.valid_next(indices[:, :1].reshape(3, 5, 1), indices).shape == (3, 5, 3)
    with pytest.raises(InputError, match="prefixes have 3 levels"):
        tree.valid_next(indices, indices)
