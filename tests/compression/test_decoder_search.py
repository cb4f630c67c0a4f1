"""Codes chosen by the decoder: less error, a trade of error against bits, and files like any."""

import numpy as np
import pytest
import torch
from PIL import Image

import hrvqvae
from hrvqvae.compression import choice, decoder_search
from hrvqvae.compression.decoder_search import DecoderSearch
from hrvqvae.compression.levels import encode_level
from hrvqvae.config.parsing import override
from hrvqvae.models.tiles import divide_grid
from tests.compression.made import (
    ALL,
    TREE,
    choice_of,
    digits,
    random_codes,
    single_grid,
    squared_errors,
    untrained,
)
from tests.conftest import (
    approx,
    do,
    generator,
    input_error,
    on_each_device,
    parametrize,
    refused,
    same,
)
from tests.trained_run import tiny_systems


def errors(model, images, codes):
    return squared_errors(model.decode(codes, len(codes), images.shape[-2:]), images)


def bits(entropy_model, images, codes):
    rows = torch.stack(codes, 1).flatten(2).int().numpy()
    return torch.from_numpy(choice_of(entropy_model, images.shape[-2:], rows).bits)


def total(model, images, codes, lmbda):
    lost = errors(model.autoencoder, images, codes)
    return lost + lmbda * bits(model.entropy_model, images, codes)


def started(name, mnist_root):
    """Return a system with codebooks that fit digits, and its entropy model."""
    model, entropy_model = untrained(single_grid(name, mnist_root))
    model.initialize(digits(40) / 255, generator())
    return model, entropy_model


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Gradients and errors as on a machine without bfloat16, so that they are exact."""
    monkeypatch.setattr(decoder_search, "computes_bf16", lambda _: False)


@parametrize("name", ["groups", "vqvae", "rqvae"])
def test_effort_2_never_has_more_error_than_the_nearest_codewords(name, mnist_root):
    """Of groups of levels, a flat codebook, and unlinked levels; images that do not fill a grid."""
    model, entropy_model = started(name, mnist_root)
    search = DecoderSearch(model, entropy_model)
    for images in (digits(), digits(3)[:, :, 2:7]):
        nearest = model.encode(images)
        chosen = search.encode(images)
        assert [code.shape for code in chosen] == [code.shape for code in nearest]
        before, after = (errors(model, images, codes) for codes in (nearest, chosen))
        assert (after <= before + 1e-4).all()
        assert after.sum() < 0.997 * before.sum()
    empty = search.encode(digits(0))
    assert [len(code) for code in empty] == [0] * len(entropy_model.symbols)


def test_an_image_of_one_position(mnist_root):
    config = override(single_grid("hrvqvae", mnist_root), {"model.padding": "0"})
    model, entropy_model = untrained(config)
    search = DecoderSearch(model, entropy_model)
    images = digits()[..., 5:7, 5:7]
    nearest = errors(model, images, model.encode(images))
    for lmbda in (0.0, 1e-9):
        codes = search.encode(images, lmbda)
        assert {code.shape for code in codes} == {(len(images), 1, 1)}
        assert (errors(model, images, codes) <= nearest + 1e-4).all()


def test_a_leaf_is_moved_only_where_it_comes_nearer_to_its_goal(mnist_root):
    """The turn of effort 1 against the equations of docs/method.md, written out for one image."""
    model, entropy_model = started("groups", mnist_root)
    image = digits(1)
    latents = model.latents(image / 255).detach()
    nearest = model.encode(image)
    here = model.quantizer.lookup(nearest).requires_grad_()
    decoded = ((model.pixels(here, (12, 12)) + 1) / 2).clamp(0, 1)
    error = (decoded - image / 255).square().sum()
    (gradient,) = torch.autograd.grad(error, here)
    weight = 2.4 * gradient.square().sum() / (4 * error)
    weight = weight * image.numel() / here.numel()
    goal = (here + 0.7 * (latents - here) - gradient / (2 * weight)).detach()
    leaf = model.quantizer.encode(goal)
    moved = model.quantizer.lookup(leaf)
    is_nearer = (moved - goal).norm(dim=-1) < (here - goal).norm(dim=-1)
    rows, columns = np.indices(nearest[0].shape[1:])
    has_turn = torch.from_numpy((rows + columns) % 2 == 0)
    expected = [
        torch.where(is_nearer & has_turn, *codes) for codes in zip(leaf, nearest, strict=True)
    ]
    chosen = DecoderSearch(model, entropy_model).encode(image, effort=1)
    assert same(chosen, expected)
    assert not same(chosen, nearest)


def test_more_effort_means_less_error(model):
    images = digits(30)
    codes = [model.encode(images, effort=effort) for effort in (0, 1, 2)]
    by_effort = [errors(model.autoencoder, images, chosen).sum() for chosen in codes]
    assert by_effort[0] > by_effort[1] > by_effort[2]
    with input_error("the effort is 3; it must be 0, 1 or 2"):
        model.encode(images, effort=3)
    with input_error("a lambda needs effort 2; the effort is 1"):
        model.encode(images, 0.1, effort=1)


def test_error_and_bits_trade_off_and_their_sum_is_never_above_that_of_the_usual_codes(model):
    images = digits(30)
    usual = model.encode(images)
    used = []
    lost = []
    for lmbda in (0.0, 0.02, 1.0, 1e3, 1e6):
        chosen = model.encode(images, lmbda)
        before, after = (total(model, images, codes, lmbda) for codes in (usual, chosen))
        assert (after <= before * (1 + 1e-6) + 1e-3).all()
        assert after.sum() < before.sum()
        used.append(bits(model.entropy_model, images, chosen).sum())
        lost.append(errors(model.autoencoder, images, chosen).sum())
    assert used[0] > max(used[1:])
    assert lost[0] < lost[2]


def test_files_hold_these_codes_and_an_image_has_its_own(model, run):
    images = digits(5)
    files = model.compress(images, lmbda=0.05)
    assert sum(map(len, files)) < sum(map(len, model.compress(images)))
    expected = model.decode(model.encode(images, 0.05), size=(12, 12))
    assert same(model.decompress(files), expected)
    assert [model.compress(image[None], lmbda=0.05)[0] for image in images] == files
    with torch.inference_mode():  # a model that is loaded in it has gradients too
        assert hrvqvae.load(run).compress(images, lmbda=0.05) == files


@on_each_device
def test_images_have_a_lambda_each(device, model, monkeypatch):
    """In one batch, and in batches of two images and one."""
    images = digits(3)
    encoder = DecoderSearch(model.autoencoder, model.entropy_model)
    lmbdas = torch.tensor([0.01, 0.05, 1.0], device=device)
    alone = [
        torch.stack(encoder.encode(image[None], float(lmbda)))
        for image, lmbda in zip(images, lmbdas, strict=True)
    ]
    for most_images in (3, 2):
        most_positions = most_images * alone[0][0].numel()
        monkeypatch.setattr(decoder_search, "_MOST_POSITIONS", most_positions)
        codes = encoder.encode(images, lmbdas)
        assert same(codes, torch.cat(alone, 1))


def test_first_levels_are_weighed_by_what_they_decode_to_and_take(model):
    images = digits()
    levels = 2
    chosen = model.encoder(0.02, levels)(images)
    usual = model.encode(images)[:levels]
    of_all = model.encode(images, 0.02)[:levels]
    sums = [total(model, images, codes, 0.02) for codes in (usual, of_all, chosen)]
    assert len(chosen) == levels
    assert (sums[2] <= sums[0] + 1e-3).all()
    assert sums[2].sum() < sums[1].sum()
    files = model.compress(images, levels, lmbda=0.02)
    assert same(model.decompress(files), model.decode(chosen, levels, (12, 12)))


def test_the_command_writes_these_files(run, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    for number, pixels in enumerate(digits(4)):
        Image.fromarray(pixels[0].numpy()).save(images / f"{number}.png")
    command = f"compress {run} {images} --device cpu --levels 2"
    do(f"{command} -o {tmp_path}/files --lmbda 0.05")
    files = [path.read_bytes() for path in sorted((tmp_path / "files").iterdir())]
    assert files == hrvqvae.load(run).compress(digits(4), 2, lmbda=0.05)
    told = refused(f"{command} -o {tmp_path}/bad.zip --lmbda 1000001")
    assert "the lambda is 1000001.0; it must be from 0 to 1e6" in told
    assert not (tmp_path / "bad.zip").exists()


def test_models_of_several_grids_are_told(mnist_root):
    with input_error("one latent grid"):
        DecoderSearch(*untrained(tiny_systems(mnist_root)["vqvae2"]))


def test_large_images_are_searched_in_tiles_to_codes_about_as_good(model, monkeypatch):
    lmbda = 0.02
    rows = [torch.cat([*row], -1) for row in digits(30).split(6)]
    image = torch.cat(rows, -2)[None, :, :55, :70]
    encoder = DecoderSearch(model.autoencoder, model.entropy_model)
    at_once = encoder.encode(image, lmbda)
    usual = model.encode(image)
    monkeypatch.setattr(decoder_search, "_TILE_SIDE", 12)
    monkeypatch.setattr(decoder_search, "_HALO", 6)
    assert len(divide_grid(tuple(usual[0].shape[1:]), 12, 6)) == 9
    in_tiles = encoder.encode(image, lmbda)
    assert not same(in_tiles, at_once)
    least, most, tiled = (total(model, image, codes, lmbda) for codes in (at_once, usual, in_tiles))
    assert tiled < least + 0.1 * (most - least)
    from_usual = encoder.encode(image, lmbda, start=usual)
    assert total(model, image, from_usual, lmbda) < least + 0.5 * (most - least)


def test_progress_of_tiles_ends_at_its_total(model, monkeypatch):
    ends = []

    def tracked(items, title, total, size):
        ends.append((total, sum(map(size, items))))
        return items

    monkeypatch.setattr(decoder_search, "tracked", tracked)
    monkeypatch.setattr(decoder_search, "_TILE_SIDE", 4)
    DecoderSearch(model.autoencoder, model.entropy_model).encode(digits(3), effort=1)
    assert [total for total, _ in ends] == [count for _, count in ends] != []


ENTROPY_MODELS = {name: ALL[name] for name in ("tree", "flat", "half")}


class Problem:
    """Images with options for each position, and errors in 64ths, which float32 holds."""

    def __init__(self, entropy_model, width, count=2, num_options=2, seed=0, height=6):
        random = np.random.default_rng(seed)
        self.entropy_model = entropy_model
        self.size = (height, width)
        symbols = np.array(entropy_model.symbols)
        images = random_codes(entropy_model, self.size, count, seed)
        self.codes = images.reshape(count, len(symbols), -1)
        self.choice = choice_of(entropy_model, self.size, self.codes)
        self.positions = np.arange(self.codes.shape[2])
        shape = (count, len(self.positions), len(symbols), num_options)
        self.options = random.integers(0, symbols[:, None], shape, np.int32)
        errors = random.integers(-64, 64, (count, len(self.positions), num_options)) / 64
        self.errors = errors.astype(np.float32)

    def bits(self, codes):
        return choice_of(self.entropy_model, self.size, codes).bits

    def choose(self, lmbda, positions=None):
        positions = self.positions if positions is None else positions
        options = np.take(self.options, positions, 1)
        errors = np.take(self.errors, positions, 1)
        lmbdas = np.full(len(errors), lmbda, np.float32)
        self.choice.update(positions, options, errors, lmbdas)

    def error_of_changes(self, before):
        """Return the sum of the errors (N,) of the options that were taken."""
        taken = (self.options == self.codes.transpose(0, 2, 1)[..., None]).all(2)
        changed = (self.codes != before).any(1)[..., None]
        least = np.where(taken & changed, self.errors, np.inf).min(-1)
        return np.where(np.isfinite(least), least, 0).sum(1).astype(np.float64)


@parametrize("name", ENTROPY_MODELS)
def test_bits_are_those_that_a_file_takes(name):
    entropy_model = ENTROPY_MODELS[name]
    size = (40, 50)
    codes = random_codes(entropy_model, size, 5)
    layout = entropy_model.layout(size)
    networks = [(level, network) for level, network in enumerate(entropy_model.networks) if network]
    lengths = [[len(stream) for stream in encode_level(codes, layout, *pair)] for pair in networks]
    by_level = codes.reshape(5, len(entropy_model.symbols), -1)
    excess = 8 * np.sum(lengths, 0) - choice_of(entropy_model, size, by_level).bits
    assert (excess > -0.1).all()
    assert (excess < 12 * len(networks)).all()


@parametrize("name", ENTROPY_MODELS)
def test_each_position_takes_the_option_of_the_least_sum(name, monkeypatch):
    """The plain descent computes the bits of the whole image for every option; twice, since the
    state is kept.
    """
    monkeypatch.setattr(choice, "_MARGINS", (1e6, 1e6))
    problem = Problem(ENTROPY_MODELS[name], 5 if name == "half" else 8, count=1, seed=3)
    lmbda = 0.02
    start = problem.codes.copy()
    expected = start
    for _ in range(2):
        for position in problem.positions:
            tried = np.repeat(expected, 3, 0)
            tried[1:, :, position] = problem.options[0, position].T
            changes = np.array([0, *problem.errors[0, position]])
            best = (changes + lmbda * problem.bits(tried)).argmin()
            expected = tried[best : best + 1]
        problem.choose(lmbda)
        assert np.array_equal(problem.codes, expected)
        assert problem.choice.bits == approx(problem.bits(expected), rel=1e-5)
    assert (expected != start).any()


@parametrize("name", ENTROPY_MODELS)
def test_the_sum_never_grows_and_margins_lose_little(name, monkeypatch):
    lmbda = 0.05
    gains = []
    for margins in (choice._MARGINS, (1e6, 1e6)):
        monkeypatch.setattr(choice, "_MARGINS", margins)
        problem = Problem(ENTROPY_MODELS[name], 30, count=10, num_options=5)
        before = problem.codes.copy()
        bits_before = problem.choice.bits
        problem.choose(lmbda)
        saved = lmbda * (bits_before - problem.choice.bits) - problem.error_of_changes(before)
        assert (saved >= -1e-3).all()
        gains.append(saved.sum())
    assert gains[0] > 0.95 * gains[1]


def test_other_positions_keep_their_codes():
    problem = Problem(TREE, 11)
    before = problem.codes.copy()
    chosen = problem.positions[1::3]
    problem.choose(0.01, chosen)
    changed = (problem.codes != before).any((0, 1))
    assert changed[chosen].any()
    assert not np.delete(changed, chosen).any()


def test_threads_do_not_change_the_choice(monkeypatch):
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        problem = Problem(TREE, 8, count=1, height=208)
        assert TREE.layout(problem.size).grids[0, 0] > 3 * choice._STRIP_ROWS
        problem.choose(0.02, problem.positions[::3])
        problem.choose(0.02)
        results.append((problem.codes.tolist(), problem.choice.bits.tolist()))
    assert results[0] == results[1]
