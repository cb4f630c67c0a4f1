"""Formats of other programs: what they write is read again, and what counts of their bytes."""

from __future__ import annotations

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from benchmarks.files.curves import squared_errors
from benchmarks.files.formats import (
    FORMATS,
    Avif,
    Jpeg,
    JpegScan,
    JpegXL,
    Setting,
    WebP,
    formats,
    frame_bytes,
    scan_bytes,
)
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.extras import extra_of
from tests.benchmarks.files.pictures import smooth_images

_KINDS = {WebP: "WEBP", Avif: "AVIF", Jpeg: "JPEG", JpegScan: "JPEG", JpegXL: "JXL"}
_SHAPES = [(3, 32, 32), (1, 28, 28), (3, 21, 34)]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("shape", _SHAPES)
def test_what_is_written_is_read_again(kind: type[WebP], shape: tuple[int, int, int]) -> None:
    codec, images = kind(qualities=(5, 90)), smooth_images(2, *shape)
    poor, good = Setting(5), Setting(90)
    errors, sizes = {}, {}
    for setting in (poor, good):
        files = codec.encode(images, setting)
        assert all(Image.open(BytesIO(file)).format == _KINDS[kind] for file in files)
        decoded = codec.decode(files, shape)
        assert decoded.shape == images.shape
        assert decoded.dtype == np.uint8
        errors[setting], sizes[setting] = squared_errors(images, decoded).mean(), sum(map(len, files))
    assert sizes[poor] < sizes[good]
    assert errors[good] < min(errors[poor], 1e-3)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_reduced_image_comes_back_in_its_size(kind: type[WebP]) -> None:
    images = smooth_images(2, 3, 32, 32)
    codec = kind(qualities=(60,), reductions=(1, 2))
    whole, half = (codec.encode(images, setting) for setting in codec.settings)
    assert Image.open(BytesIO(half[0])).size == (16, 16)
    assert sum(map(len, half)) < sum(map(len, whole))
    decoded = codec.decode(half, (3, 32, 32))
    assert decoded.shape == images.shape
    assert squared_errors(images, decoded).max() < 0.02
    assert [str(setting) for setting in codec.settings] == ["quality 60", "quality 60 at 1/2 size"]


def test_the_scan_of_a_jpeg_is_what_follows_its_headers() -> None:
    codec = JpegScan(qualities=(40,), reductions=(1,))
    for file in codec.encode(smooth_images(3), Setting(40)):
        start = file.rindex(b"\xff\xda")
        scan = file[start + 2 + 12 : -2]  # the header of a scan of three components has 12 bytes
        assert scan_bytes(file) == len(scan)
        assert scan.replace(b"\xff\x00", b"").count(b"\xff") == 0  # and the scan no further marker
    assert codec.counts[0].size(file) == len(scan)
    assert not codec.counts[0].whole


def test_what_an_avif_has_beside_its_frame_is_the_same_for_all_images_of_a_size() -> None:
    codec = Avif(qualities=(0, 30, 60), speed=6)
    files = [file for setting in codec.settings for file in codec.encode(smooth_images(3), setting)]
    beside = [len(file) - frame_bytes(file) for file in files]
    assert max(len(file) for file in files) > min(len(file) for file in files) + 20
    assert max(beside) - min(beside) <= 2  # lengths of 127 bytes and more take a second byte
    assert min(beside) > 200
    whole, frame = codec.counts
    assert (whole.size(files[0]), frame.size(files[0])) == (len(files[0]), frame_bytes(files[0]))
    assert (whole.whole, frame.whole) == (True, False)


def test_the_frame_holds_what_differs_between_two_images() -> None:
    """Behind the frame nothing, and before it only headers: the last bytes that count are the file's last bytes."""
    codec = Avif(qualities=(30,), speed=6)
    one, other = codec.encode(smooth_images(2), Setting(30))
    assert one[-frame_bytes(one) :] != other[-frame_bytes(other) :]
    heads = one[: -frame_bytes(one)], other[: -frame_bytes(other)]
    assert len(heads[0]) == len(heads[1])
    differing = sum(a != b for a, b in zip(*heads, strict=True))
    assert differing <= 12  # lengths of boxes, and of the frame


def test_formats_by_name() -> None:
    assert [type(one) for one in formats(["jpeg", "webp"])] == [Jpeg, WebP]
    assert len(formats()) == len(FORMATS)
    with pytest.raises(InputError, match="there is no format gif; there are webp, avif"):
        formats(["gif"])


@pytest.mark.parametrize(("kind", "module"), [(WebP, "webp"), (JpegXL, "pillow_jxl")])
def test_a_missing_package_is_named(kind: type[WebP], module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        kind()
    assert extra_of(raised.value.name or "") == "files"
