"""The linear transform and its ideal code lengths, against an oracle that counts in dictionaries."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest

from benchmarks.files.curves import measure, squared_errors
from benchmarks.files.linear import Linear, from_blocks, to_blocks
from hrvqvae.utils.errors import InputError
from tests.benchmarks.files.pictures import smooth_images

SHAPE = (3, 16, 16)


@cache
def _linear() -> Linear:
    return Linear(smooth_images(400, *SHAPE, seed=1), steps=(0.05, 0.2, 0.8))


def test_blocks_go_back_to_images() -> None:
    images = smooth_images(3, 3, 16, 24)
    blocks = to_blocks(images, 8)
    assert blocks.shape == (3, 6, 192)
    assert (blocks[1, 4].reshape(3, 8, 8) == images[1, :, 8:16, 8:16]).all()
    assert (from_blocks(blocks, (3, 16, 24)) == images).all()


def test_components_are_orthonormal_and_the_strongest_come_first() -> None:
    for setting in _linear().settings:
        components = setting.components
        assert np.allclose(components.basis.T @ components.basis, np.eye(len(components.mean)), atol=1e-4)
        strength = components.held_out.var(0)
        assert strength[:4].sum() > 0.8 * strength.sum()
        assert strength[0] > 10 * strength[8]


def test_code_lengths_are_those_of_held_out_counts() -> None:
    codec, images = _linear(), smooth_images(2, *SHAPE, seed=2)
    for setting in codec.settings:
        components = setting.components
        held_out = setting.quantize(components.held_out)
        for image, file in zip(images, codec.encode(images, setting), strict=True):
            bits = 0.0
            for block in to_blocks(image[None], components.side)[0]:
                numbers = setting.quantize((block / 255 - components.mean) @ components.basis)
                for column, number in zip(held_out.T, numbers, strict=True):
                    largest = int(np.abs(column).max())
                    count = Counter(column.tolist())[int(np.clip(number, -largest, largest))] + 0.05
                    bits -= math.log2(count / (len(column) + 0.05 * (2 * largest + 1)))
            assert codec.ideal_bytes(file) == pytest.approx(bits / 8, rel=1e-3)


def test_a_smaller_step_costs_more_and_errs_less() -> None:
    codec, images = _linear(), smooth_images(20, *SHAPE, seed=3)
    (curve,) = measure(codec, images)
    assert not curve.whole
    for side in {setting.components.side for setting in codec.settings}:
        some = [point for point, setting in zip(curve.points, codec.settings, strict=True)
                if setting.components.side == side]  # fmt: skip
        assert sorted(some, key=lambda point: -point.bytes) == sorted(some, key=lambda point: -point.psnr)
    finest = next(setting for setting in codec.settings if setting.step == 0.05)
    decoded = codec.decode(codec.encode(images, finest), SHAPE)
    assert squared_errors(images, decoded).mean() < 0.05**2 / 2  # a step of 0.05 errs by 0.05^2 / 12 a number at most


def test_the_model_counts_what_is_in_use() -> None:
    codec = _linear()
    values = max(len(setting.components.mean) for setting in codec.settings)
    assert 2 * values < codec.model_bytes < 2 * values * (values + 1) + 4 * values * 1000


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="can't be learned from 2 images of 13x13 pixels.*--no-linear"):
        Linear(smooth_images(2, 3, 13, 13))
