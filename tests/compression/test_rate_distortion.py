"""Codes that weigh error against bits: never worse than the usual ones by what they minimize, and read like any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.compression import rate_distortion, sensitivity
from hrvqvae.compression.choice import Choice, Models
from hrvqvae.compression.entropy_model import EntropyModel, geometry_of
from hrvqvae.compression.images import flat_codes
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.rate_distortion import RateDistortion
from hrvqvae.data.images import read_image
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from tests.cli.helpers import refused
from tests.conftest import drawn_digits
from tests.devices import on_each_device
from tests.tiny_systems import tiny_systems
from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture
def run(mnist_root: Path) -> Path:
    """A trained run with tables."""
    return tiny_run_with_entropy_model(mnist_root)


def digits(count: int = 12) -> Tensor:
    """(count, 1, 12, 12) uint8."""
    return torch.from_numpy(drawn_digits(count, 5, 12)[0]).unsqueeze(1)


def errors(model: Autoencoder, images: Tensor, codes: Codes) -> Tensor:
    """The squared error of each image, in [0, 1], decoded from the levels that there are codes of."""
    decoded = model.decode(codes, levels=len(codes), size=(images.shape[-2], images.shape[-1]))
    return (decoded - images / 255).square().flatten(1).sum(1)


def bits(codec: EntropyModel, size: tuple[int, int], codes: Codes) -> Tensor:
    """Of each image, by the models of the codec."""
    whole = codec.layout(size)
    layout = Layout.of([tuple(grid) for grid in whole.grids[: len(codes)].tolist()], codec.symbols[: len(codes)])
    models = Models.of(layout, [codec.network(level, True) for level in range(len(codes))])
    leaves = torch.stack([code.flatten(1) for code in codes], -1).int().numpy()  # those of each position
    numbers = np.arange(leaves[..., 0].size, dtype=np.int32).reshape(*leaves.shape[:2], 1)
    choice = Choice(models, leaves.reshape(-1, len(codes)), numbers)
    assert np.array_equal(choice.codes, flat_codes(codes))
    return torch.from_numpy(choice.bits)


@pytest.mark.parametrize("name", ["hrvqvae", "vqvae", "rqvae", "fsq", "vqgan"])
def test_without_weight_the_error_is_never_above_the_usual_one(name: str, mnist_root: Path) -> None:
    """Of untrained models with one grid, whose quantizers know no leaves by themselves; images that do not fill it."""
    config = tiny_systems(mnist_root)[name]
    torch.manual_seed(0)
    model = build(config).eval().requires_grad_(False)
    model.initialize(digits(40) / 255, torch.Generator().manual_seed(0))
    codec = EntropyModel(name, "ab" * 16, geometry_of(config.model.latent_grids), config.model.num_symbols)
    for images in (digits(), digits(3)[:, :, 2:7]):
        found = RateDistortion.of(model, codec).encode(images, 0.0)
        usual = model.encode(images)
        assert [code.shape for code in found] == [code.shape for code in usual]
        before, after = errors(model, images, usual), errors(model, images, found)
        assert (after <= before + 1e-5).all()
        assert after.sum() < 0.997 * before.sum()
    nothing = digits(1)[:0]
    if name != "fsq":  # whose library takes no empty batch
        assert [len(code) for code in RateDistortion.of(model, codec).encode(nothing, 0.0)] == [0] * len(codec.symbols)


def test_the_sum_is_never_above_that_of_the_usual_codes(run: Path) -> None:
    model, images = hrvqvae.load(run), digits(30)
    usual = model.encode(images)
    used, lost = [], []
    for weight in (0.0, 0.02, 1.0):
        found = model.encode(images, weight)
        sums = [
            errors(model.autoencoder, images, codes) + weight * bits(model.codec, (12, 12), codes)
            for codes in (usual, found)
        ]
        assert (sums[1] <= sums[0] + 1e-3).all()
        assert sums[1].sum() < sums[0].sum()
        used.append(float(bits(model.codec, (12, 12), found).sum()))
        lost.append(float(errors(model.autoencoder, images, found).sum()))
    assert used[0] > used[1] > used[2]
    assert lost[0] < lost[2]


def test_files_hold_these_codes_and_are_read_as_any(run: Path) -> None:
    model, images = hrvqvae.load(run), digits(5)
    usual, files = model.compress(images), model.compress(images, lmbda=0.05)
    assert model.compress(images, lmbda=None) == usual
    assert sum(map(len, files)) < sum(map(len, usual))
    expected = model.decode(model.encode(images, 0.05), size=(12, 12))
    assert torch.equal(torch.stack(model.decompress(files)), expected)
    assert [model.compress(one[None], lmbda=0.05)[0] for one in images] == files, "an image has its own codes"


@pytest.mark.parametrize("levels", [1, 2])
def test_first_levels_are_weighed_by_what_they_decode_to_and_take(run: Path, levels: int) -> None:
    model, images = hrvqvae.load(run), digits(20)
    usual = model.encode(images)[:levels]
    of_all = model.encode(images, 0.02)[:levels]
    found = model.encoder(0.02, levels)(images)
    assert len(found) == levels
    sums = [
        errors(model.autoencoder, images, codes) + 0.02 * bits(model.codec, (12, 12), codes)
        for codes in (usual, of_all, found)
    ]
    assert (sums[2] <= sums[0] + 1e-3).all()
    assert sums[2].sum() < sums[1].sum()
    files = model.compress(images, levels, lmbda=0.02)
    assert torch.equal(torch.stack(model.decompress(files)), model.decode(found, levels, (12, 12)))
    with pytest.raises(InputError, match="levels is 4; this model decodes 1, 2, 3"):
        model.compress(images, levels=4, lmbda=0.02)


def test_chunks_and_tiles_change_next_to_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = hrvqvae.load(run), torch.cat([digits(8).repeat(1, 1, 3, 3), digits(16)[8:].repeat(1, 1, 3, 3)])

    def total() -> Tensor:
        codes = model.encode(images, 0.02)
        return errors(model.autoencoder, images, codes) + 0.02 * bits(model.codec, (36, 36), codes)

    usual = total()
    monkeypatch.setattr(rate_distortion, "_NUMBERS", 4000)
    monkeypatch.setattr(rate_distortion, "_POSITIONS", 400)
    monkeypatch.setattr(sensitivity, "_CORE", 10)
    torch.testing.assert_close(total(), usual, rtol=0.01, atol=0)
    assert total().sum() < 1.001 * usual.sum()


@on_each_device
def test_images_have_a_weight_each(device: str, run: Path) -> None:
    model, images = hrvqvae.load(run), digits(3)
    encoder = RateDistortion.of(model.autoencoder, model.codec)
    codes, squares = encoder.weigh(images, torch.tensor([0.0, 0.05, 1.0], device=device))
    for number, weight in enumerate((0.0, 0.05, 1.0)):
        alone = encoder.encode(images[number : number + 1], weight)
        assert all(torch.equal(one[number], other[0]) for one, other in zip(codes, alone, strict=True))
    torch.testing.assert_close(squares.float(), errors(model.autoencoder, images, codes), rtol=1e-4, atol=1e-4)


def test_a_model_that_was_loaded_in_inference_mode_has_gradients_too(run: Path) -> None:
    expected = hrvqvae.load(run).encode(digits(2), 0.02)
    with torch.inference_mode():
        found = hrvqvae.load(run).encode(digits(2), 0.02)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("levels", [2, 3])
def test_the_command_writes_files_and_archives(
    run: Path, levels: int, tmp_path: Path, mnist_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, pixels in enumerate(digits(4)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(tmp_path / "in" / f"{number}.png")
    weigh = ["--lmbda", "0.05", "--device", "cpu", "--levels", str(levels)]
    for out in ("files", "all.hrva"):
        assert main(["compress", str(run), str(tmp_path / "in"), "-o", str(tmp_path / out), *weigh]) == 0
    found = sorted((tmp_path / "files").iterdir())
    assert [path.read_bytes() for path in found] == hrvqvae.load(run).compress(digits(4), levels, lmbda=0.05)
    for name, source in (("one", found), ("other", [tmp_path / "all.hrva"])):
        arguments = ["decompress", *map(str, source), "-o", str(tmp_path / name), "--model", str(run)]
        assert main(arguments) == 0
    for number in range(4):
        pictures = [read_image(tmp_path / name / f"{number}.png", 1) for name in ("one", "other")]
        assert (pictures[0] == pictures[1]).all()
    bad = ["compress", run, tmp_path / "in", "-o", tmp_path / "bad.hrva", "--lmbda", 1000001]
    assert "the lambda is 1000001.0; it must be from 0 to 1e6" in refused(bad, capsys)
    assert not (tmp_path / "bad.hrva").exists()


def test_the_largest_weight_takes_the_fewest_bits(run: Path) -> None:
    model, images = hrvqvae.load(run), digits(4)
    largest, large, none = (bits(model.codec, (12, 12), model.encode(images, weight)) for weight in (1e6, 1e3, 0))
    assert (largest <= large).all()
    assert (large < none).all()


def test_models_it_can_not_take_are_told(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = tiny_systems(mnist_root)
    codecs = {
        name: EntropyModel(
            name, "ab" * 16, geometry_of(systems[name].model.latent_grids), systems[name].model.num_symbols
        )
        for name in ("vqvae2", "hrvqvae")
    }
    with pytest.raises(InputError, match="takes a model with one latent grid"):
        RateDistortion.of(build(systems["vqvae2"]), codecs["vqvae2"])
    monkeypatch.setattr(rate_distortion, "_MOST_LEAVES", 26)
    with pytest.raises(InputError, match="^a lambda takes a model of up to 26 leaves; this one has 27$"):
        RateDistortion.of(build(systems["hrvqvae"]), codecs["hrvqvae"])
