"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from hrvqvae.utils.quantities import counted, psnr


def test_one_is_singular() -> None:
    said = [counted(number, "image") for number in (0, 1, 2, 2000)]
    assert said == ["0 images", "1 image", "2 images", "2,000 images"]


def test_psnr() -> None:
    assert psnr(0.01) == pytest.approx(20)
    assert math.isinf(psnr(0.0))
