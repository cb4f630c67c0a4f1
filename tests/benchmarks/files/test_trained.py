"""Files of a trained model in the comparison: the shipped one, on drawn digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.files.contract import Images
from benchmarks.files.curves import Curve, measure, squared_errors
from benchmarks.files.trained import TrainedFiles
from hrvqvae.checkpoints.folder import locate
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr
from tests.conftest import drawn_digits


@pytest.fixture(scope="module")
def codec() -> TrainedFiles:
    """With half of its weights."""
    codec = TrainedFiles("mnist")
    codec.settings = tuple(one for one in codec.settings if one.lmbda in (None, 0, 1 / 256, 1 / 64, 1 / 16, 1 / 4))
    assert len(codec.settings) == 3 * 6
    return codec


@pytest.fixture(scope="module")
def images() -> Images:
    return drawn_digits(3, seed=3, size=28)[0][:, None]


@pytest.fixture(scope="module")
def curve(codec: TrainedFiles, images: Images) -> Curve:
    (curve,) = measure(codec, images)
    return curve


def test_each_prefix_is_measured_as_the_model_decodes_it(codec: TrainedFiles, images: Images, curve: Curve) -> None:
    assert (curve.learned, curve.whole, curve.title) == (True, True, "hrvqvae mnist")
    model, given = codec.model, torch.from_numpy(images)
    codes = model.encode(given)
    usual = [curve.settings.index(name) for name in ("level 1", "levels 1-2", "levels 1-3")]
    for levels, number in enumerate(usual, start=1):
        assert curve.sizes[number].tolist() == [len(file) for file in model.compress(given, levels=levels)]
        decoded = (model.decode(codes, levels, (28, 28)) * 255).round() / 255
        errors = (decoded - given / 255).square().mean((1, 2, 3)).numpy()
        assert curve.errors[number] == pytest.approx(errors, rel=1e-3)
    assert (np.diff(curve.sizes[usual], axis=0) > 0).all()


def test_weights_give_smaller_files_between_the_prefixes(curve: Curve) -> None:
    for written in ("level 1", "levels 1-2", "levels 1-3"):
        usual, none, *weighed = [number for number, name in enumerate(curve.settings) if name.startswith(written)]
        assert curve.settings[none] == f"{written}, weight 0"
        assert (curve.errors[none] <= curve.errors[usual] * 1.01).all()  # before pixels are rounded to 8 bits, no more
        sizes = curve.sizes[[none, *weighed]].mean(1)
        assert (np.diff(sizes) <= 0).all()
        assert sizes[-1] < 0.95 * curve.sizes[usual].mean()


def test_fitted_comes_near_a_search_for_that_many_bytes(codec: TrainedFiles, images: Images, curve: Curve) -> None:
    searched = codec.decode(codec.model.compress(torch.from_numpy(images), max_bytes=40), images.shape[1:])
    reached, fitted = psnr(float(squared_errors(images, searched).mean())), curve.fitted(40)
    assert fitted is not None
    assert reached - 1 < fitted.psnr < reached + 0.1


def test_without_tables_the_error_alone_is_weighed(tmp_path: Path) -> None:
    shutil.copy(locate("mnist"), tmp_path)
    assert list(map(str, TrainedFiles(tmp_path / "model.safetensors").settings)) == [
        "level 1", "level 1, weight 0", "levels 1-2", "levels 1-2, weight 0", "levels 1-3", "levels 1-3, weight 0",
    ]  # fmt: skip


def test_the_model_that_a_reader_needs_has_its_decoder_of_prefixes() -> None:
    folder = locate("treevq-cifar10").parent
    needed = ("model.safetensors", "tables.hrvt", "prefixes/model.safetensors")
    assert TrainedFiles("treevq-cifar10").model_bytes == sum((folder / name).stat().st_size for name in needed)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(InputError):
        measure(TrainedFiles("mnist"), np.zeros((1, 3, 28, 28), np.uint8))
