"""The quantizer in every form, from one flat codebook to a tree: codes, losses, averages, starts,
restarts.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.conftest import needs_gpu, same
from tests.quantize import oracle

DIM = 5
FAR = 50.0
_COMMON: dict[str, Any] = {"dim": DIM, "beta": 0.4, "decay": 0.9}
VARIANTS = {
    "flat": QuantizerConfig(levels=1, codewords=7, **_COMMON),
    "one level with a term of its own": QuantizerConfig(
        levels=1, codewords=4, level_betas=(0.3,), **_COMMON
    ),
    "unlinked": QuantizerConfig(
        levels=3, codewords=4, linked=1, level_betas=(0.5, 0.0, 0.2), **_COMMON
    ),
    "sizes": QuantizerConfig(
        levels=4, level_codewords=(5, 2, 3, 4), linked=3, joint_beam=True, **_COMMON
    ),
    "groups": QuantizerConfig(
        levels=5, codewords=3, linked=2, level_betas=(0.3,), **_COMMON
    ),  # the last is shorter
    "linked": QuantizerConfig(levels=3, codewords=4, **_COMMON),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
both_updates = pytest.mark.parametrize("update", ["ema", "gradient"])
TREE = VARIANTS["linked"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_quantizer(config: QuantizerConfig, seed: int = 0, **other: Any) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(dataclasses.replace(config, **other))
    random = generator(seed)
    for level, book in enumerate(quantizer.levels):
        vectors = torch.randn(book.num_codewords, config.dim, generator=random) * 0.6**level
        book.set_codewords(
            torch.arange(len(vectors)), vectors, torch.rand(len(vectors), generator=random) + 1
        )
    return quantizer


def started(config: QuantizerConfig, z: Tensor, seed: int = 0, **other: Any) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(dataclasses.replace(config, **other))
    quantizer.initialize(z, generator(seed))
    return quantizer


def latents(*shape: int, seed: int = 1, dim: int = DIM) -> Tensor:
    return torch.randn(*shape, dim, generator=generator(seed))


def books_of(quantizer: ResidualQuantizer) -> list[np.ndarray]:
    return [book.codewords.detach().numpy().copy() for book in quantizer.levels]


def flat(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1, tensor.shape[-1]).detach().numpy().astype(np.float64)


@settings(max_examples=30, deadline=None)
@given(
    levels=st.integers(1, 5),
    sizes=st.lists(st.integers(2, 5), min_size=5, max_size=5),
    dim=st.integers(1, 7),
    linked=st.integers(0, 5),
    joint=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_codes_and_paths_agree_with_the_oracle(
    levels: int, sizes: list[int], dim: int, linked: int, joint: bool, seed: int
) -> None:
    own = tuple(sizes[:levels])
    links = {"linked": linked, "joint_beam": joint}
    config = QuantizerConfig(levels=levels, level_codewords=own, dim=dim, **links)  # type: ignore[arg-type]
    quantizer = random_quantizer(config, seed)
    z = latents(2, 2, 3, seed=seed + 1, dim=dim)
    codes = quantizer.encode(z)
    assert [(tuple(code.shape), code.dtype) for code in codes] == [
        ((2, 2, 3), torch.int64)
    ] * levels
    expected = [
        oracle.search(vector, books_of(quantizer), config.group_size)[0] for vector in flat(z)
    ]
    paths = torch.stack([path.flatten() for path in quantizer.codeword_indices(codes)], -1)
    assert paths.tolist() == expected
    assert all(
        largest < n for largest, n in zip(paths.amax(0).tolist(), config.num_codewords, strict=True)
    )
    assert torch.equal(
        torch.stack([code.flatten() for code in codes], -1), paths % torch.tensor(sizes[:levels])
    )


@every_variant
def test_codes_of_a_prefix_give_its_sum_and_the_gradient_passes_straight_through(
    config: QuantizerConfig,
) -> None:
    quantizer = random_quantizer(config).eval()
    z = latents(2, 3, 4).requires_grad_()
    codes = quantizer.encode(z)
    found = [oracle.search(one, books_of(quantizer), config.group_size) for one in flat(z)]
    for levels in range(1, config.levels + 1):
        expected = np.stack([residuals[0] - residuals[levels] for _, residuals in found])
        np.testing.assert_allclose(flat(quantizer.lookup(codes[:levels])), expected, atol=1e-5)
    quantized = quantizer(z).latents
    np.testing.assert_allclose(flat(quantized), expected, atol=1e-5)
    weight = torch.arange(z.numel(), dtype=torch.float32).view_as(z)
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), z)
    assert torch.equal(gradient, weight)


@every_variant
@both_updates
def test_losses_and_gradients_agree_with_the_oracle(config: QuantizerConfig, update: str) -> None:
    quantizer = random_quantizer(config, update=update).eval()
    z = latents(2, 3, 4).requires_grad_()
    about = flat(z), books_of(quantizer), config.group_size, config.beta, config.beta_of_levels
    losses = quantizer(z).losses
    expected = oracle.losses(*about)
    if update == "ema":
        expected = {
            name: value for name, value in expected.items() if name.startswith("commitment")
        }
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )
    torch.stack(list(losses.values())).sum().backward()
    of_vectors, of_books = oracle.gradients(*about)
    assert z.grad is not None
    np.testing.assert_allclose(flat(z.grad), of_vectors, atol=1e-4)
    for book, gradient in zip(quantizer.levels, of_books, strict=True):
        if update == "gradient":
            assert book.codewords.grad is not None
            np.testing.assert_allclose(book.codewords.grad.numpy(), gradient, rtol=1e-4, atol=1e-4)


@every_variant
def test_moving_averages_agree_with_the_oracle(config: QuantizerConfig) -> None:
    quantizer = random_quantizer(config)
    z = latents(2, 5, 6)
    counts, totals = oracle.batch_sums(flat(z), books_of(quantizer), config.group_size)
    expected = [
        (
            0.9 * book.count.double().numpy() + 0.1 * count,
            0.9 * book.total.double().numpy() + 0.1 * total,
        )
        for book, count, total in zip(quantizer.levels, counts, totals, strict=True)
        if book.total is not None
    ]
    quantizer.train()(z)
    for book, (count, total) in zip(quantizer.levels, expected, strict=True):
        assert book.total is not None
        np.testing.assert_allclose(book.count.numpy(), count, rtol=1e-5)
        np.testing.assert_allclose(book.total.numpy(), total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            book.codewords.numpy(), total / count[..., None], rtol=1e-4, atol=1e-5
        )


def test_large_levels_follow_the_same_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep no sums, and move only the codewords that get vectors; files are those of other
    levels, and a training goes on from them to the bit.
    """
    z = latents(2, 5, 6)
    small = random_quantizer(TREE).train()
    monkeypatch.setattr("hrvqvae.quantize.codebook._LARGE", 60)
    large = ResidualQuantizer(TREE)
    assert [level.total is None for level in large.levels] == [False, True, True]
    large.load_state_dict(small.state_dict())
    resumed = ResidualQuantizer(TREE)
    for seed in range(5):
        before = large.levels[2].codewords.clone()
        batch = z[:, :2] + 0.1 * latents(2, 2, 6, seed=seed)
        codes = large(batch).codes
        assert all(map(torch.equal, codes, small(batch).codes))
        used = large.codeword_indices(codes)[2].unique()
        unmoved = torch.ones(64, dtype=torch.bool).index_fill_(0, used, False)
        after = large.levels[2].codewords.flatten(0, 1)
        assert torch.equal(after[unmoved], before.flatten(0, 1)[unmoved])
        torch.testing.assert_close(large.state_dict(), small.state_dict(), atol=1e-5, rtol=1e-4)
        if seed:
            resumed.train()(batch)
            assert same(resumed.state_dict(), large.state_dict())
        resumed.load_state_dict(large.state_dict())


def test_a_tree_with_a_beam_learns_what_its_beam_chose() -> None:
    z = latents(1, 50, 60)
    quantizer = started(TREE, z, beam=4, coarse_weight=0.1, decay=0.0)
    greedy = ResidualQuantizer(TREE)
    greedy.load_state_dict(quantizer.state_dict())
    paths = [path.flatten() for path in quantizer.codeword_indices(quantizer.encode(z))]
    assert not torch.equal(paths[-1], greedy.codeword_indices(greedy.encode(z))[-1].flatten())
    residual = z.flatten(0, -2)
    expected = []
    for codebook, path in zip(quantizer.levels, paths, strict=True):
        means = codebook.codewords.flatten(0, 1).clone()
        for codeword in path.unique():
            means[codeword] = residual[path == codeword].mean(0)
        expected.append(means)
        residual = residual - codebook.lookup(path)
    quantizer.train()(z)
    for codebook, means in zip(quantizer.levels, expected, strict=True):
        torch.testing.assert_close(codebook.codewords.flatten(0, 1), means, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_vector_that_overflowed_moves_no_codeword(
    bad: float, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where no vector is checked; nor does it in a batch after it."""
    book = LevelCodebooks(QuantizerConfig(dim=2, decay=0.5), 1, 3)
    book.set_codewords(torch.arange(3), torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.ones(3))
    vectors = torch.tensor([[bad, 0], [1, 1], [4, 4], [5, 5]])
    index = torch.tensor([0, 0, 1, 1])

    def update(vectors: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=3).float()
        book.average(counts, *book.batch_sums(vectors, index, counts))

    update(vectors, index)
    torch.testing.assert_close(book.codewords[0, 1], torch.tensor([(2 + 9) / 3] * 2))
    for _ in range(3):
        assert book.codewords[0, 0].tolist() == [1, 1]
        update(torch.ones(1, 2), index[:1])


def test_codewords_that_are_not_finite_are_named_by_their_level() -> None:
    for config in VARIANTS.values():
        quantizer = random_quantizer(config)
        quantizer.levels[-1].codewords[:] = float("inf")
        with pytest.raises(NonFiniteError, match=f"level {config.levels}: "):
            quantizer(latents(1, 2, 2))


@needs_gpu
@every_variant
def test_nan_reaches_the_loss_on_a_gpu(config: QuantizerConfig) -> None:
    losses = (
        random_quantizer(config).cuda().eval()(torch.full((1, 2, 2, DIM), torch.nan).cuda()).losses
    )
    assert any(bool(loss.isnan()) for loss in losses.values())


def test_configurations_that_are_refused() -> None:
    for fields, message in (
        ({"levels": 0}, "levels"),
        ({"codewords": 1}, "codewords"),
        ({"dim": 0}, "dim"),
        ({"decay": 1.0}, "decay"),
        ({"linked": -1}, "linked"),
        ({"beam": 0}, "beam"),
        ({"coarse_weight": float("nan")}, "coarse_weight"),
        ({"level_betas": (0.1, 0.2)}, "level_betas is .*none, one or 3 values"),
        ({"beta": -1.0}, "beta"),
        ({"level_betas": (-0.1,)}, "level_betas is .*at least 0"),
        ({"restart_below": -1.0}, "restart_below"),
        ({"level_codewords": (2, 3)}, "level_codewords is .*none or 3 values"),
        ({"linked": 1, "beam": 2}, "beam"),
        ({"levels": 14}, r"2\^30"),
        ({"levels": 10**12}, "levels is 1000000000000; it must be at most 255"),
        ({"update": "adam"}, "update is 'adam'; it must be ema or gradient"),
    ):
        with pytest.raises(
            InputError, match=f"^model.quantizer.{message}" if "30" not in message else message
        ):
            dataclasses.replace(TREE, **fields)  # type: ignore[arg-type]


def test_fields_of_earlier_versions_are_read_at_their_defaults() -> None:
    earlier = {"context": 0, "shrinkage": 0.0, "memory_mib": 64}
    assert TREE.replace(**earlier, beam=2) == dataclasses.replace(TREE, beam=2)
    for name, value in (("context", 2), ("shrinkage", "0.05"), ("memory_mib", 16)):
        line = f"model.quantizer.{name} is {value}; only {earlier[name]:g} is left.* 620d44e0"
        with pytest.raises(InputError, match=line):
            TREE.replace(**{name: value})
    state = random_quantizer(TREE).state_dict()
    state["codebooks.1.shared"] = torch.zeros(4, DIM)
    with pytest.raises(RuntimeError, match=r"codebooks.1.shared: trees with `shrinkage` load in"):
        random_quantizer(TREE).load_state_dict(state)


@every_variant
@both_updates
def test_every_level_starts_with_the_means_of_what_is_left(
    config: QuantizerConfig, update: str
) -> None:
    """Four batches start it, so a codeword's count is a quarter of its vectors; distortion falls
    with every level.
    """
    # type: ignore[arg-type]
    quantizer = ResidualQuantizer(dataclasses.replace(config, update=update))
    z = latents(4, 16, 16)
    quantizer.initialize(z, generator(), 0.25)
    codes = quantizer.encode(z)
    errors = [
        (quantizer.lookup(codes[:n]) - z).detach().square().sum()
        for n in range(1, config.levels + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    for codebook, index in zip(quantizer.levels, quantizer.codeword_indices(codes), strict=True):
        expected = torch.bincount(index.flatten(), minlength=codebook.num_codewords) / 4
        torch.testing.assert_close(codebook.count.flatten(), expected)
    for codebook in quantizer.levels:
        if codebook.total is not None:
            torch.testing.assert_close(
                codebook.total, codebook.codewords * codebook.count.unsqueeze(-1)
            )


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("linked", [0, 2])
def test_every_level_starts_from_what_the_search_left(
    beam: int, linked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam may change its mind about the coarser levels; those of an earlier group are
    settled.
    """
    z = latents(600)
    seen = []
    start = LevelCodebooks.initialize

    def watched(self: LevelCodebooks, residual: Tensor, parent: Tensor, *rest: Any) -> None:
        seen.append((residual.clone(), parent.clone()))
        start(self, residual, parent, *rest)

    monkeypatch.setattr(LevelCodebooks, "initialize", watched)
    quantizer = started(TREE, z, levels=4, linked=linked, beam=beam, coarse_weight=0.1)
    group = linked or 4
    settled = torch.zeros_like(z)
    for level, (residual, parent) in enumerate(seen):
        first = level - level % group
        if first and level == first:
            paths = quantizer.search(
                z - settled, [book.codewords for book in quantizer.levels[first - group : first]]
            )
            for book, path in zip(quantizer.levels[first - group : first], paths, strict=True):
                settled = settled + book.lookup(path)
        coded = settled
        for above in range(first, level):
            coded = coded + quantizer.levels[above].lookup(parent // 4 ** (level - 1 - above))
        torch.testing.assert_close(residual, z - coded)
        assert int(parent.max()) < quantizer.config.num_codebooks[level]


def starved(config: QuantizerConfig, update: str = "ema") -> tuple[ResidualQuantizer, Tensor]:
    """A quantizer whose last codeword of every codebook lies where nothing is, and the latents that
    starved it.
    """
    quantizer = random_quantizer(config, update=update)
    z = latents(4, 8, 8)
    for codebook in quantizer.levels:
        where = torch.arange(codebook.num_books) * codebook.size + codebook.size - 1
        codebook.set_codewords(
            where, torch.full((len(where), DIM), FAR), torch.full((len(where),), 1e-4)
        )
    return quantizer, z


@every_variant
@both_updates
def test_dead_codewords_move_to_data_and_stay(config: QuantizerConfig, update: str) -> None:
    """Those of codebooks that get data; which vectors they move to depends on the seed alone."""
    states = []
    for seed in (7, 7, 8):
        quantizer, z = starved(config, update)
        visited = [
            (index // book.size).unique().tolist()
            for index, book in zip(
                quantizer.codeword_indices(quantizer.encode(z)), quantizer.levels, strict=True
            )
        ]
        assert quantizer.restart_dead_codes(z, generator(seed)) >= 1
        for level, codebook in enumerate(quantizer.levels):
            for node, far in enumerate(
                (codebook.codewords.detach()[:, -1].abs().amax(-1) >= FAR).tolist()
            ):
                assert far == (node not in visited[level]), (level, node)
        moved = quantizer.levels[0].codewords.detach()[0, -1].clone()
        assert (moved - z.reshape(-1, DIM)).abs().sum(1).min() == 0
        states.append(moved)
        quantizer.train()(torch.zeros(1, 1, 1, DIM))
        assert float((quantizer.levels[0].codewords.detach()[0, -1] - moved).norm()) < 0.5
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_what_is_dead_by_hand() -> None:
    """Below a quarter of an equal share of 16 in four is below 1; at a share of 0 nothing is, used
    or not.
    """
    for below, first, dead in ((0.25, 1.0, 0), (0.26, 1.0, 1), (0.0, 0.0, 0)):
        quantizer = random_quantizer(TREE, levels=1, restart_below=below)
        quantizer.levels[0].count[0] = torch.tensor([first, 4.0, 6.0, 6.0 - first])
        assert quantizer.restart_dead_codes(latents(4, 8, 8), generator()) == dead


def with_a_dead_subtree(root: int = 0, **fields: Any) -> tuple[ResidualQuantizer, Tensor]:
    """A tree that fits its latents, but for codeword 2 of level `root`: it, and all below it, lies
    where nothing is.
    """
    z = latents(8, 16, 16, dim=2)
    quantizer = started(TREE, z, dim=2, **fields)
    for finer, codebook in enumerate(quantizer.levels[root : root + quantizer.config.group_size]):
        below = torch.arange(4**finer) + 2 * 4**finer
        codebook.set_codewords(
            below, torch.full((len(below), 2), FAR), torch.full((len(below),), 1e-4)
        )
    return quantizer, z


@pytest.mark.parametrize("fields", [{}, {"update": "gradient"}, {"levels": 4, "linked": 2}])
def test_a_subtree_is_copied_with_its_counts_in_proportion(fields: dict[str, Any]) -> None:
    """In groups of levels: within the group of the codeword that was restarted, here the second."""
    root = 2 if "linked" in fields else 0
    quantizer, z = with_a_dead_subtree(root, **fields)
    group = quantizer.levels[root : root + quantizer.config.group_size]
    codes = quantizer.encode(z)
    others = [book.codewords.clone() for book in quantizer.levels[:root]]
    left = (z - quantizer.lookup(codes[:root])).reshape(-1, 2) if root else z.reshape(-1, 2)
    mean = float(group[0].count.mean())
    quantizer.restart_dead_codes(z, generator(3))
    assert all(
        torch.equal(one, book.codewords)
        for one, book in zip(others, quantizer.levels, strict=False)
    )
    nearest = (left - group[0].codewords.detach()[0, 2]).abs().sum(1).argmin()
    source = int(codes[root].flatten()[nearest])
    assert source != 2
    weight = group[0].count[0, 2] / group[0].count[0, source]
    assert float(group[0].count[0, 2]) == pytest.approx(mean)
    for finer, codebook in enumerate(group[1:]):
        copies = codebook.codewords.detach().view(4, 4**finer, 4, 2)
        assert torch.equal(copies[2], copies[source])
        counts = codebook.count.view(4, 4**finer, 4)
        torch.testing.assert_close(counts[2], counts[source] * weight)
        if codebook.total is not None:
            torch.testing.assert_close(
                codebook.total, codebook.codewords * codebook.count.unsqueeze(-1)
            )


def test_several_levels_are_restarted_at_once() -> None:
    """Dead at level 1, and at level 2 below codewords that live: all are placed by what is left
    there.
    """
    quantizer, z = with_a_dead_subtree()
    level = quantizer.levels[1]
    dead = torch.tensor([0 * 4 + 1, 1 * 4 + 3, 3 * 4 + 0])
    third = (dead[:, None] * 4 + torch.arange(4)).flatten()
    for codebook, paths in ((level, dead), (quantizer.levels[2], third)):
        codebook.set_codewords(
            paths, torch.full((len(paths), 2), FAR), torch.full((len(paths),), 1e-4)
        )
    assert quantizer.restart_dead_codes(z, generator(3)) == 4
    for moved in dead.tolist():
        assert level.codewords.view(-1, 2)[moved].abs().max() < 10
        assert quantizer.levels[2].codewords[moved].abs().max() < 10
    assert (quantizer.lookup(quantizer.encode(z)) - z).square().sum(-1).max() < 10


def test_vectors_of_dead_codewords_are_not_drawn() -> None:
    """A codeword that is moved would leave its vectors, or be moved to where it is, with the
    subtree that it had.
    """
    quantizer, z = with_a_dead_subtree()
    z[:, :, :8] = FAR + 1  # half of the vectors, and the dead codeword's only ones
    for seed in range(20):
        twin = ResidualQuantizer(quantizer.config)
        twin.load_state_dict(quantizer.state_dict())
        twin.restart_dead_codes(z, generator(seed))
        assert twin.levels[0].codewords[0, 2].abs().max() < 10, "drawn from the living"
    quantizer.levels[0].count.zero_()
    assert quantizer.restart_dead_codes(z, generator()) >= 0, (
        "a codebook without any count is left alone"
    )
    assert quantizer.levels[0].codewords[0, 2].min() == FAR


def test_vectors_of_the_place_that_was_left_are_not_drawn_below_it() -> None:
    quantizer = random_quantizer(dataclasses.replace(TREE, levels=2, codewords=2, dim=1))
    for level, last in zip(quantizer.levels, (FAR, 2 * FAR), strict=True):
        books = len(level.count)
        vectors = torch.tensor([[0.0], [last]])
        counts = torch.tensor([4.0, 1e-4])
        level.set_codewords(torch.arange(2 * books), vectors.repeat(books, 1), counts.repeat(books))
    z = torch.cat([0.1 * latents(50, dim=1), torch.full((5, 1), FAR + 1)])
    assert quantizer.restart_dead_codes(z, generator()) == 2
    assert [float(book[1, 0]) < 1 for book in quantizer.levels[1].codewords] == [True, False]


def test_as_many_are_restarted_as_there_are_vectors() -> None:
    quantizer = started(QuantizerConfig(codewords=8, dim=2), latents(100, dim=2))
    quantizer.levels[0].set_codewords(torch.arange(1, 8), torch.full((7, 2), FAR), torch.zeros(7))
    given = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    quantizer.search = search_tensors  # as on a GPU, where no vector is checked
    assert (
        quantizer.restart_dead_codes(
            torch.cat([given, given * torch.tensor([[torch.nan, 1]])]), generator()
        )
        == 3
    )
    assert quantizer.levels[0].codewords.isfinite().all()
    moved = {tuple(one.tolist()) for one in quantizer.levels[0].codewords[0] if one.max() < 1}
    assert {tuple(one) for one in given.tolist()} <= moved


@every_variant
def test_renumbered_children_stand_for_the_same_and_go_on_learning_the_same(
    config: QuantizerConfig,
) -> None:
    z = latents(4, 9, 9)
    one = started(config, z).train()
    one(z)
    other = copy.deepcopy(one)
    other.align()
    for moved in (z, z + 0.3):
        assert torch.equal(other.lookup(other.encode(moved)), one.lookup(one.encode(moved)))
        assert torch.equal(one(moved).latents, other(moved).latents)
    for mine, theirs in zip(one.levels, other.levels, strict=True):
        assert torch.equal(mine.count.view(-1).sort().values, theirs.count.view(-1).sort().values)


def test_a_number_means_the_same_below_every_parent_once_children_are_aligned() -> None:
    """All parents have the same five children, a little apart, in another order; grandchildren tell
    which is which.
    """
    config = QuantizerConfig(levels=3, codewords=5, linked=3, dim=2)
    quantizer = ResidualQuantizer(config)
    random = generator()
    first, second, third = quantizer.levels
    kinds = torch.randn(5, 2, generator=random)
    kind = torch.stack(
        [torch.randperm(5, generator=random) for _ in range(5)]
    )  # of each child of each parent
    second.codewords.data = kinds[kind] + 0.01 * torch.randn(5, 5, 2, generator=random)
    third.codewords.data = kind.view(25, 1, 1).expand(-1, 5, 2).float().contiguous()
    before = first.codewords.clone()
    quantizer.align()
    assert torch.equal(first.codewords, before)
    found = torch.cdist(second.codewords.detach(), kinds).argmin(-1)
    assert (found == found[0]).all()
    assert torch.equal(third.codewords.detach()[:, 0, 0].view(5, 5), found.float())
