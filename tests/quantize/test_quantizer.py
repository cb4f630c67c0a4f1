"""The quantizer in every form, from one flat codebook to a tree: codes, losses, averages, starts,
restarts.
"""

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from benchmarks.common import fields
from hrvqvae.config import QuantizerConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.codebook import LevelCodebooks, update_codebooks
from hrvqvae.quantize.search.tensors import search_tensors
from tests.conftest import (
    approx,
    cells_of,
    generator,
    input_error,
    needs_gpu,
    normal,
    parametrize,
    same,
)
from tests.quantize import oracle

DIM = 5
FAR = 50.0
FLAT = QuantizerConfig(codewords=7, dim=DIM, beta=0.4, decay=0.9)
TREE = replace(FLAT, levels=3, codewords=4)
VARIANTS = {
    "flat": FLAT,
    "unlinked": replace(TREE, linked=1, level_beta=0.5),
    "sizes": replace(TREE, levels=4, level_codewords=(5, 2, 3, 4), linked=3, joint_beam=True),
    # the last is shorter
    "groups": replace(FLAT, levels=5, codewords=3, linked=2, level_beta=0.3),
    "linked": TREE,
}
every_variant = parametrize("config", VARIANTS.values(), ids=VARIANTS)
TREE_WITH_BEAM = replace(TREE, beam=4, coarse_weight=0.1)


def random_quantizer(config, **changes):
    quantizer = ResidualQuantizer(replace(config, **changes))
    random = generator()
    for level, book in enumerate(quantizer.levels):
        shape = book.codewords.flatten(0, 1).shape
        vectors = torch.randn(shape, generator=random) * 0.6**level
        counts = torch.rand(len(vectors), generator=random) + 1
        book.set_codewords(vectors, counts)
    return quantizer


def started(config, z, **changes):
    quantizer = ResidualQuantizer(replace(config, **changes))
    quantizer.initialize(z, generator())
    return quantizer


def latents(*shape, seed=1, dim=DIM):
    return normal(*shape, dim, seed=seed)


def paths_of(quantizer, z):
    return [path.flatten() for path in quantizer.codeword_indices(quantizer.encode(z))]


def starve(book, paths):
    """Move codewords to where nothing is, with small counts."""
    count = len(paths)
    far = torch.full((count, book.codewords.shape[-1]), FAR)
    book.set_codewords(far, torch.full((count,), 1e-4), paths)


def assert_means(book):
    """Check that codewords are the means that their sums and counts give."""
    assert_close(book.total, book.codewords * book.count.unsqueeze(-1))


def books_of(quantizer):
    return [book.codewords.detach().numpy().copy() for book in quantizer.levels]


def flat(tensor):
    return tensor.reshape(-1, tensor.shape[-1]).detach().numpy().astype(np.float64)


@every_variant
def test_codes_under_autocast_give_what_training_decodes(config):
    beam = 4 if config.joint_beam else 1
    quantizer = random_quantizer(config, beam=beam)
    z = latents(2, 3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.train().encode(z)
        result = quantizer.eval()(z)
        decoded = quantizer.lookup(codes)
    assert same(codes, result.codes)
    assert decoded.dtype == result.latents.dtype == torch.float32
    assert_close(decoded, result.latents, rtol=1e-4, atol=1e-4)
    assert same(result.latents, quantizer(z.float()).latents)


@every_variant
def test_codes_paths_and_prefixes_agree_with_the_oracle(config):
    quantizer = random_quantizer(config).eval()
    z = latents(2, 5, 6)
    codes = quantizer.encode(z)
    paths = torch.stack(quantizer.codeword_indices(codes), -1)
    books = books_of(quantizer)
    searched = [oracle.search(vector, books, config.group_size) for vector in flat(z)]
    assert paths.flatten(0, -2).tolist() == [indices for indices, _ in searched]
    assert same(torch.stack(codes, -1), paths % torch.tensor(config.sizes))
    for levels in range(1, config.levels + 1):
        expected = np.stack([residuals[0] - residuals[levels] for _, residuals in searched])
        assert_allclose(flat(quantizer.lookup(codes[:levels])), expected, atol=1e-5)
    assert_allclose(flat(quantizer(z).latents), expected, atol=1e-5)


@every_variant
def test_losses_and_gradients_agree_with_the_oracle(config):
    quantizer = random_quantizer(config).eval()
    z = latents(2, 3, 4).requires_grad_()
    losses = quantizer(z).losses
    expected, of_vectors = oracle.losses(
        flat(z), books_of(quantizer), config.group_size, config.beta, config.beta_of_levels
    )
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    assert values == approx(expected, rel=1e-5)
    sum(losses.values()).backward()
    assert_allclose(flat(z.grad), of_vectors, atol=1e-4)


@parametrize("config", [*VARIANTS.values(), TREE_WITH_BEAM], ids=[*VARIANTS, "beam"])
def test_moving_averages_agree_with_the_oracle(config):
    quantizer = random_quantizer(config)
    z = latents(2, 5, 6)
    chosen = torch.stack(paths_of(quantizer, z), 1)
    counts, totals = oracle.batch_sums(flat(z), books_of(quantizer), chosen)
    before = [(book.count.numpy().copy(), book.total.numpy().copy()) for book in quantizer.levels]
    quantizer.train()(z)
    for level, book in enumerate(quantizer.levels):
        count = 0.9 * before[level][0] + 0.1 * counts[level]
        total = 0.9 * before[level][1] + 0.1 * totals[level]
        assert_allclose(book.count.numpy(), count, rtol=1e-5)
        assert_allclose(book.total.numpy(), total, rtol=1e-4, atol=1e-5)
        means = total / count[..., None]
        assert_allclose(book.codewords.numpy(), means, rtol=1e-4, atol=1e-5)


@parametrize("bad", [torch.inf, torch.nan])
def test_a_vector_that_overflowed_moves_no_codeword(bad):
    """As on a GPU, where no vector is checked; nor does it in a batch after it."""
    book = LevelCodebooks(QuantizerConfig(dim=2, decay=0.5), 1, 3)
    book.set_codewords(torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.ones(3))

    def update(vectors, index):
        update_codebooks([book], [torch.tensor(vectors)], [torch.tensor(index)])

    update([[bad, 0], [1, 1], [4, 4], [5, 5]], [0, 0, 1, 1])
    assert_close(book.codewords[0, 1], torch.tensor([(2 + 9) / 3] * 2))
    assert book.count.tolist() == [[1, 1.5, 0.5]]
    for _ in range(3):
        assert book.codewords[0, 0].tolist() == [1, 1]
        update([[1.0, 1]], [0])


def test_latents_of_another_dimension_are_refused():
    quantizer = random_quantizer(TREE)
    for quantize in (quantizer, quantizer.encode):
        with input_error(f"latents have 64 channels; the codebooks have {DIM}"):
            quantize(torch.zeros(4, DIM, 64, 64))


@needs_gpu
@every_variant
def test_nan_reaches_the_loss_on_a_gpu(config):
    quantizer = random_quantizer(config).cuda().eval()
    losses = quantizer(torch.full((1, 2, 2, DIM), torch.nan).cuda()).losses
    assert torch.stack([*losses.values()]).isnan().any()


def test_configurations_that_are_refused():
    preset = presets.get("hrvqvae/mnist").config
    for line, message in cells_of(r"""
        levels=0 | levels
        codewords=1 | codewords
        coarse_weight=.nan | coarse_weight
        level_beta=-0.1 | level_beta is .*at least 0
        level_codewords=[2,3] | level_codewords is .*none or 3 values
        levels=16 | codewords \*\* levels .*2\^30
        levels=256 | levels is .*256
    """):
        with input_error(f"^model.quantizer.{message}"):
            override(preset, fields("model.quantizer", line))


@every_variant
def test_every_level_starts_with_the_means_of_what_is_left(config):
    """Four batches start it, so a codeword's count is a quarter of its vectors; distortion falls
    with every level.
    """
    quantizer = ResidualQuantizer(config)
    z = latents(1024)
    quantizer.initialize(z, generator(), 0.25)
    indices, _, residuals = quantizer.descend(z)
    errors = [residual.square().sum() for residual in residuals[1:]]
    assert errors == sorted(errors, reverse=True)
    for book, path in zip(quantizer.levels, indices, strict=True):
        expected = torch.bincount(path, minlength=book.num_codewords) / 4
        assert_close(book.count.flatten(), expected)
        assert_means(book)


@parametrize("beam", [1, 4])
@parametrize("linked", [0, 2])
def test_every_level_starts_from_what_the_search_left(beam, linked, monkeypatch):
    """The search of the levels that have begun: a beam may change its mind about the coarser levels
    of a group.
    """
    z = latents(600)
    seen = []
    start = LevelCodebooks.initialize

    def watched(book, residual, parent, *rest):
        seen.append((residual, parent))
        start(book, residual, parent, *rest)

    monkeypatch.setattr(LevelCodebooks, "initialize", watched)
    quantizer = started(TREE, z, levels=4, linked=linked, beam=beam, coarse_weight=0.1)
    assert same(seen[0][0], z)
    for levels in (1, 2, 3):
        begun = ResidualQuantizer(replace(quantizer.config, levels=levels))
        for book, coarser in zip(begun.levels, quantizer.levels, strict=False):
            book.codewords = coarser.codewords
        residual, parent = seen[levels]
        codes = begun.encode(z)
        assert_close(residual, z - begun.lookup(codes))
        is_linked = quantizer.levels[levels].num_books > 1
        assert same(parent, begun.codeword_indices(codes)[-1] * is_linked)


@every_variant
def test_dead_codewords_move_to_data_and_stay(config):
    """Those of codebooks that get data; which vectors they move to depends on the seed alone."""
    z = latents(4, 8, 8)
    places = []
    for seed in (7, 7, 8):
        quantizer = random_quantizer(config)
        for book in quantizer.levels:
            starve(book, torch.arange(1, book.num_books + 1) * book.size - 1)
        paths = paths_of(quantizer, z)
        quantizer.restart_dead_codes(z, generator(seed))
        for book, path in zip(quantizer.levels, paths, strict=True):
            is_far = (book.codewords[:, -1] == FAR).all(-1)
            visited = torch.bincount(path // book.size, minlength=book.num_books) > 0
            assert same(is_far, ~visited)
        last = quantizer.levels[0].codewords.detach()[0, -1]
        places.append(last.clone())
        quantizer.train()(torch.zeros(1, 1, 1, DIM))
        assert (last - places[-1]).norm() < 0.5
    assert (z == places[0]).all(-1).any()
    assert same(places[0], places[1])
    assert not same(places[0], places[2])


def with_a_dead_subtree(root=0, **fields):
    """A tree that fits its latents, but for codeword 2 of level `root`: it, and all below it, lies
    where nothing is.
    """
    z = latents(2048, dim=2)
    quantizer = started(TREE, z, dim=2, **fields)
    for finer, book in enumerate(quantizer.levels[root : root + quantizer.config.group_size]):
        starve(book, torch.arange(2 * 4**finer, 3 * 4**finer))
    return quantizer, z


@parametrize("fields", [{}, {"levels": 4, "linked": 2}])
def test_a_subtree_is_copied_with_its_counts_in_proportion(fields):
    """In groups of levels: within the group of the codeword that was restarted, here the second."""
    root = 2 if "linked" in fields else 0
    quantizer, z = with_a_dead_subtree(root, **fields)
    first, *finer_books = quantizer.levels[root : root + quantizer.config.group_size]
    indices, _, residuals = quantizer.descend(z)
    coarser = [book.codewords.clone() for book in quantizer.levels[:root]]
    mean = float(first.count.mean())
    quantizer.restart_dead_codes(z, generator(3))
    assert same(coarser, [book.codewords for book in quantizer.levels[:root]])
    nearest = (residuals[root] - first.codewords[0, 2]).abs().sum(-1).argmin()
    source = int(indices[root][nearest])
    assert source != 2
    weight = first.count[0, 2] / first.count[0, source]
    assert float(first.count[0, 2]) == approx(mean)
    for finer, book in enumerate(finer_books):
        copies = book.codewords.view(4, 4**finer, 4, 2)
        assert same(copies[2], copies[source])
        counts = book.count.view(4, 4**finer, 4)
        assert_close(counts[2], counts[source] * weight)
        assert_means(book)


def test_vectors_of_dead_codewords_are_not_drawn():
    """A codeword that is moved would leave its vectors, or be moved to where it is, with the
    subtree that it had. A codebook without any count is left alone.
    """
    quantizer, z = with_a_dead_subtree()
    z[::2] = FAR + 1  # half of the vectors, and the dead codeword's only ones
    for seed in range(20):
        twin = copy.deepcopy(quantizer)
        twin.restart_dead_codes(z, generator(seed))
        assert twin.levels[0].codewords[0, 2].abs().max() < 10
    first = quantizer.levels[0]
    first.count.zero_()
    quantizer.restart_dead_codes(z, generator())
    assert first.codewords[0, 2].min() == FAR


def test_as_many_are_restarted_as_there_are_vectors():
    quantizer = started(QuantizerConfig(codewords=8, dim=2), latents(100, dim=2))
    (book,) = quantizer.levels
    starve(book, torch.arange(1, 8))
    vectors = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    quantizer.search = search_tensors  # as on a GPU, where no vector is checked
    with_nan = torch.cat([vectors, vectors * torch.tensor([torch.nan, 1])])
    assert quantizer.restart_dead_codes(with_nan, generator()) == 3
    assert book.codewords.isfinite().all()
    assert (torch.cdist(vectors, book.codewords[0]).amin(1) == 0).all()
