"""Image files to pixels, and folders of them to splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrvqvae.data.images import (
    BrokenImageError,
    Listing,
    conversions,
    decode_image,
    decode_square,
    list_folder,
    read_image,
)
from hrvqvae.data.splits import split_names
from hrvqvae.utils.errors import InputError
from tests.conftest import write_picture


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_admitted_formats(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    write_picture(path, 1, (31, 20))
    assert read_image(path, 3).shape == (3, 20, 31)


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


# Conversions: one rule for every mode. An image that a greyscale model refused in RGB was taken in others.


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


def test_grey_written_as_colour_loses_nothing(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([values] * 3, -1)).save(tmp_path / "x.png")
    pixels, lost = decode_image(tmp_path / "x.png", 1)
    np.testing.assert_array_equal(pixels[0], values)
    assert lost == ""


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
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "x.png")
    pixels, lost = decode_image(tmp_path / "x.png", 1)
    assert pixels.tolist() == [[[0, 100, 255]]]
    assert lost == "16 bits to 8"


def test_conversions_are_counted() -> None:
    lost = {Path("a.png"): "", Path("b.png"): "colour to greyscale", Path("c.png"): "16 bits to 8"}
    line = "images converted: 2 of 3 (16 bits to 8; colour to greyscale), the first is b.png"
    assert conversions(lost, 3) == line
    assert conversions({Path("a.png"): ""}, 1) == ""


# Crops


def test_crops_are_where_they_are_drawn(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(0, 200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(tmp_path / "x.png")
    crops = [decode_square(tmp_path / "x.png", 1, 50, 10**6, (place, 0.5)).pixels for place in (0.0, 0.5, 1.0)]
    assert [int(crop[0, 0, 0]) for crop in crops] == [0, 75, 150]
    assert all(crop.shape == (1, 50, 50) for crop in crops)
    assert decode_square(tmp_path / "x.png", 1, 25, 10**6).pixels.shape == (1, 25, 25)


def test_extreme_shapes_are_cropped_before_they_are_resized(tmp_path: Path) -> None:
    Image.new("L", (1, 60_000), 7).save(tmp_path / "x.png")
    assert (decode_square(tmp_path / "x.png", 1, 256, 10**6).pixels == 7).all()


# Splits


def listed(folder: Path, split: str = "train", **changes: object) -> Listing:
    return list_folder(folder, split, **{"test_fraction": 0.2, "first": 0, "labels": True, **changes})  # type: ignore[arg-type]


def touch(folder: Path, *names: str) -> None:
    """Files that are images by their names: listing opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_split_is_by_name_and_the_same_everywhere() -> None:
    names = [f"class/{index:04d}.png" for index in range(1000)]
    train, test = split_names(names, 0.1)
    assert sorted(train + test) == names
    assert 70 < len(test) < 130
    assert test[:5] == ["class/0001.png", "class/0002.png", "class/0003.png", "class/0006.png", "class/0008.png"]
    more = split_names([*names, "class/new.png"], 0.1)
    assert set(test) - {"class/new.png"} == set(more[1]) - {"class/new.png"}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_split_is_empty(count: int) -> None:
    for start in range(50):
        train, test = split_names([f"{start}-{index}.png" for index in range(count)], 0.1)
        assert train
        assert test


def test_class_folders(picture_folder: Path) -> None:
    train, test = listed(picture_folder, "train"), listed(picture_folder, "test")
    assert train.classes == test.classes == ("cats", "dogs")
    assert len(train.paths) + len(test.paths) == 30
    assert not set(train.paths) & set(test.paths)
    for listing in (train, test):
        named = [listing.classes[label] for label in listing.labels]
        assert [path.parent.name for path in listing.paths] == named
    assert listed(picture_folder, labels=False).classes == ()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_given_split(held_out: str, first: int, tmp_path: Path) -> None:
    touch(tmp_path, "train/b/0.png", "train/a/1.png", "train/a/2.png", f"{held_out}/a/3.png", f"{held_out}/a/4.png")
    touch(tmp_path, "sheet.png", "other/5.png")
    train, test = listed(tmp_path, "train", first=first), listed(tmp_path, "test", first=first)
    assert [path.name for path in train.paths] == ["1.png", "2.png", "0.png"]
    assert [path.name for path in test.paths] == ["3.png", "4.png"]
    assert train.classes == test.classes == ("a", "b")
    assert (train.labels, test.labels) == ((0, 0, 1), (0, 0))


def test_of_several_test_splits_the_first_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.png", "validation/1.png", "val/2.png")
    assert [path.name for path in listed(tmp_path, "test").paths] == ["2.png"]
    touch(tmp_path, "test/3.png")
    assert [path.name for path in listed(tmp_path, "test").paths] == ["3.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/0.png", "train/b/1.png", "2.png"], r"has train/, but none of test/, val/, validation/: .*/train as"),
        (["test/a/0.png", "test/b/1.png"], r"has test/, but no train/: "),
        (["val/0.png", "validation/1.png"], r"has val/ and validation/, but no train/: .*/val as"),
        (["train/a/0.png", "test/1.png"], r"images in train/ lie in class folders, those in test/ do not"),
        (["train/0.png", "val/a/1.png"], r"images in val/ lie in class folders, those in train/ do not"),
    ],
)
def test_half_a_split_is_no_class(names: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "test"):
        with pytest.raises(InputError, match=message):
            listed(tmp_path, split)


def test_train_among_other_classes_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{index}.png" for name in ("boat", "plane", "train") for index in range(5)))
    assert listed(tmp_path).classes == ("boat", "plane", "train")


def test_flat_splits_of_labelled_images_are_admitted_without_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/0.png", "test/1.png")
    assert listed(tmp_path, "train", labels=False).classes == ()


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "0.png", "1.png")
    folder = tmp_path / "set"
    touch(folder, "train/2.png")
    (folder / "val").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [path.name for path in listed(folder, "test").paths] == ["0.png", "1.png"]


def test_sorted_split_takes_the_first_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index:05d}.png" for index in range(5)))
    assert [path.name for path in listed(tmp_path, first=3).paths] == ["00000.png", "00001.png", "00002.png"]
    assert [path.name for path in listed(tmp_path, "test", first=3).paths] == ["00003.png", "00004.png"]
    with pytest.raises(InputError, match="has 5 images, none in the test split.*--data.split"):
        listed(tmp_path, "test", first=5)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="has no PNG, JPEG or WebP image"):
        listed(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        listed(tmp_path / "nowhere")
