"""Files of a trained model in the comparison: the shipped one, on drawn digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrvqvae.bench.files.curves import measure
from hrvqvae.bench.files.trained import TrainedFiles
from hrvqvae.errors import InputError
from tests.conftest import drawn_digits


def test_each_prefix_is_measured_as_the_model_decodes_it() -> None:
    codec = TrainedFiles("mnist")
    images = drawn_digits(4, seed=3, size=28)[0][:, None]
    (curve,) = measure(codec, images)
    assert (curve.learned, curve.whole, curve.title) == (True, True, "hrvqvae mnist")
    assert curve.settings == ("level 1", "levels 1-2", "levels 1-3")
    assert curve.model_bytes > 100_000
    model, given = codec.model, torch.from_numpy(images)
    codes = model.encode(given)
    for levels, sizes, errors in zip((1, 2, 3), curve.sizes, curve.errors, strict=True):
        assert sizes.tolist() == [len(file) for file in model.compress(given, levels=levels)]
        decoded = (model.decode(codes, levels, (28, 28)) * 255).round() / 255
        assert errors == pytest.approx((decoded - given / 255).square().mean((1, 2, 3)).numpy(), rel=1e-3)
    assert (np.diff(curve.sizes, axis=0) > 0).all()


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(InputError):
        measure(TrainedFiles("mnist"), np.zeros((1, 3, 28, 28), np.uint8))
