"""Codes that weigh error against bits: against a plain descent, never worse than the usual ones,
and read like any.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import hrvqvae
from hrvqvae.compression import choice, rate_distortion
from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.images import flat_codes
from hrvqvae.compression.levels import encode_level
from hrvqvae.compression.rate_distortion import RateDistortion
from hrvqvae.compression.zips import read_zip
from hrvqvae.config.parsing import override
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from tests.compression.made import (
    ALL,
    TREE,
    bits_of,
    digits,
    random_codes,
    single_grid,
    squared_errors,
    untrained,
)
from tests.conftest import do, on_each_device, refused
from tests.trained_run import tiny_systems


def errors(model: Autoencoder, images: Tensor, codes: Codes) -> Tensor:
    return squared_errors(
        model.decode(codes, len(codes), (images.shape[-2], images.shape[-1])), images
    )


def bits(entropy_model: EntropyModel, images: Tensor, codes: Codes) -> Tensor:
    size = (images.shape[-2], images.shape[-1])
    return torch.from_numpy(bits_of(entropy_model, size, flat_codes(codes), len(codes)))


def total(model: hrvqvae.Model, images: Tensor, codes: Codes, lmbda: float) -> Tensor:
    return errors(model.autoencoder, images, codes) + lmbda * bits(
        model.entropy_model, images, codes
    )


@pytest.mark.parametrize("name", ["groups", "vqvae"])
def test_lambda_0_never_has_more_error_than_the_usual_codes(name: str, mnist_root: Path) -> None:
    """Of untrained models with one grid, whose quantizers know no leaves by themselves; images that
    do not fill it.
    """
    model, entropy_model = untrained(single_grid(name, mnist_root))
    model.initialize(digits(40) / 255, torch.Generator().manual_seed(0))
    for images in (digits(), digits(3)[:, :, 2:7]):
        found = RateDistortion(model, entropy_model).encode(images, 0.0)[0]
        usual = model.encode(images)
        assert [code.shape for code in found] == [code.shape for code in usual]
        before = errors(model, images, usual)
        after = errors(model, images, found)
        assert (after <= before + 1e-5).all()
        assert after.sum() < 0.997 * before.sum()
    nothing = RateDistortion(model, entropy_model).encode(digits(1)[:0], 0.0)[0]
    assert [len(code) for code in nothing] == [0] * len(entropy_model.symbols)


def test_error_and_bits_trade_off_and_their_sum_is_never_above_that_of_the_usual_codes(
    run: Path,
) -> None:
    model = hrvqvae.load(run)
    images = digits(30)
    usual = model.encode(images)
    used = list[float]()
    lost = list[float]()
    for lmbda in (0.0, 0.02, 1.0, 1e3, 1e6):
        found = model.encode(images, lmbda)
        before, after = (total(model, images, codes, lmbda) for codes in (usual, found))
        assert (after <= before * (1 + 1e-6) + 1e-3).all()
        assert after.sum() < before.sum()
        used.append(float(bits(model.entropy_model, images, found).sum()))
        lost.append(float(errors(model.autoencoder, images, found).sum()))
    assert used[0] > max(used[1:])
    assert lost[0] < lost[2]


def test_files_hold_these_codes_and_an_image_has_its_own(run: Path) -> None:
    model = hrvqvae.load(run)
    images = digits(5)
    files = model.compress(images, lmbda=0.05)
    assert sum(map(len, files)) < sum(map(len, model.compress(images)))
    expected = model.decode(model.encode(images, 0.05), size=(12, 12))
    assert torch.equal(torch.stack(model.decompress(files)), expected)
    assert [model.compress(one[None], lmbda=0.05)[0] for one in images] == files
    with torch.inference_mode():  # a model that is loaded in it has gradients too
        assert hrvqvae.load(run).compress(images, lmbda=0.05) == files


@on_each_device
def test_images_have_a_lambda_each(device: str, run: Path) -> None:
    model = hrvqvae.load(run)
    images = digits(3)
    encoder = RateDistortion(model.autoencoder, model.entropy_model)
    codes, squares = encoder.encode(images, torch.tensor([0.0, 0.05, 1.0], device=device))
    for number, lmbda in enumerate((0.0, 0.05, 1.0)):
        alone = encoder.encode(images[number : number + 1], lmbda)[0]
        assert all(
            torch.equal(one[number], other[0]) for one, other in zip(codes, alone, strict=True)
        )
    torch.testing.assert_close(
        squares.float(), errors(model.autoencoder, images, codes), rtol=1e-4, atol=1e-4
    )


def test_first_levels_are_weighed_by_what_they_decode_to_and_take(run: Path) -> None:
    model = hrvqvae.load(run)
    images = digits()
    levels = 2
    found = model.encoder(0.02, levels)(images)
    usual = model.encode(images)[:levels]
    of_all = model.encode(images, 0.02)[:levels]
    sums = [total(model, images, codes, 0.02) for codes in (usual, of_all, found)]
    assert len(found) == levels
    assert (sums[2] <= sums[0] + 1e-3).all()
    assert sums[2].sum() < sums[1].sum()
    files = model.compress(images, levels, lmbda=0.02)
    assert torch.equal(torch.stack(model.decompress(files)), model.decode(found, levels, (12, 12)))


def test_chunks_change_next_to_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hrvqvae.load(run)
    images = digits(4).repeat(1, 1, 3, 3)
    usual = total(model, images, model.encode(images, 0.02), 0.02)
    monkeypatch.setattr(rate_distortion, "_MOST_NUMBERS", 4000)
    monkeypatch.setattr(rate_distortion, "_MOST_POSITIONS", 400)
    found = total(model, images, model.encode(images, 0.02), 0.02)
    torch.testing.assert_close(found, usual, rtol=0.01, atol=0)
    assert found.sum() < 1.001 * usual.sum()


def test_the_command_writes_files_and_zips_of_the_same_images(run: Path, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for number, pixels in enumerate(digits(4)):
        Image.fromarray(pixels[0].numpy()).save(images / f"{number}.png")
    options = ["--lmbda", "0.05", "--device", "cpu", "--levels", "2"]
    for out in ("files", "all.zip"):
        do("compress", run, images, "-o", tmp_path / out, *options)
    files = [path.read_bytes() for path in sorted((tmp_path / "files").iterdir())]
    assert files == hrvqvae.load(run).compress(digits(4), 2, lmbda=0.05)
    assert [content for _, content in read_zip(tmp_path / "all.zip")] == files
    bad = ["compress", run, images, "-o", tmp_path / "bad.zip", "--lmbda", 1000001]
    assert "the lambda is 1000001.0; it must be from 0 to 1e6" in refused(bad)
    assert not (tmp_path / "bad.zip").exists()


def test_models_that_take_no_lambda_are_told(
    mnist_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="one latent grid"):
        RateDistortion(*untrained(tiny_systems(mnist_root)["vqvae2"]))
    monkeypatch.setattr(rate_distortion, "_MOST_LEAVES", 26)
    with pytest.raises(InputError, match="up to 26 leaves; this one has 27"):
        RateDistortion(*untrained(tiny_systems(mnist_root)["hrvqvae"]))


@pytest.mark.parametrize(("padding", "levels"), [(0, 3), (3, 1)])
def test_gradient_and_curvature(
    mnist_root: Path, monkeypatch: pytest.MonkeyPatch, padding: int, levels: int
) -> None:
    """Images that do not fill their grid. Random projections come near to the mean of J^T J."""
    model, entropy_model = untrained(
        override(tiny_systems(mnist_root)["hrvqvae"], {"model.padding": str(padding)})
    )
    assert isinstance(model, SingleGridAutoencoder)
    random = torch.Generator().manual_seed(1)
    unit = torch.rand(1, 1, 17, 25, generator=random)
    (grid,) = set(model.config.geometry.grids(17, 25))
    vectors = torch.randn(1, *grid, model.quantizer.config.dim, generator=random)
    encoder = RateDistortion(model, entropy_model, levels)

    def decoded(at: Tensor) -> Tensor:
        return (model.pixels(at, (17, 25)) + 1) / 2

    slope = torch.autograd.functional.jacobian(
        lambda at: (decoded(at).clamp(0, 1) - unit).square().sum(), vectors
    )
    jacobian = torch.autograd.functional.jacobian(decoded, vectors)
    rows = jacobian.reshape(unit.numel(), grid[0] * grid[1], model.quantizer.config.dim)
    mean = torch.einsum("opd,ope->de", rows, rows) / rows.shape[1]
    monkeypatch.setattr(rate_distortion, "_PROJECTIONS", 100)
    monkeypatch.setattr(rate_distortion, "computes_bf16", lambda _: False)
    torch.testing.assert_close(encoder.compute_gradient(vectors, unit), slope)
    assert (encoder.compute_curvature(vectors, unit)[0] - mean).norm() < 0.2 * mean.norm()


def test_large_images_are_searched_in_tiles_to_codes_about_as_good(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And to what they decode to, of which the errors are told."""
    model = hrvqvae.load(run)
    lmbda = 0.02
    image = torch.cat([torch.cat(list(row), -1) for row in digits(30).split(6)], -2)[
        None, :, :55, :70
    ]
    encoder = RateDistortion(model.autoencoder, model.entropy_model)
    whole = encoder.encode(image, lmbda)[0]
    usual = model.encode(image)
    monkeypatch.setattr(rate_distortion, "_TILE_SIDE", 12)
    monkeypatch.setattr(rate_distortion, "_HALO", 6)
    assert len(divide_grid(tuple(usual[0].shape[1:]), 12, 6)) == 9
    found, squares = encoder.encode(image, lmbda)
    assert not all(torch.equal(*one) for one in zip(found, whole, strict=True))
    least, most, tiled = (
        float(total(model, image, codes, lmbda)) for codes in (whole, usual, found)
    )
    assert tiled < least + 0.1 * (most - least)
    assert float(squares) == pytest.approx(float(errors(model.autoencoder, image, found)), rel=0.02)


ENTROPY_MODELS = {name: ALL[name] for name in ("tree", "flat", "half")}
HEIGHT = 6  # of the images in pixels; the width is another


class Problem:
    """Images with candidates, of which the first is what they have, and errors in 64ths, which
    float32 holds.
    """

    def __init__(
        self,
        entropy_model: EntropyModel,
        width: int,
        count: int = 2,
        candidates: int = 3,
        seed: int = 0,
        height: int = HEIGHT,
    ) -> None:
        random = np.random.default_rng(seed)
        self.entropy_model = entropy_model
        self.size = (height, width)
        layout = entropy_model.layout(self.size)
        images = random_codes(entropy_model, self.size, count, seed)
        positions = int(layout.begins[1])
        levels = len(entropy_model.symbols)
        shape = (count, positions, candidates, levels)
        self.candidates = random.integers(0, entropy_model.symbols, shape).astype(np.int32)
        self.candidates[:, :, 0] = images.reshape(count, levels, positions).transpose(0, 2, 1)
        self.errors = (random.integers(0, 64, (count, positions, candidates)) / 64).astype(
            np.float32
        )
        self.grid = (int(layout.grids[0, 0]), int(layout.grids[0, 1]))
        self.places: NDArray[np.int64] = np.arange(positions)
        networks = [entropy_model.network(level) for level in range(levels)]
        numbers = np.arange(count * positions * candidates, dtype=np.int32).reshape(
            count, positions, candidates
        )
        self.choice = Choice(layout, networks, self.candidates.reshape(-1, levels), numbers)
        assert np.array_equal(self.choice.codes, images)

    def choose(self, lmbda: float, places: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        places = self.places if places is None else places
        lmbdas = np.full(len(self.errors), lmbda, np.float32)
        self.choice.update(places, np.ascontiguousarray(self.errors[:, places]), lmbdas)
        return self.choice.bits

    def errors_of_chosen(self) -> NDArray[np.float64]:
        return (
            np.take_along_axis(self.errors, self.choice.chosen[:, :, None], 2)
            .sum((1, 2))
            .astype(np.float64)
        )


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_bits_are_those_that_a_file_takes(name: str) -> None:
    entropy_model = ENTROPY_MODELS[name]
    size = (40, 50)
    codes = random_codes(entropy_model, size, 5)
    levels = len(entropy_model.symbols)
    layout = entropy_model.layout(size)
    networks = [(level, network) for level, network in enumerate(entropy_model.networks) if network]
    lengths = [[len(stream) for stream in encode_level(codes, layout, *pair)] for pair in networks]
    excess = 8 * np.sum(lengths, 0) - bits_of(entropy_model, size, codes, levels)
    assert (excess > -0.1).all()
    assert (excess < 12 * len(networks)).all()


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_each_position_takes_the_candidate_of_the_least_sum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain descent computes the bits of the whole image for every candidate. Twice, since rows
    are kept.
    """
    monkeypatch.setattr(choice, "_MARGINS", (1e6, 1e6))
    problem = Problem(ENTROPY_MODELS[name], 5 if name == "half" else 8, count=1, seed=3)
    lmbda = 0.02
    candidates = problem.candidates[0]
    errors = problem.errors[0]
    (count, levels), chosen = candidates.shape[1:], np.zeros(len(candidates), np.int32)
    codes = problem.choice.codes.reshape(1, levels, -1).copy()
    for _ in range(2):
        for place in problem.places.tolist():
            each = np.repeat(codes, count, 0)
            each[:, :, place] = candidates[place]
            bits = bits_of(problem.entropy_model, problem.size, each.reshape(count, -1), levels)
            chosen[place] = (errors[place] + lmbda * bits).argmin()
            codes[0, :, place] = candidates[place, chosen[place]]
        found = problem.choose(lmbda)
        assert np.array_equal(problem.choice.chosen[0], chosen)
        assert np.array_equal(problem.choice.codes, codes.reshape(1, -1))
        bits = bits_of(problem.entropy_model, problem.size, codes.reshape(1, -1), levels)
        assert found == pytest.approx(bits, rel=1e-5)
    assert chosen.any(), "nothing was better than what there was"


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_the_sum_never_grows_and_a_larger_lambda_means_fewer_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for lmbda in (0.0, 0.05, 1.0):
        problem = Problem(ENTROPY_MODELS[name], 30, count=10, candidates=5)
        sums = problem.errors_of_chosen() + lmbda * problem.choice.bits
        for _ in range(3):
            bits = problem.choose(lmbda)
            now = problem.errors_of_chosen() + lmbda * bits
            assert (now <= sums + 1e-3).all()
            sums = now
        used.append(float(bits.sum()))
        if not lmbda:
            assert np.array_equal(problem.choice.chosen, problem.errors.argmin(-1))
        with monkeypatch.context() as patched:
            patched.setattr(choice, "_MARGINS", (1e6, 1e6))
            every = Problem(ENTROPY_MODELS[name], 30, count=10, candidates=5)
            for _ in range(3):
                bits = every.choose(lmbda)
            assert sums.sum() < 1.005 * (every.errors_of_chosen() + lmbda * bits).sum()
    assert used[0] > used[1] > used[2]


@pytest.mark.parametrize("entropy_model", [TREE, TREE.bare], ids=["tables", "bare"])
def test_other_positions_keep_what_they_have(entropy_model: EntropyModel) -> None:
    problem = Problem(entropy_model, 11)
    before = problem.choice.codes.copy()
    some = problem.places[1::3]
    problem.choose(0.01, some)
    others = np.setdiff1d(problem.places, some)
    assert not problem.choice.chosen[:, others].any()
    assert problem.choice.chosen[:, some].any()
    assert entropy_model.networks or np.array_equal(
        problem.choice.chosen[:, some], problem.errors.argmin(-1)[:, some]
    )
    levels = problem.choice.codes.reshape(len(before), -1, len(problem.places))
    assert np.array_equal(levels[:, :, others], before.reshape(levels.shape)[:, :, others])
    taken = np.take_along_axis(problem.candidates, problem.choice.chosen[:, :, None, None], 2)[
        :, :, 0
    ]
    assert np.array_equal(levels.transpose(0, 2, 1), taken)


def test_threads_do_not_change_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        problem = Problem(TREE, 8, count=1, height=208)
        assert problem.grid[0] > 3 * choice._STRIP_ROWS
        problem.choose(0.02, problem.places[::3])
        bits = problem.choose(0.02)
        found.append((problem.choice.codes.tolist(), bits.tolist()))
    assert found[0] == found[1]
