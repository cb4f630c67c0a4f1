"""The tree quantizer against its oracle, and each pitfall of public code against its faulty form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import EMACodebook
from hrvqvae.quantize.search import TreeSearch, search_tree
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.quantize import oracle

CONFIG = QuantizerConfig(levels=3, codewords=4, dim=5, beta=0.25, decay=0.9)


def random_quantizer(config: QuantizerConfig = CONFIG, seed: int = 0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(seed)
    quantizer = ResidualQuantizer(config)
    for level, codebook in enumerate(quantizer.levels):
        vectors = torch.randn(codebook.num_codewords, config.dim, generator=generator) * 0.6**level
        codebook.set_codewords(torch.arange(len(vectors)), vectors, torch.rand(len(vectors), generator=generator) + 1)
    return quantizer


def latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, CONFIG.dim, generator=torch.Generator().manual_seed(seed))


def books(quantizer: ResidualQuantizer) -> list[np.ndarray]:
    return [codebook.codewords.detach().numpy().copy() for codebook in quantizer.levels]


def flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1, tensor.shape[-1]).detach().numpy()


@settings(max_examples=60, deadline=None)
@given(
    levels=st.integers(1, 4), size=st.integers(2, 5), dim=st.integers(1, 7), seed=st.integers(0, 10**6),
    count=st.integers(1, 20),
)  # fmt: skip
def test_search_agrees_with_the_oracle(levels: int, size: int, dim: int, seed: int, count: int) -> None:
    quantizer = random_quantizer(QuantizerConfig(levels=levels, codewords=size, dim=dim), seed)
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed + 1))
    found = search_tree(vectors, [codebook.codewords for codebook in quantizer.levels])
    for row, vector in enumerate(vectors.numpy()):
        paths, _, total = oracle.search(vector, books(quantizer))
        assert found.paths[:, row].tolist() == paths
        np.testing.assert_allclose(found.quantized[row].numpy(), total, atol=1e-5)


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]])
    found = search_tree(torch.tensor([[0.0], [2.0], [-2.0]]), [codebook])
    assert found.paths.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_losses_agree_with_the_oracle(update: str) -> None:
    quantizer = random_quantizer(dataclasses.replace(CONFIG, update=update)).eval()
    z = latents(2, 3, 4)
    result = quantizer(z)
    expected = oracle.losses(flat(z), books(quantizer), CONFIG.beta)
    if update == "ema":
        expected = {name: value for name, value in expected.items() if name.startswith("commitment")}
    assert set(result.losses) == set(expected)
    for name, value in expected.items():
        assert float(result.losses[name].detach()) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("level_betas", "weights"),
    [((), (0.25, 0.25, 0.25)), ((0.5,), (0.5, 0.5, 0.5)), ((0.0, 0.1, 0.3), (0.0, 0.1, 0.3))],
)
def test_each_level_has_its_weight(level_betas: tuple[float, ...], weights: tuple[float, ...]) -> None:
    """As in the oracle with a weight of 1; a term of weight 0 is not there at all."""
    quantizer = random_quantizer(dataclasses.replace(CONFIG, beta=0.25, level_betas=level_betas)).eval()
    z = latents(2, 3, 4)
    found, unit = quantizer(z).losses, oracle.losses(flat(z), books(quantizer), 1.0)
    for level, weight in enumerate(weights, start=1):
        name = f"commitment_{level}"
        assert (name in found) == (weight > 0)
        if weight:
            assert float(found[name].detach()) == pytest.approx(weight * unit[name], rel=1e-5)
    assert float(found["commitment"].detach()) == pytest.approx(0.25 * unit["commitment"], rel=1e-5)


def test_weights_of_levels_are_none_one_or_one_a_level() -> None:
    with pytest.raises(InputError, match="level_betas is .*none, one or 3 values"):
        dataclasses.replace(CONFIG, level_betas=(0.1, 0.2))
    with pytest.raises(InputError, match="level_betas is .*at least 0"):
        dataclasses.replace(CONFIG, level_betas=(-0.1,))


def test_moving_averages_agree_with_the_oracle() -> None:
    quantizer = random_quantizer().train()
    state = [
        (codebook.count.numpy().copy(), codebook.total.numpy().copy())
        for codebook in quantizer.levels
        if isinstance(codebook, EMACodebook)
    ]
    z = latents(2, 5, 6)
    expected = oracle.moving_averages(
        flat(z), books(quantizer), [count for count, _ in state], [total for _, total in state], CONFIG.decay
    )
    quantizer(z)
    for codebook, book, count, total in zip(quantizer.levels, *expected, strict=True):
        assert isinstance(codebook, EMACodebook)
        np.testing.assert_allclose(codebook.codewords.numpy(), book, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(codebook.count.numpy(), count, rtol=1e-5)
        np.testing.assert_allclose(codebook.total.numpy(), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("levels", "behind"), [(1, 10.0), (2, 0.0), (3, 0.0)])
def test_sums_of_moving_averages_keep_up_and_overshoot(levels: int, behind: float) -> None:
    """docs/what-we-changed.md: at a decay of 0.9 a codeword stays 10 steps behind a latent that moves evenly.

    The sum of several levels catches up, and runs on when the latent stops: how far, by the recursion of one number.
    """
    quantizer = random_quantizer(dataclasses.replace(CONFIG, levels=levels)).train()
    for codebook in quantizer.levels:  # one far codeword of each codebook follows; the others never come near
        far = torch.full((codebook.num_codewords, CONFIG.dim), 1e3)
        far[0] = 0
        codebook.set_codewords(torch.arange(len(far)), far, torch.ones(len(far)))
    lags, expected, average = [], [], np.zeros(levels)
    for step in range(240):
        z = torch.full((1, 1, 1, CONFIG.dim), float(min(step, 150)))
        codes = tuple(torch.zeros(1, 1, 1, dtype=torch.long) for _ in range(levels))
        lags.append(float((z - quantizer.lookup(codes)).mean()))  # what the commitment sees
        quantizer(z)
        residuals = min(step, 150) - np.cumsum(average)  # r_1, r_2, ..., before any of them moves
        expected.append(residuals[-1])
        average = CONFIG.decay * average + (1 - CONFIG.decay) * np.array([min(step, 150), *residuals[:-1]])
    np.testing.assert_allclose(lags, expected, atol=1e-3)
    assert lags[149] == pytest.approx(behind, abs=0.01)
    assert (min(lags) < -2) == (levels > 1)


def test_gradient_codebooks_get_the_printed_gradient() -> None:
    quantizer = random_quantizer(dataclasses.replace(CONFIG, update="gradient"))
    z = latents(2, 3, 4).requires_grad_()
    torch.stack(list(quantizer(z).losses.values())).sum().backward()
    expected = [np.zeros_like(book) for book in books(quantizer)]
    for vector in flat(z):
        paths, residuals, total = oracle.search(vector, books(quantizer))
        for level, (path, residual) in enumerate(zip(paths, residuals, strict=True)):
            codeword = books(quantizer)[level].reshape(-1, CONFIG.dim)[path]
            row = expected[level].reshape(-1, CONFIG.dim)[path]
            row += -2 * (residual - codeword) - 2 * (vector - total)  # of its level, and of ||sg[r_0] - z_q||^2
    for codebook, gradient in zip(quantizer.levels, expected, strict=True):
        assert codebook.codewords.grad is not None
        np.testing.assert_allclose(codebook.codewords.grad.numpy(), gradient, rtol=1e-4, atol=1e-4)


def test_straight_through_passes_the_gradient_once() -> None:
    z = latents(1, 2, 2).requires_grad_()
    quantized = random_quantizer().eval()(z).latents
    weight = torch.arange(quantized.numel(), dtype=torch.float32).view_as(quantized)
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), z)
    assert torch.equal(gradient, weight)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_codes_of_a_prefix_give_its_sum(levels: int) -> None:
    quantizer = random_quantizer().eval()
    z = latents(2, 3, 4)
    codes = quantizer.encode(z)
    assert [tuple(code.shape) for code in codes] == [(2, 3, 4)] * 3
    expected = [
        sum(book.reshape(-1, CONFIG.dim)[path] for book, path in zip(books(quantizer)[:levels], paths, strict=False))
        for paths, _, _ in (oracle.search(vector, books(quantizer)) for vector in flat(z))
    ]
    np.testing.assert_allclose(flat(quantizer.lookup(codes[:levels])), np.stack(expected), atol=1e-5)


def test_distortion_falls_with_every_level() -> None:
    z = latents(4, 8, 8)
    quantizer = ResidualQuantizer(CONFIG)
    quantizer.initialize(z, torch.Generator().manual_seed(0))
    codes = quantizer.encode(z)
    errors = [float((quantizer.lookup(codes[:levels]) - z).square().sum()) for levels in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_evaluation_changes_no_codebook_and_training_does() -> None:
    quantizer = random_quantizer()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(latents(2, 4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
    quantizer.train()(latents(2, 4, 4))
    assert not torch.equal(quantizer.state_dict()["codebooks.0.codewords"], before["codebooks.0.codewords"])


def test_low_precision_never_reaches_the_quantizer() -> None:
    quantizer, z = random_quantizer().eval(), latents(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(z)
    outside = quantizer(z)
    assert inside.latents.dtype == torch.float32
    assert torch.equal(inside.latents, outside.latents)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_codeword_is_nearest_to_nan(bad: float) -> None:
    z = latents(1, 2, 2)
    z[0, 1, 1, 2] = bad
    quantizer = random_quantizer().train()
    before = quantizer.levels[0].codewords.clone()
    with pytest.raises(NonFiniteError, match="1 of 20 values"):
        quantizer(z)
    assert torch.equal(quantizer.levels[0].codewords, before)


@pytest.mark.parametrize(("code", "message"), [(4, "code 4"), (-1, "code -1")])
def test_codes_out_of_range_are_refused(code: int, message: str) -> None:
    codes = tuple(torch.full((1, 1, 1), value) for value in (0, code, 0))
    with pytest.raises(InputError, match=message):
        random_quantizer().lookup(codes)


# Start and dead-code restart


def test_kmeans_start_is_near_the_best_of_a_known_mixture() -> None:
    generator = torch.Generator().manual_seed(3)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    offsets = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    choice = torch.randint(4, (2, 4_000), generator=generator)
    z = centers[choice[0]] + offsets[choice[1]] + 0.01 * torch.randn(4_000, 2, generator=generator)
    quantizer = ResidualQuantizer(QuantizerConfig(levels=2, codewords=4, dim=2))
    quantizer.initialize(z, generator)
    error = (quantizer.lookup(quantizer.encode(z.view(1, 1, -1, 2))) - z).square().sum(-1).mean()
    assert float(error) < 0.01


def test_nodes_are_the_vectors_of_each_parent() -> None:
    path = torch.tensor([2, 0, 2, 5, 0, 2])
    found = {book: sorted(members.tolist()) for book, members in vq.nodes(path, 6)}
    assert found == {0: [1, 4], 2: [0, 2, 5], 5: [3]}


def starved(seed: int = 0) -> tuple[ResidualQuantizer, torch.Tensor]:
    """A quantizer with one codeword a level that nothing is near to, and the latents that starved it."""
    quantizer, z = random_quantizer(seed=seed), latents(4, 8, 8)
    for codebook in quantizer.levels:
        far = torch.full((len(codebook.count), CONFIG.dim), 50.0)
        where = torch.arange(len(codebook.count)) * CONFIG.codewords + 2
        codebook.set_codewords(where, far, torch.full((len(where),), 1e-4))
    return quantizer, z


def check_revival_lasts(quantizer: ResidualQuantizer, z: torch.Tensor) -> None:
    """Dead codewords of nodes that get data are moved to data, and the next update leaves them there."""
    codes = quantizer.encode(z)
    parents = quantizer.paths(codes)
    visited = [{0}] + [set(path.flatten().tolist()) for path in parents[:-1]]
    restarted = quantizer.restart_dead_codes(z, torch.Generator().manual_seed(5))
    assert restarted >= 1
    for level, codebook in enumerate(quantizer.levels):
        assert all(float(codebook.codewords[node, 2].abs().max()) < 10 for node in visited[level])
        unvisited = set(range(len(codebook.count))) - visited[level]
        assert all(float(codebook.codewords[node, 2].min()) == 50 for node in unvisited)
    moved = quantizer.levels[0].codewords[0, 2].clone()
    quantizer.train()(torch.zeros(1, 1, 1, CONFIG.dim))
    assert float((quantizer.levels[0].codewords[0, 2] - moved).norm()) < 0.5


def test_revival_lasts() -> None:
    check_revival_lasts(*starved())


def test_revival_is_seeded() -> None:
    states = []
    for seed in (7, 7, 8):
        quantizer, z = starved()
        quantizer.restart_dead_codes(z, torch.Generator().manual_seed(seed))
        states.append(quantizer.levels[0].codewords.clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_nothing_is_revived_where_all_is_alive() -> None:
    quantizer, z = ResidualQuantizer(CONFIG), latents(4, 16, 16)
    quantizer.initialize(z, torch.Generator().manual_seed(0))
    assert quantizer.restart_dead_codes(z, torch.Generator()) == 0


# Pitfalls seen in public code (docs/method.md): each check passes here and fails on the faulty form.


def check_every_level_commits(quantizer: ResidualQuantizer) -> None:
    z = latents(2, 3, 4).requires_grad_()
    result = quantizer.eval()(z)
    for level in (1, 2, 3):
        (alone,) = torch.autograd.grad(result.losses[f"commitment_{level}"], z, retain_graph=True, allow_unused=True)
        assert alone is not None, f"level {level} sends no gradient"
        assert float(alone.abs().max()) > 1e-3, f"level {level} sends no gradient"
    terms = [loss for name, loss in result.losses.items() if name.startswith("commitment")]
    (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), z)
    np.testing.assert_allclose(
        flat(gradient), oracle.latent_gradient(flat(z), books(quantizer), CONFIG.beta), atol=1e-4
    )


def check_sums_alias_no_codeword(quantizer: ResidualQuantizer) -> None:
    before = books(quantizer)
    codes = tuple(torch.full((1, 1, 1), code) for code in (1, 2, 3))
    first = quantizer.lookup(codes)
    assert torch.equal(quantizer.lookup(codes), first)
    for codebook, book in zip(quantizer.levels, before, strict=True):
        np.testing.assert_array_equal(codebook.codewords.detach().numpy(), book)


class SumInPlace(ResidualQuantizer):
    def lookup(self, codes):  # type: ignore[no-untyped-def]
        path = int(codes[0])
        quantized = self.levels[0].codewords.flatten(0, 1)[path]  # a view
        for codebook, code in zip(self.levels[1:], codes[1:], strict=True):
            path = path * self.config.codewords + int(code)
            quantized += codebook.codewords.flatten(0, 1)[path]
        return quantized


def check_decay_arrives(build: type[ResidualQuantizer]) -> None:
    moved = []
    for decay in (0.5, 0.99):
        quantizer = build(dataclasses.replace(CONFIG, decay=decay))
        quantizer.initialize(latents(2, 8, 8), torch.Generator().manual_seed(0))
        before, other = quantizer.levels[0].count.clone(), latents(2, 8, 8, seed=2)
        counts = torch.bincount(quantizer.encode(other)[0].flatten(), minlength=4)
        quantizer.train()(other)
        moved.append(float((quantizer.levels[0].count - before).norm() / (counts - before).norm()))
    assert moved[0] == pytest.approx(0.5, rel=0.1)
    assert moved[1] == pytest.approx(0.01, rel=0.1)


def check_children_belong_to_their_parent(quantizer: ResidualQuantizer) -> None:
    assert [tuple(codebook.codewords.shape) for codebook in quantizer.levels[:2]] == [(1, 4, 5), (4, 4, 5)]
    z = latents(6, 8, 8)
    one, two = quantizer.paths(quantizer.encode(z))[:2]
    assert torch.equal(two // 4, one)
    everything = torch.cdist(z.reshape(-1, 5) - quantizer.levels[0].lookup(one.flatten()), quantizer.levels[1].lookup(
        torch.arange(16))).argmin(-1)  # fmt: skip
    elsewhere = everything // 4 != one.flatten()
    assert elsewhere.any(), "the case must have vectors whose nearest codeword hangs under another parent"
    assert torch.equal(two.flatten()[~elsewhere], everything[~elsewhere])
    chosen = quantizer.lookup(quantizer.encode(z)[:2]).reshape(-1, 5)
    reachable = quantizer.levels[1].codewords[one.flatten()] + quantizer.levels[0].lookup(one.flatten())[:, None]
    best = (z.reshape(-1, 1, 5) - reachable).square().sum(-1).min(-1).values
    np.testing.assert_allclose((z.reshape(-1, 5) - chosen).square().sum(-1).numpy(), best.numpy(), rtol=1e-4)


def search_unlinked(latents: torch.Tensor, codebooks: object) -> TreeSearch:
    """Independent flat codebooks a level, sold as the hierarchy: everything is in reach everywhere."""
    residual, quantized, paths = latents, torch.zeros_like(latents), []
    for codebook in codebooks:  # type: ignore[attr-defined]
        everything = codebook.flatten(0, 1)
        path = torch.cdist(residual, everything).argmin(-1)
        residual, quantized = residual - everything[path], quantized + everything[path]
        paths.append(path)
    return torch.stack(paths)


class RevivalOfCodewordsAlone(EMACodebook):
    def set_codewords(self, path, vectors, count):  # type: ignore[no-untyped-def]
        self.codewords.view(-1, vectors.shape[-1])[path] = vectors


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


def check_nothing_is_larger_than_the_latents(search: object) -> None:
    quantizer = random_quantizer()
    z = latents(500)
    with _LargestTensor() as seen:
        search(z, [codebook.codewords for codebook in quantizer.levels])  # type: ignore[operator]
    assert seen.largest <= z.numel()


def search_gathering(latents: torch.Tensor, codebooks: object) -> TreeSearch:
    residual, path, paths = latents, torch.zeros(len(latents), dtype=torch.long), []
    for codebook in codebooks:  # type: ignore[attr-defined]
        code = (residual[:, None] - codebook[path]).square().sum(-1).argmin(-1)
        path = path * codebook.shape[1] + code
        residual = residual - codebook.flatten(0, 1)[path]
        paths.append(path)
    return TreeSearch(torch.stack(paths), latents - residual)


def _like(faulty: type[ResidualQuantizer]) -> ResidualQuantizer:
    quantizer = faulty(CONFIG)
    quantizer.load_state_dict(random_quantizer().state_dict())
    return quantizer


def test_every_level_commits() -> None:
    check_every_level_commits(random_quantizer())


def test_sums_alias_no_codeword() -> None:
    check_sums_alias_no_codeword(random_quantizer())
    with pytest.raises(AssertionError):
        check_sums_alias_no_codeword(_like(SumInPlace))


def test_decay_arrives() -> None:
    check_decay_arrives(ResidualQuantizer)


def test_children_belong_to_their_parent() -> None:
    check_children_belong_to_their_parent(random_quantizer())
    faulty = random_quantizer()
    faulty.search = search_unlinked
    with pytest.raises(AssertionError):
        check_children_belong_to_their_parent(faulty)


def test_revival_of_codewords_alone_is_undone() -> None:
    quantizer, z = starved()
    for codebook in quantizer.levels:
        codebook.__class__ = RevivalOfCodewordsAlone
    with pytest.raises(AssertionError):
        check_revival_lasts(quantizer, z)


def test_nothing_is_larger_than_the_latents() -> None:
    check_nothing_is_larger_than_the_latents(search_tree)
    with pytest.raises(AssertionError):
        check_nothing_is_larger_than_the_latents(search_gathering)
