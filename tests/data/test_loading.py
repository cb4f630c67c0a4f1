"""From a configuration to the images of a split, and what broken input does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import data_root, load_images
from hrvqvae.utils.errors import InputError
from tests.conftest import drawn_digits
from tests.data.stored import folder_config


def paths_of(folder: Path, split: str = "train") -> list[Path]:
    """The files of a split, in order."""
    images = load_images(folder_config(folder, memory_mb=0), split)
    return [Path(images.where(index)) for index in range(len(images))]


def test_published_sets_are_held_in_memory(mnist_root: Path) -> None:
    config = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    images = load_images(config, "train")
    expected, labels = drawn_digits(96, 1)
    np.testing.assert_array_equal(np.stack([images.read(index, None) for index in range(96)])[:, 0], expected)
    np.testing.assert_array_equal(images.labels, labels)
    direct = load_images(DataConfig(dataset="mnist", root=str(mnist_root / "mnist"), size=12, channels=1), "test")
    assert len(direct) == 40


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="get it with: hrvqvae data get mnist"):
        load_images(DataConfig(dataset="mnist", root=str(tmp_path)), "train")
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path))
    with pytest.raises(InputError, match="imagenet is class folders"):
        load_images(DataConfig(dataset="imagenet", channels=3), "train")
    with pytest.raises(InputError, match=r"no folder .*/pets; name it with --data DIR, or take one of mnist, "):
        load_images(DataConfig(dataset="pets", channels=3), "train")


@pytest.mark.parametrize("fields", [{"channels": 3, "size": 12}, {"size": 28}])
def test_channels_and_size_of_a_published_set(fields: dict[str, int], mnist_root: Path) -> None:
    with pytest.raises(InputError, match=r"mnist has 1 channels of 12x12 pixels; data.channels is"):
        load_images(DataConfig(dataset="mnist", root=str(mnist_root), **fields), "train")


def test_root_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "variable"))
    assert data_root("given") == Path("given")
    assert data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("HRVQVAE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root(None).name == "hrvqvae"


@pytest.mark.parametrize("workers", [0, 2])
def test_small_folders_are_held_and_large_ones_decoded(workers: int, picture_folder: Path) -> None:
    held = load_images(folder_config(picture_folder, workers=workers), "train")
    decoded = load_images(folder_config(picture_folder, memory_mb=0), "train")
    assert held.pixels is not None
    assert decoded.pixels is None
    for index in range(len(decoded)):
        np.testing.assert_array_equal(held.read(index, None), decoded.read(index, None))
    assert load_images(folder_config(picture_folder, crop="random"), "train").pixels is None


def test_errors_of_workers_are_one_line(picture_folder: Path) -> None:
    """An error that no setting skips: here an image that is gone between listing and reading."""
    images = load_images(folder_config(picture_folder, memory_mb=0), "train")
    for path in paths_of(picture_folder):
        path.unlink()
    with pytest.raises(InputError, match="there is no such image") as caught:
        next(iter(evaluation_batches(images, batch_size=4, workers=2)))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("memory_mb", [0, 512])
def test_validation_images_are_cut_from_the_training_split(memory_mb: int, picture_folder: Path) -> None:
    config = folder_config(picture_folder, memory_mb=memory_mb)
    whole = load_images(config, "train")
    cut = dataclasses.replace(config, validation=0.2)
    parts = {split: load_images(cut, split) for split in ("train", "test")}
    assert len(parts["test"]) == len(whole) // 5

    def pixels(images: ImageSet) -> list[bytes]:
        return [images.read(index, None).tobytes() for index in range(len(images))]

    held = pixels(parts["test"])
    assert [one for one in pixels(whole) if one not in held] == pixels(parts["train"])
    assert set(held) <= set(pixels(whole))
    assert not set(held) & set(pixels(load_images(config, "test")))
    with pytest.raises(InputError, match="leaves one part empty"):
        load_images(dataclasses.replace(config, validation=0.01), "test")
