"""Bytes against error of files: formats, curves and codecs, against plain searches and other
implementations.
"""

import json
import math
from io import BytesIO

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linprog
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from benchmarks.files.__main__ import main
from benchmarks.files.curves import Count, Curve, FileCodec, compare_curve, measure, squared_errors
from benchmarks.files.formats import (
    Avif,
    Jpeg,
    JpegScan,
    JpegXL,
    Setting,
    WebP,
    frame_bytes,
    scan_bytes,
)
from benchmarks.files.linear import Linear, from_blocks, to_blocks
from benchmarks.files.trained import TrainedFiles
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.utils.quantities import psnr
from tests.conftest import approx, drawn_digits, input_error, names_in, parametrize, shared_fixture


def smooth_images(count, channels=3, height=16, width=16, seed=0):
    """Return a slope and a disc in each channel."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    down, across, step = generator.uniform(-80, 80, (3, count, channels, 1, 1))
    row, column = generator.uniform(0.2, 0.8, (2, count, 1, 1, 1))
    disc = (y - row) ** 2 + (x - column) ** 2 < 0.05
    return (128 + down * y + across * x + disc * step).clip(0, 255).astype(np.uint8)


KINDS = {WebP: "WEBP", Avif: "AVIF", Jpeg: "JPEG", JpegScan: "JPEG", JpegXL: "JXL"}


def test_by_command(mnist_root, tmp_path, capsys, monkeypatch):
    command = f"mnist --data {mnist_root} --data.size 12 --formats webp jpeg --images 2".split()
    main([*command, "--json", "-o", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 2
    assert report["shape"] == [1, 12, 12]
    assert [*report["ahead"]] == ["hrvqvae mnist"]
    titles = [curve["title"] for curve in report["curves"]]
    assert titles == ["hrvqvae mnist", "WebP", "JPEG", "PCA, ideal codes"]
    jpeg = report["curves"][2]
    assert jpeg["within"][0] is None
    assert jpeg["fitted"][0] is None  # no JPEG is so small
    assert names_in(tmp_path, "*.png") == ["curves.png", "sheet.png"]
    main([*command, "--no-linear", "--models"])
    assert "\nWebP " in capsys.readouterr().out


@parametrize("kind", KINDS)
@parametrize("shape", [(1, 28, 28), (3, 21, 34)])
def test_what_is_written_is_read_again(kind, shape):
    codec = kind(qualities=(5, 90), reductions=(1, 2))
    images = smooth_images(2, *shape)
    measured = {}
    for setting in codec.settings:
        files = codec.encode(images, setting)
        opened = Image.open(BytesIO(files[0]))
        assert opened.format == KINDS[kind]
        assert opened.height == shape[1] // setting.reduced
        decoded = codec.decode(files, shape)
        assert decoded.dtype == np.uint8
        error = squared_errors(images, decoded).mean()
        measured[str(setting)] = (sum(map(len, files)), error)
    size, error = measured["quality 90"]
    low_size, low_error = measured["quality 5"]
    half_size, half_error = measured["quality 90 at 1/2 size"]
    assert max(low_size, half_size) < size
    assert error < min(low_error, 1e-3)
    assert half_error < 0.02


def test_what_counts_of_a_jpeg_and_of_an_avif():
    (file,) = JpegScan(qualities=(40,), reductions=(1,)).encode(smooth_images(1), Setting(40))
    # the header of a scan of three components has 12 bytes
    scan = file[file.rindex(b"\xff\xda") + 2 + 12 : -2]
    assert scan_bytes(file) == len(scan)
    assert b"\xff" not in scan.replace(b"\xff\x00", b"")  # no further marker
    avif = Avif(qualities=(0, 30, 60))
    avif.speed = 6
    files = [file for setting in avif.settings for file in avif.encode(smooth_images(3), setting)]
    beside = [len(file) - frame_bytes(file) for file in files]
    assert max(beside) - min(beside) <= 2  # lengths of 127 bytes and more take a second byte


def curve_of(sizes, errors, title="some", whole=True):
    names = tuple(f"setting {index}" for index in range(len(sizes)))
    return Curve(title, whole, False, 0, names, sizes.astype(float), errors, 1 - 10 * errors)


class Shaved(FileCodec):
    """Pixels without their last bits, after one byte that says how many."""

    counts = (Count("all"), Count("pixels", lambda file: len(file) - 1, whole=False))
    settings = (0, 3, 5)
    model_bytes = 7

    def encode(self, images, setting):
        return [bytes([setting]) + (image >> setting).tobytes() for image in images]

    def decode(self, files, shape):
        return np.stack(
            [np.frombuffer(file[1:], np.uint8).reshape(shape) << file[0] for file in files]
        )


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.floats(0, 120))
def test_budgets_against_plain_searches(seed, count, images, budget):
    generator = np.random.default_rng(seed)
    curve = curve_of(
        generator.integers(1, 100, (count, images)), generator.uniform(1e-4, 0.09, (count, images))
    )
    sizes = curve.sizes.mean(1)
    shares_add_up = {"A_eq": [[1] * count], "b_eq": [1]}
    mixture = linprog(curve.errors.mean(1), A_ub=[sizes], b_ub=[budget], **shares_add_up)
    within = curve.within(budget)
    assert (within is None) == (sizes.min() > budget)
    if within is not None:
        assert within == approx(psnr(mixture.fun))
    fitting = np.ma.masked_array(curve.errors, curve.sizes > budget).min(0)
    fitted = curve.fitted(budget)
    assert (fitted is None) == np.ma.is_masked(fitting)
    if fitted is not None:
        assert fitted == approx(psnr(float(fitting.mean())))


def test_measured_is_what_torchmetrics_finds():
    images = smooth_images(6)
    files, pixels = measure(Shaved(), images)
    assert (files.sizes == 769).all()
    assert (pixels.sizes == 768).all()
    assert files.whole
    assert not pixels.whole
    assert files.model_bytes == 7
    assert files.points[0].psnr == math.inf
    originals = torch.from_numpy(images) / 255
    for setting, point in zip(Shaved.settings[1:], files.points[1:], strict=True):
        shaved = torch.from_numpy(images >> setting << setting) / 255
        psnr_metric = PeakSignalNoiseRatio(data_range=1.0)
        assert point.psnr == approx(float(psnr_metric(shaved, originals)), abs=1e-3)
        ssim_metric = StructuralSimilarityIndexMeasure(data_range=1.0)
        assert point.ssim == approx(float(ssim_metric(shaved, originals)), abs=1e-4)
    assert measure(Shaved(), smooth_images(2, 1, 8, 8))[0].points[1].ssim is None


def test_a_curve_beside_others():
    def curve(title, sizes, errors, whole=True):
        return curve_of(np.array([sizes]).T, np.array([errors]).T, title, whole)

    ours = curve("ours", [90, 50, 100], [0.05, 0.04, 0.01])
    good = curve("good", [80, 120], [0.02, 0.02])
    poor = curve("poor", [10, 120], [0.08, 0.08])
    ideal = curve("ideal", [1], [0.001], whole=False)
    small, large = compare_curve(ours, [good, poor, ideal])
    # what others beat is left out
    assert small["setting"] == "setting 1"
    assert large["setting"] == "setting 2"
    assert small["ahead_of"]["poor"] == approx(10 * math.log10(2))
    assert large["ahead_of"]["good"] == approx(10 * math.log10(2))
    assert small["ahead_of"]["good"] is None
    assert large["ahead_of"]["ideal"] == approx(-10)


@shared_fixture
def linear():
    return Linear(smooth_images(400), steps=(0.05, 0.2, 0.8))


def test_blocks_and_components_of_the_linear_transform(linear):
    images = smooth_images(3, 3, 16, 24)
    blocks = to_blocks(images, 8)
    assert (blocks[1, 4].reshape(3, 8, 8) == images[1, :, 8:16, 8:16]).all()
    assert (from_blocks(blocks, (3, 16, 24)) == images).all()
    for setting in linear.settings:
        components = setting.components
        strength = components.held_out.var(0)
        assert strength[:4].sum() > 0.8 * strength.sum()
    with input_error("2 images of 13x13 pixels.*--no-linear"):
        Linear(smooth_images(2, 3, 13, 13))


def test_code_lengths_are_those_of_held_out_counts(linear):
    images = smooth_images(2, seed=1)
    for setting in linear.settings:
        components = setting.components
        held_out = setting.quantize(components.held_out)
        for image, file in zip(images, linear.encode(images, setting), strict=True):
            bits = 0.0
            for block in to_blocks(image[None], components.side)[0]:
                values = setting.quantize((block / 255 - components.mean) @ components.basis)
                for column, value in zip(held_out.T, values, strict=True):
                    largest = int(np.abs(column).max())
                    count = (column == np.clip(value, -largest, largest)).sum() + 0.05
                    bits -= math.log2(count / (len(column) + 0.05 * (2 * largest + 1)))
            assert linear.ideal_bytes(file) == approx(bits / 8, rel=1e-3)
    finest = next(setting for setting in linear.settings if setting.step == 0.05)
    decoded = linear.decode(linear.encode(images, finest), (3, 16, 16))
    # a step of 0.05 errs by 0.05^2 / 12 per value at most
    assert squared_errors(images, decoded).mean() < 0.05**2 / 6


def test_files_of_a_trained_model(monkeypatch):
    codec = TrainedFiles("mnist")
    images = drawn_digits(2, seed=3, size=28)[0][:, None]
    (curve,) = measure(codec, images)
    assert curve.learned
    assert curve.whole
    model = codec.model
    originals = torch.from_numpy(images)
    codes = model.encode(originals)
    for levels, written in enumerate(("level 1", "levels 1-2", "levels 1-3"), start=1):
        usual, none, *weighed = [
            at for at, name in enumerate(curve.settings) if name.startswith(written)
        ]
        sizes = [*map(len, model.compress(originals, levels=levels))]
        assert curve.sizes[usual].tolist() == sizes
        decoded = (model.decode(codes, levels, (28, 28)) * 255).round() / 255
        expected = (decoded - originals / 255).square().mean((1, 2, 3)).numpy()
        assert curve.errors[usual] == approx(expected, rel=1e-3)
        assert not weighed
        # effort has no more error, before pixels are rounded to 8 bits
        assert (curve.errors[none] <= curve.errors[usual] * 1.01).all()
    folder = open_run("treevq-cifar10").path
    needed = [folder / "model.safetensors", folder / "prefixes" / "model.safetensors"]
    needed += folder.glob("*.hrvt")
    assert TrainedFiles("treevq-cifar10").model_bytes == sum(path.stat().st_size for path in needed)
