"""Images as Python code has them, and colours and values beyond 8 bits of sRGB."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from hrvqvae.data.images import as_images, decode_image, list_images, read_image, to_pil
from hrvqvae.utils.errors import InputError
from tests.data.stored import swapped_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
BATCH = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())[None]


def test_images_of_every_kind_are_one_batch(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    path = tmp_path / "x.png"
    picture.save(path)
    for images in (picture, path, str(path), PIXELS, PIXELS.transpose(2, 0, 1), BATCH[0]):
        assert torch.equal(as_images(images, 3), BATCH), type(images)
        assert torch.equal(as_images([images, images], 3), BATCH.repeat(2, 1, 1, 1)), type(images)
    for stacked in (BATCH, PIXELS[None], BATCH.numpy()):
        assert torch.equal(as_images(stacked, 3), BATCH)
    assert torch.equal(as_images(PIXELS / 255, 3), BATCH.double().div(255).float())
    assert torch.equal(read_image(path), BATCH[0])
    np.testing.assert_array_equal(to_pil(read_image(path)), PIXELS)
    grey = np.asarray(picture.convert("L"))
    assert torch.equal(as_images(picture, 1)[0, 0], torch.from_numpy(grey.copy()))
    assert as_images(grey, 3).shape == (1, 3, 5, 7)
    sizes = [image.shape for image in list_images([path, PIXELS[:3], BATCH[0, :, :2]], 3)]
    assert sizes == [(3, 5, 7), (3, 3, 7), (3, 2, 7)]
    assert as_images(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), 3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([], "there is no image"),
        ([PIXELS, PIXELS[:3]], r"\(3, 5, 7\) uint8 and \(3, 3, 7\) uint8: give them in several"),
        ([BATCH[0], BATCH[0] / 255], r"uint8 and \(3, 5, 7\) float32: give them in several"),
        (3, "image 1 is not an image .it is a int; images are paths, PIL images"),
        (PIXELS.astype(int), "its type is int64; images are uint8, or float"),
        (PIXELS[None, None], r"its shape is \(1, 5, 7, 3\)"),
        ("gone.png", "gone.png: there is no such image"),
    ],
)
def test_other_objects_are_refused(images: object, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        as_images(images, 3)


def test_only_images_become_pil() -> None:
    for shape in ((2, 3), (2, 5, 5), (1, 3, 4, 4)):
        with pytest.raises(InputError, match=r"expected \(C, Y, X\), C = 1, 3 or 4"):
            to_pil(torch.zeros(shape))


@pytest.mark.parametrize(
    ("mode", "values", "pixels"),
    [
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 257 * 100, 65_535], [0, 100, 255]),
        ("I;16", [0, 255, 65_535], [0, 1, 255]),
        ("I;16", [0, 1, 200], [0, 0, 1]),
        ("F", [0, 0.4, 1], [0, 102, 255]),
        ("F", [0, 99.6, 255], [0, 100, 255]),
        ("F", [0, 257 * 100, 65_535], [0, 100, 255]),
    ],
)
def test_the_range_of_values_tells_their_scale(
    mode: str, values: list[float], pixels: list[int]
) -> None:
    types = {"I": np.int32, "I;16": np.uint16, "F": np.float32}
    image = Image.fromarray(np.array([values], types[mode]))
    assert image.mode == mode
    np.testing.assert_allclose(decode_image(lambda: image, 1).pixels[0, 0], pixels, atol=0.5)


@pytest.mark.parametrize("values", [[-1, 5], [0, 65_536], [0.0, np.nan], [-0.5, 0.5]])
def test_values_beyond_16_bits_are_refused(values: list[float]) -> None:
    array = np.array([values], np.int32 if isinstance(values[1], int) else np.float32)
    with pytest.raises(InputError, match=r"its values are .*; images have 8 or 16 bits"):
        decode_image(lambda: Image.fromarray(array), 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_a_profile_become_those_of_srgb(mode: str, tmp_path: Path) -> None:
    """In the profile red and blue have each other's place: so have they in the pixels."""
    image = Image.new("RGB", (4, 4), (250, 60, 20)).convert(mode, palette=Image.Palette.ADAPTIVE)
    for profile, pixel, lost in (
        (swapped_profile(), [20, 60, 250], "colour profile to sRGB"),
        (SRGB, [250, 60, 20], ""),
        (b"no profile", [250, 60, 20], "damaged colour profile ignored"),
    ):
        image.save(tmp_path / "x.png", icc_profile=profile)
        pixels, told = decode_image(tmp_path / "x.png", 3)
        assert told == lost
        np.testing.assert_allclose(pixels[:, 0, 0], pixel, atol=2)


def test_a_profile_keeps_transparency() -> None:
    image = Image.new("RGBA", (2, 1), (250, 60, 20, 255))
    image.putpixel((1, 0), (250, 60, 20, 0))
    stream = io.BytesIO()
    image.save(stream, "PNG", icc_profile=swapped_profile())
    pixels, _ = decode_image(lambda: Image.open(stream), 3)
    assert pixels[:, 0, 1].tolist() == [255, 255, 255]
