"""Image files to pixels and back."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrvqvae.data.images import BrokenImageError, decode_image, read_image, to_pil, write_image
from hrvqvae.utils.errors import InputError
from tests.conftest import write_picture


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tiff"])
def test_other_formats_are_refused_whatever_their_name(suffix: str, tmp_path: Path) -> None:
    write_picture(tmp_path / f"x.{suffix}", 1)
    path = (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    with pytest.raises(BrokenImageError, match=r"x\.png is not a readable PNG, JPEG or WebP"):
        read_image(path, 3)


def test_pixels_are_counted_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    write_picture(path, 1, (40, 30))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BrokenImageError, match=r"40x30 pixels; data\.max_pixels admits 1000"):
        read_image(path, 3, max_pixels=1_000)


def test_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 3).shape == (3, 20, 10)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted_and_what_is_lost_is_told(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    write_picture(path, 3, mode=mode)
    with Image.open(path) as image:
        as_rgb = image.convert("RGB")
        expected = np.array(as_rgb if channels == 3 else as_rgb.convert("L"))
    pixels, lost = decode_image(path, channels)
    assert pixels.shape == (channels, 30, 40)
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1) if channels == 3 else expected[None])
    inks, grey = mode == "CMYK", channels == 1 and mode in ("P", "RGB", "RGBA", "CMYK")
    assert lost == ", ".join(["CMYK to RGB"] * inks + ["colour to greyscale"] * grey)
    if mode == "L":
        image.convert("RGB").save(path)
        assert decode_image(path, 1).lost == "", "grey written as colour loses nothing"


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    layer.putpixel((1, 1), (10, 20, 30, 255))
    layer.save(tmp_path / "x.png")
    pixels, lost = decode_image(tmp_path / "x.png", 3)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 1, 1].tolist() == [10, 20, 30]
    assert lost == "transparency to white"
    assert decode_image(tmp_path / "x.png", 1).lost == "transparency to white, colour to greyscale"


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 200, 257 * 100 + 200, 65535]], np.uint16)).save(tmp_path / "x.png")
    pixels, lost = decode_image(tmp_path / "x.png", 1)
    assert pixels.tolist() == [[[0, 200, 101, 255]]], "they are rounded"
    assert lost == "16 bits to 8"
    (tmp_path / "rgb.png").write_bytes(_rgb16())
    assert decode_image(tmp_path / "rgb.png", 3).lost == "16 bits to 8"


def _rgb16() -> bytes:
    """Return a PNG of a pixel of 3 x 16 bits, which Pillow can't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + b"\1\2" * 3)) + chunk(b"IEND", b"")


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    for name in ("x.png", "x.webp"):
        more = [Image.new("RGB", (4, 4), "blue")]
        Image.new("RGB", (4, 4), "red").save(tmp_path / name, save_all=True, append_images=more, lossless=True)
        pixels, lost = decode_image(tmp_path / name, 3)
        assert pixels[:, 0, 0].tolist() == [255, 0, 0]
        assert lost == "further frames"


def test_crops_are_where_they_are_drawn(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(0, 200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(tmp_path / "x.png")
    crops = [decode_image(tmp_path / "x.png", 1, size=50, position=(x, 0.5)).pixels for x in (0.0, 0.5, 1.0)]
    assert [int(crop[0, 0, 0]) for crop in crops] == [0, 75, 150]
    assert all(crop.shape == (1, 50, 50) for crop in crops)
    Image.new("L", (1, 60_000), 7).save(tmp_path / "x.png")
    pixels = decode_image(tmp_path / "x.png", 1, size=256).pixels
    assert pixels.shape == (1, 256, 256)
    assert (pixels == 7).all(), "it is cropped before it is resized"


@pytest.mark.parametrize("channels", [1, 3])
def test_written_images_are_read_back(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
    for image in (pixels, torch.from_numpy(pixels), torch.from_numpy(pixels) / 255):
        write_image(to_pil(image), tmp_path / "x.png")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png", channels), pixels)
    with pytest.raises(InputError, match="must end in .png"):
        write_image(to_pil(pixels), tmp_path / "x.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
