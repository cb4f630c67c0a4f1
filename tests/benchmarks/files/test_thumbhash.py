"""ThumbHash: the bytes and pixels that another implementation gives."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.files.curves import squared_errors
from benchmarks.files.thumbhash import ThumbHash, preview, thumbhash
from tests.benchmarks.files.pictures import smooth_images


def _ramps(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) * 97 % 256)
    return np.stack(planes).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), "e0070a3f1a80878770878778887888878787080888808f07"),
        ((60, 31), "df070a3c1a800777788777877778708008f878"),
        ((1, 7), "93f62a59be7567888888088aa6874f8808"),
    ],
)
def test_hashes_are_those_of_the_python_package(size: tuple[int, int], expected: str) -> None:
    """The package thumbhash 0.1.2, whose encoder is right."""
    assert thumbhash(_ramps(*size)).hex() == expected


def test_previews_are_those_of_the_python_package() -> None:
    """The package thumbhash-python 1.0.1, at its own size: sums over rows, and pixels."""
    drawn = preview(bytes.fromhex("e0070a3f1a80878770878778887888878787080888808f07"), (3, 32, 32))
    assert drawn.sum((1, 2)).tolist() == [132329, 128455, 135393]
    assert drawn[:, 3, 28].tolist() == [255, 12, 135]


def test_images_of_every_size_have_a_preview_near_them() -> None:
    codec = ThumbHash()
    for shape, most in (((3, 32, 32), 24), ((3, 40, 160), 17), ((1, 28, 28), 24)):
        images = smooth_images(3, *shape)
        files = codec.encode(images, "standard")
        assert max(map(len, files)) <= most
        decoded = codec.decode(files, shape)
        assert decoded.shape == images.shape
        flat = np.broadcast_to(images.mean((2, 3), keepdims=True), images.shape)
        assert (squared_errors(images, decoded) < squared_errors(images, flat)).all()


def test_one_colour_comes_back() -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (200, 60, 90)):
        pixels = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, 9, 9))
        drawn = preview(thumbhash(pixels), (3, 9, 9))
        assert np.abs(drawn.astype(int) - pixels).max() <= 8  # 6 bits a colour
        assert Image.fromarray(drawn.transpose(1, 2, 0)).getcolors() is not None
