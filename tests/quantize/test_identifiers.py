"""Identifiers of items: unique indices, and the indices that may come next."""

from itertools import product

import pytest
import torch
from torch import Tensor

from hrvqvae import InputError, TreeVQ

DIM = 4


def vectors_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).pow(3)  # crowded near zero


@pytest.mark.parametrize("options", [{}, {"codewords": (5, 3, 2)}, {"linked": 1}, {"levels": 1, "codewords": 30}])
def test_no_two_items_have_the_same_indices(options: dict[str, object]) -> None:
    """Up to as many items as there are leaves; an item moves only if a nearer one has its leaf."""
    tree = TreeVQ(**({"dim": DIM, "codewords": 3, "levels": 3} | options)).fit(vectors_of(400), passes=2)  # type: ignore[arg-type]
    leaves = int(torch.tensor(tree.quantizer.config.sizes).prod())
    for count in (leaves // 2, leaves):
        vectors = vectors_of(count, seed=1)
        usual, unique = tree.encode(vectors), tree.unique_indices(vectors)
        assert (unique.shape, unique.dtype) == (usual.shape, torch.int64)
        assert len(unique.unique(dim=0)) == count
        distance = (tree.get_output_from_indices(usual) - vectors).square().sum(-1)
        for item in (unique != usual).any(-1).nonzero().flatten().tolist():
            holders = (unique == usual[item]).all(-1).nonzero().flatten().tolist()
            assert len(holders) == 1
            assert distance[holders[0]] <= distance[item]
    with pytest.raises(InputError, match=f"{leaves + 1} vectors can't have unique indices: there are {leaves} leaves"):
        tree.unique_indices(vectors_of(leaves + 1))
    assert tree.unique_indices(vectors_of(0)).shape == (0, tree.quantizer.config.levels)


def test_a_moved_item_gets_the_nearest_free_leaf() -> None:
    tree = TreeVQ(DIM, 3, 2, beam=3, coarse_weight=0.0).fit(vectors_of(400), passes=2)
    twins = vectors_of(1, seed=5).repeat(9, 1)
    unique = tree.unique_indices(twins)
    distances = (tree.get_output_from_indices(unique) - twins).square().sum(-1)
    assert torch.equal(unique[0], tree.encode(twins[:1])[0])
    assert torch.equal(distances, distances.sort().values)


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
