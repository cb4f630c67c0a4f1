"""Images as Python code has them, and colours and values beyond 8 bits of sRGB."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageCms

from hrvqvae.data.images import (
    as_images,
    decode_image,
    list_images,
    read_image,
    to_pil,
    write_image,
)
from tests.conftest import input_error, parametrize, same
from tests.data.stored import noise, swapped_profile

PATH = Path("x.png")

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = noise(5, 7, 3)
BATCH = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())[None]


def test_images_of_every_kind_are_one_batch():
    picture = Image.fromarray(PIXELS)
    picture.save(PATH)
    for image in (picture, PATH, "x.png", PIXELS, BATCH[0]):
        assert same(as_images(image, 3), BATCH), type(image)
        assert same(as_images([image, image], 3), BATCH.repeat(2, 1, 1, 1)), type(image)
    assert same(as_images(PIXELS[None], 3), BATCH)
    assert as_images(BATCH, 3) is BATCH
    assert same(as_images(PIXELS / 255, 3), BATCH.double().div(255).float())
    assert same(read_image(PATH), BATCH[0])
    assert_array_equal(to_pil(BATCH[0]), PIXELS)
    grey = np.array(picture.convert("L"))
    assert_array_equal(as_images(picture, 1)[0, 0], grey)
    assert as_images(grey, 3).shape == (1, 3, 5, 7)
    sizes = [image.shape for image in list_images([PATH, PIXELS[:3], BATCH[0, :, :2]], 3)]
    assert sizes == [(3, 5, 7), (3, 3, 7), (3, 2, 7)]
    assert as_images(torch.zeros(1, 3, 2, 2).bfloat16(), 3).dtype == torch.bfloat16


@parametrize(
    "images, fault",
    [
        ([PIXELS, PIXELS[:3]], "have one size and type"),
        ([BATCH[0], BATCH[0] / 255], "have one size and type"),
        (3, "image 1 is not a readable image .it is a int; images are paths, bytes, PIL images"),
        (PIXELS.astype(int), "its type is int64; images are uint8, or float"),
        (PIXELS[None, None], r"its shape is \(1, 5, 7, 3\)"),
        ("gone.png", "gone.png is not a readable image .*No such file"),
    ],
)
def test_other_objects_are_refused(images, fault):
    with input_error(fault):
        as_images(images, 3)


def test_16_bits_become_8():
    Image.fromarray(np.array([[0, 128, 129, 255, 65535]], np.uint16)).save(PATH)
    assert decode_image(PATH, 1).tolist() == [[[0, 0, 1, 1, 255]]]
    Path("x.pgm").write_bytes(b"P5 5 1 65535\n" + bytes([0, 0, 0, 128, 0, 129, 0, 255, 255, 255]))
    assert decode_image(Path("x.pgm"), 1).tolist() == [[[0, 0, 1, 1, 255]]]
    for mode in "IF":
        with input_error(f"its mode is {mode}"):
            as_images(Image.new(mode, (2, 2)), 1)


@parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_a_profile_become_those_of_srgb(mode):
    """In the profile red and blue have each other's place: so have they in the pixels."""
    image = Image.new("RGB", (4, 4), (250, 60, 20)).convert(mode, palette=Image.Palette.ADAPTIVE)
    for profile, pixel in (
        (swapped_profile(), [20, 60, 250]),
        (SRGB, [250, 60, 20]),
        (b"no profile", [250, 60, 20]),
    ):
        image.save(PATH, icc_profile=profile)
        assert_allclose(decode_image(PATH, 3)[:, 0, 0], pixel, atol=2)


def test_a_profile_keeps_transparency():
    image = Image.new("RGBA", (1, 1), (250, 60, 20, 0))
    image.save(PATH, icc_profile=swapped_profile())
    assert decode_image(PATH, 3).flatten().tolist() == [255, 255, 255]


@parametrize("height, is_optimized", [(1000, True), (1001, False)])
def test_a_png_file_above_a_megapixel_is_written_fast(height, is_optimized):
    picture = Image.new("L", (1000, height))
    write_image(picture, PATH)
    for optimize in (True, False):
        expected = io.BytesIO()
        picture.save(expected, "PNG", optimize=optimize)
        assert (PATH.read_bytes() == expected.getvalue()) == (optimize == is_optimized)
