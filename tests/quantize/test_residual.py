"""The quantizer without links, codebooks of its own or shared, against an oracle in numpy from the equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.codebook import EMACodebook
from hrvqvae.utils.errors import InputError, NonFiniteError

OWN = QuantizerConfig(linked=1, levels=3, codewords=4, dim=5, beta=0.25, decay=0.9)
SHARED = dataclasses.replace(OWN, shared=True)
BOTH = pytest.mark.parametrize("config", [OWN, SHARED], ids=["own", "shared"])


def random_quantizer(config: QuantizerConfig = OWN, seed: int = 0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(seed)
    quantizer = ResidualQuantizer(config)
    for level, book in enumerate(dict.fromkeys(quantizer.levels)):
        vectors = torch.randn(config.codewords, config.dim, generator=generator) * 0.6**level
        count = torch.rand(config.codewords, generator=generator) + 1
        book.set_codewords(torch.arange(config.codewords), vectors, count)
    return quantizer


def latents(*shape: int, seed: int = 1, dim: int = 5) -> torch.Tensor:
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


def books(quantizer: ResidualQuantizer) -> list[np.ndarray]:
    """(m, D) of each level, in float64."""
    return [book.codewords.detach().numpy()[0].astype(np.float64) for book in quantizer.levels]


def flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1, tensor.shape[-1]).detach().numpy().astype(np.float64)


# The oracle: one vector at a time, in float64.


def search(vector: np.ndarray, books: list[np.ndarray]) -> tuple[list[int], list[np.ndarray]]:
    """Codes, and the residuals before each level and after the last."""
    residuals, codes = [vector], []
    for book in books:
        distances = [float(((residuals[-1] - codeword) ** 2).sum()) for codeword in book]
        codes.append(distances.index(min(distances)))
        residuals.append(residuals[-1] - book[codes[-1]])
    return codes, residuals


def expected_losses(vectors: np.ndarray, books: list[np.ndarray], beta: float) -> dict[str, float]:
    terms: dict[str, float] = {}
    for vector in vectors:
        _, residuals = search(vector, books)
        after = [float((residual**2).sum()) for residual in residuals[1:]]
        for name, error in (*((f"_{level}", error) for level, error in enumerate(after, 1)), ("", after[-1])):
            terms[f"codebook{name}"] = terms.get(f"codebook{name}", 0) + error
            terms[f"commitment{name}"] = terms.get(f"commitment{name}", 0) + beta * error
    return terms


@settings(max_examples=40, deadline=None)
@given(
    levels=st.integers(1, 4), size=st.integers(2, 5), dim=st.integers(1, 7), seed=st.integers(0, 10**6),
    shared=st.booleans(),
)  # fmt: skip
def test_codes_agree_with_the_oracle(levels: int, size: int, dim: int, seed: int, shared: bool) -> None:
    config = QuantizerConfig(linked=1, levels=levels, codewords=size, dim=dim, shared=shared)
    quantizer, z = random_quantizer(config, seed), latents(2, 2, 3, seed=seed + 1, dim=dim)
    codes = quantizer.encode(z)
    assert [tuple(code.shape) for code in codes] == [(2, 2, 3)] * levels
    found = torch.stack([code.flatten() for code in codes], -1).tolist()
    assert found == [search(vector, books(quantizer))[0] for vector in flat(z)]


@BOTH
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_codes_of_a_prefix_give_its_sum(config: QuantizerConfig, levels: int) -> None:
    quantizer, z = random_quantizer(config), latents(2, 3, 4)
    found = quantizer.lookup(quantizer.encode(z)[:levels])
    expected = [vector - search(vector, books(quantizer))[1][levels] for vector in flat(z)]
    assert found.shape == z.shape
    np.testing.assert_allclose(flat(found), np.stack(expected), atol=1e-5)
    if levels == 3:
        np.testing.assert_allclose(flat(quantizer.eval()(z).latents), np.stack(expected), atol=1e-5)


@BOTH
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_losses_agree_with_the_oracle(config: QuantizerConfig, update: str) -> None:
    quantizer, z = random_quantizer(dataclasses.replace(config, update=update)).eval(), latents(2, 3, 4)
    losses = quantizer(z).losses
    expected = expected_losses(flat(z), books(quantizer), config.beta)
    if update == "ema":
        expected = {name: value for name, value in expected.items() if name.startswith("commitment")}
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(value, rel=1e-5), name


@BOTH
def test_gradients_agree_with_the_oracle(config: QuantizerConfig) -> None:
    """Each level's commitment reaches the encoder; each codeword gets its own level's term and the combined one."""
    quantizer, z = random_quantizer(dataclasses.replace(config, update="gradient")), latents(2, 3, 4).requires_grad_()
    torch.stack(list(quantizer(z).losses.values())).sum().backward()
    own = [np.zeros_like(book) for book in books(quantizer)]
    of_latents = []
    for vector in flat(z):
        codes, residuals = search(vector, books(quantizer))
        of_latents.append(2 * config.beta * (sum(residuals[1:]) + residuals[-1]))
        for level, code in enumerate(codes):
            own[level][code] += -2 * residuals[level + 1] - 2 * residuals[-1]
    assert z.grad is not None
    np.testing.assert_allclose(flat(z.grad), np.stack(of_latents), atol=1e-4)
    expected = [sum(own)] if config.shared else own
    for book, gradient in zip(dict.fromkeys(quantizer.levels), expected, strict=True):
        assert book.codewords.grad is not None
        np.testing.assert_allclose(book.codewords.grad[0].numpy(), gradient, rtol=1e-4, atol=1e-4)


@BOTH
def test_moving_averages_agree_with_the_oracle(config: QuantizerConfig) -> None:
    """A shared codebook follows the vectors of all levels in one update."""
    quantizer, z = random_quantizer(config).train(), latents(2, 5, 6)
    kept = [book for book in dict.fromkeys(quantizer.levels) if isinstance(book, EMACodebook)]
    counts = [config.decay * book.count[0].numpy().astype(np.float64) for book in kept]
    totals = [config.decay * book.total[0].numpy().astype(np.float64) for book in kept]
    for vector in flat(z):
        codes, residuals = search(vector, books(quantizer))
        for level, code in enumerate(codes):
            counts[0 if config.shared else level][code] += 1 - config.decay
            totals[0 if config.shared else level][code] += (1 - config.decay) * residuals[level]
    quantizer(z)
    assert len(kept) == (1 if config.shared else 3)
    for book, count, total in zip(kept, counts, totals, strict=True):
        np.testing.assert_allclose(book.count[0].numpy(), count, rtol=1e-5)
        np.testing.assert_allclose(book.codewords[0].numpy(), total / count[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_only_the_linking_differs_from_the_tree(update: str) -> None:
    """A tree whose codebooks of a level are all the same has the same codes, losses and gradients."""
    unlinked = random_quantizer(dataclasses.replace(OWN, update=update)).eval()
    tree = ResidualQuantizer(QuantizerConfig(levels=3, codewords=4, dim=5, beta=0.25, update=update)).eval()
    for level, (linked, book) in enumerate(zip(tree.levels, unlinked.levels, strict=True)):
        vectors = book.codewords.detach()[0].repeat(4**level, 1)
        linked.set_codewords(torch.arange(len(vectors)), vectors, torch.ones(len(vectors)))
    found = []
    for quantizer in (unlinked, tree):
        z = latents(2, 4, 4).requires_grad_()
        result = quantizer(z)
        (sum(result.losses.values()) + result.latents.square().sum()).backward()
        found.append((result, z.grad))
    (one, of_one), (other, of_other) = found
    assert all(torch.equal(a, b) for a, b in zip(one.codes, other.codes, strict=True))
    assert one.losses.keys() == other.losses.keys()
    torch.testing.assert_close(dict(one.losses), dict(other.losses))
    torch.testing.assert_close((one.latents, of_one), (other.latents, of_other))


def test_straight_through_passes_the_gradient_once() -> None:
    z = latents(1, 2, 2).requires_grad_()
    quantized = random_quantizer().eval()(z).latents
    weight = torch.arange(quantized.numel(), dtype=torch.float32).view_as(quantized)
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), z)
    assert torch.equal(gradient, weight)


@BOTH
def test_evaluation_changes_no_codebook_and_training_does(config: QuantizerConfig) -> None:
    quantizer = random_quantizer(config)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(latents(2, 4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
    quantizer.train()(latents(2, 4, 4))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


def test_low_precision_never_reaches_the_quantizer() -> None:
    quantizer, z = random_quantizer().eval(), latents(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(z)
    assert inside.latents.dtype == torch.float32
    assert torch.equal(inside.latents, quantizer(z).latents)


def test_what_is_not_finite_is_named() -> None:
    quantizer, z = random_quantizer(), latents(1, 2, 2)
    z[0, 1, 1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="latents: 1 of 20 values"):
        quantizer(z)
    quantizer.levels[1].codewords[0] = float("nan")
    with pytest.raises(NonFiniteError, match="codebook of level 2: 20 of 20 values"):
        quantizer(latents(1, 2, 2))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([0, 4], "level 2 has code 4; codes lie in 0..3"), ([-1], "level 1 has code -1"),
        ([], "0 levels of codes given; this model has 1 to 3"), ([0] * 4, "4 levels of codes given"),
    ],
)  # fmt: skip
def test_bad_codes_are_refused(codes: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_quantizer().lookup(tuple(torch.full((1, 1, 1), code) for code in codes))


# Start and dead-code restart


def test_kmeans_start_finds_a_known_mixture_level_by_level() -> None:
    """Offsets that are the same around every center, which unlinked codebooks code without loss."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    offsets = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    choice = torch.randint(4, (2, 4_000), generator=generator)
    z = centers[choice[0]] + offsets[choice[1]] + 0.01 * torch.randn(4_000, 2, generator=generator)
    quantizer = ResidualQuantizer(QuantizerConfig(linked=1, levels=2, codewords=4, dim=2))
    quantizer.initialize(z, generator, weight=0.5)
    codes = quantizer.encode(z.view(1, 1, -1, 2))
    assert float((quantizer.lookup(codes) - z).square().sum(-1).mean()) < 0.001
    for book, code in zip(quantizer.levels, codes, strict=True):  # counts begin as the clusters' sizes
        np.testing.assert_allclose(book.count[0].numpy(), 0.5 * np.bincount(code.flatten().numpy()))


def test_shared_start_fits_what_every_level_has_to_code() -> None:
    """A codebook fitted to the latents alone has no codeword as short as the finer levels' residuals."""
    z = latents(4, 20, 20, dim=2) + torch.tensor([8.0, 0.0])
    config = QuantizerConfig(linked=1, levels=3, codewords=8, dim=2, shared=True)
    quantizer, first_alone = ResidualQuantizer(config), ResidualQuantizer(config)
    quantizer.initialize(z, torch.Generator().manual_seed(0), weight=0.25)
    alone = ResidualQuantizer(dataclasses.replace(config, levels=1))
    alone.initialize(z, torch.Generator().manual_seed(0))
    first_alone.codebooks[0].load_state_dict(alone.codebook.state_dict())
    errors = [
        [float((one.lookup(one.encode(z)[:levels]) - z).square().sum(-1).mean()) for levels in (1, 2, 3)]
        for one in (quantizer, first_alone)
    ]
    assert errors[0][0] > errors[0][1] > errors[0][2]
    assert errors[0][2] < errors[1][2] / 2
    assert float(quantizer.levels[0].count.sum()) == pytest.approx(0.25 * 3 * 1600)  # a vector a level
    assert len(quantizer.codebooks) == 1


@BOTH
def test_dead_codewords_are_revived_and_stay(config: QuantizerConfig) -> None:
    quantizer, z = random_quantizer(config), latents(4, 8, 8)
    unlinked = list(dict.fromkeys(quantizer.levels))
    for book in unlinked:
        book.set_codewords(torch.tensor([2]), torch.full((1, 5), 50.0), torch.tensor([1e-4]))
    states = []
    for seed in (7, 7, 8):
        again = ResidualQuantizer(config)
        again.load_state_dict(quantizer.state_dict())
        assert again.restart_dead_codes(z, torch.Generator().manual_seed(seed)) == len(unlinked)
        moved = [book.codewords[0, 2].clone() for book in dict.fromkeys(again.levels)]
        assert all(float(one.abs().max()) < 10 for one in moved)
        states.append(torch.stack(moved))
        assert again.restart_dead_codes(z, torch.Generator()) == 0
        again.train()(torch.zeros(1, 1, 1, 5))
        after = [book.codewords[0, 2] for book in dict.fromkeys(again.levels)]
        assert all(float((one - other).norm()) < 0.5 for one, other in zip(moved, after, strict=True))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
