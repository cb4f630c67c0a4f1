"""Curves: what is reached within a budget, against plain searches over all mixtures and choices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from benchmarks.files.contract import Count, FileCodec, Images, Shape
from benchmarks.files.curves import Curve, against, measure
from hrvqvae.utils.quantities import psnr
from tests.benchmarks.files.pictures import smooth_images


def curve_of(sizes: np.ndarray, errors: np.ndarray, title: str = "some", whole: bool = True) -> Curve:
    names = tuple(f"setting {number}" for number in range(len(sizes)))
    return Curve(title, whole, False, 0, names, sizes.astype(float), errors, 1 - 10 * errors)


class Shaved(FileCodec):
    """Pixels without their last bits, after one byte that says how many."""

    counts = (Count("all"), Count("pixels", lambda file: len(file) - 1, whole=False))
    settings = (0, 3, 5)
    model_bytes = 7

    def encode(self, images: Images, setting: int) -> list[bytes]:
        return [bytes([setting]) + (image >> setting).tobytes() for image in images]

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        return np.stack([np.frombuffer(file[1:], np.uint8).reshape(shape) << file[0] for file in files])


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 10_000), some.integers(1, 6), some.integers(1, 5), some.floats(0, 120))
def test_budgets_against_plain_searches(seed: int, count: int, images: int, budget: float) -> None:
    generator = np.random.default_rng(seed)
    curve = curve_of(generator.integers(1, 100, (count, images)), generator.uniform(1e-4, 0.09, (count, images)))
    sizes, errors = curve.sizes.mean(1), curve.errors.mean(1)
    mixtures = [
        errors[one] + share * (errors[other] - errors[one])
        for one in range(count)
        for other in range(count)
        for share in np.linspace(0, 1, 201)
        if sizes[one] + share * (sizes[other] - sizes[one]) <= budget
    ]
    within = curve.within(budget)
    if within is None:
        assert not mixtures
    else:
        best = 10 ** (-within.psnr / 10)
        assert best <= min(mixtures) * (1 + 1e-9)
        assert best >= min(mixtures) - 0.09 / 200 * 2
        assert within.bytes <= budget
        assert within.ssim == pytest.approx(1 - 10 * best)
    fitting = [
        min((curve.errors[s, i], curve.sizes[s, i]) for s in range(count) if curve.sizes[s, i] <= budget)
        for i in range(images)
        if (curve.sizes[:, i] <= budget).any()
    ]
    fitted = curve.fitted(budget)
    if len(fitting) < images:
        assert fitted is None
    else:
        assert fitted is not None
        assert fitted.psnr == pytest.approx(psnr(float(np.mean([error for error, _ in fitting]))))
        assert fitted.bytes == pytest.approx(np.mean([size for _, size in fitting]))


def test_between_two_settings_errors_lie_on_a_line() -> None:
    curve = curve_of(np.array([[100], [150], [200]]), np.array([[0.03], [0.025], [0.01]]))
    assert curve.within(99) is None
    at = {budget: curve.within(budget) for budget in (100, 150, 200, 1000)}
    assert [one and round(10 ** (-one.psnr / 10), 6) for one in at.values()] == [0.03, 0.02, 0.01, 0.01]
    assert at[1000] is not None
    assert at[1000].bytes == 200


def test_measured_is_what_torchmetrics_finds() -> None:
    images = smooth_images(6, 3, 16, 16)
    whole, pixels = measure(Shaved(), images)
    assert (whole.sizes == 769).all()
    assert (pixels.sizes == 768).all()
    assert (whole.whole, pixels.whole, whole.model_bytes) == (True, False, 7)
    assert whole.points[0].psnr == math.inf
    assert whole.points[0].ssim == pytest.approx(1)
    given_ = torch.from_numpy(images).float() / 255
    for setting, point in zip(Shaved.settings[1:], whole.points[1:], strict=True):
        shaved = torch.from_numpy(images >> setting << setting).float() / 255
        assert point.psnr == pytest.approx(float(PeakSignalNoiseRatio(data_range=1.0)(shaved, given_)), abs=1e-3)
        metric = StructuralSimilarityIndexMeasure(data_range=1.0)
        assert point.ssim == pytest.approx(float(metric(shaved, given_)), abs=1e-4)
    assert measure(Shaved(), smooth_images(2, 1, 8, 8))[0].points[1].ssim is None


def test_a_curve_beside_others() -> None:
    ours = curve_of(np.array([[50], [100]]), np.array([[0.04], [0.01]]), "ours")
    good = curve_of(np.array([[80], [120]]), np.array([[0.02], [0.02]]), "good")
    poor = curve_of(np.array([[10], [120]]), np.array([[0.08], [0.08]]), "poor")
    ideal = curve_of(np.array([[1]]), np.array([[0.001]]), "ideal", whole=False)
    small, large = against(ours, [good, poor, ideal])
    assert (small["setting"], large["setting"]) == ("setting 0", "setting 1")
    assert (small["best_file"], large["best_file"]) == ("poor", "good")
    assert small["ahead"] == pytest.approx(10 * math.log10(2))
    assert large["ahead"] == pytest.approx(10 * math.log10(2))
    assert small["ahead_of"]["good"] is None
    assert large["ahead_of"]["ideal"] == pytest.approx(-10)


def test_settings_that_others_beat_are_not_put_beside_others() -> None:
    sizes, errors = [[90], [50], [100], [60], [70], [120]], [[0.011], [0.04], [0.01], [0.04], [0.035], [0.02]]
    ours = curve_of(np.array(sizes), np.array(errors))
    assert [ours.settings[number] for number in ours.hull] == ["setting 1", "setting 0", "setting 2"]
    rows = against(ours, [curve_of(np.array([[10]]), np.array([[0.08]]), "poor")])
    assert [row["bytes"] for row in rows] == [50, 90, 100]
