"""Uploads: what is taken, what is refused in one line before it is decoded, and in which size a model gets it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hrvqvae.play.tasks import Limits, _reduced, marked, take
from hrvqvae.utils.errors import InputError
from tests.conftest import write_picture


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file with this size in its header, and next to nothing in it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b"")


def refused(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as found:
        take(path, 1, 28, limits or Limits())
    line = str(found.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (5_000, 5_000), (65_500, 1_000)])
def test_many_pixels_are_refused_by_the_header(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big.png").write_bytes(png_of_size(width, height))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    line = refused(tmp_path / "big.png")
    assert line == "big.png has too many pixels; at most 16,777,216 are admitted: make it smaller"


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert refused(path) == "big.png has 100,000,000 bytes; at most 16,777,216 are admitted"


@pytest.mark.parametrize("content", [b"", b"this is text\n", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(content)
    assert refused(tmp_path / "text.png") == "text.png is not a PNG, JPEG or WebP image"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_that_is_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1_500])
    assert refused(path).startswith(f"cut.{suffix} ")


def test_a_damaged_header_never_does_worse(tmp_path: Path) -> None:
    """Each byte of the first 60 of a PNG changed: an image is taken, or there is one line."""
    write_picture(tmp_path / "whole.png", 1)
    whole = (tmp_path / "whole.png").read_bytes()
    generator = np.random.default_rng(0)
    taken, lines = 0, set()
    for place in range(60):
        changed = bytearray(whole)
        changed[place] ^= int(generator.integers(1, 256))
        (tmp_path / "changed.png").write_bytes(changed)
        try:
            assert take(tmp_path / "changed.png", 3, 28, Limits()).square.shape == (3, 28, 28)
            taken += 1
        except InputError as error:
            lines.add(str(error).count("\n"))
    assert taken < 60
    assert lines == {0}


def test_an_image_is_taken_in_both_sizes(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png", 1, (60, 40))
    found = take(tmp_path / "x.png", 1, 28, Limits())
    assert (found.own.shape, found.square.shape) == ((1, 40, 60), (1, 28, 28))
    assert found.note == "colour to greyscale"
    small = take(tmp_path / "x.png", 3, 28, Limits(coded_pixels=600))
    assert small.own.shape == (3, 20, 30)
    assert small.note == "60x40 pixels reduced to 30x20"
    assert abs(float(small.own.float().mean()) - np.asarray(Image.open(tmp_path / "x.png")).mean()) < 1


@settings(deadline=None)
@given(st.integers(1, 3_000), st.integers(1, 3_000), st.integers(1, 4_000))
def test_reduced_images_fit_and_keep_their_shape(height: int, width: int, pixels: int) -> None:
    import torch

    found, note = _reduced(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, height, width), pixels)
    rows, columns = found.shape[-2:]
    assert rows * columns <= max(1, pixels)
    assert bool(note) == (height * width > pixels)
    if min(rows, columns) > 20:
        assert abs(rows / columns / (height / width) - 1) < 0.1


@pytest.mark.parametrize(
    "told", ["{", "[1]", '{"side": 3, "marks": "1111"}', '{"side": 1e9, "marks": "11"}', '{"side": -1}',
             '{"side": 30000, "marks": "0"}', '{"side": 2, "marks": 7}'],
)  # fmt: skip
def test_marks_that_are_none_are_refused(told: str) -> None:
    with pytest.raises(InputError, match="load the page anew"):
        marked(told)


def test_marks_are_those_of_the_painter() -> None:
    assert marked('{"side": 2, "marks": "0110"}').tolist() == [[False, True], [True, False]]
    assert marked('{"side": 2, "marks": ""}').tolist() == [[False] * 2] * 2
    assert not marked(None).any()


def test_limits_are_positive() -> None:
    with pytest.raises(InputError, match="pixels is 0"):
        Limits(pixels=0)
    for count in (0, -1, 65):
        with pytest.raises(InputError, match="1 to 64 can be drawn"):
            Limits().check_count(count)
