"""What is trained does not depend on where the images lie: a folder, tars, Parquet or arrays give the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.data.packing import pack
from tests.conftest import drawn_digits, with_data, with_training
from tests.trained_run import train_autoencoder


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    """The same 12x12 images with a given split, form by form."""
    roots = {name: tmp_path / name for name in ("folder", "tar", "parquet", "npy")}
    arrays = {}
    for split, count in (("train", 50), ("test", 20)):
        images, _ = drawn_digits(count, count)
        (roots["folder"] / split).mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(roots["folder"] / split / f"{number:03d}.png")
        arrays[f"{split}_images"] = images
    for form in ("tar", "parquet"):
        pack(roots["folder"], roots[form] / "digits", form, shard_bytes=2_000, say=lambda _: None)
        assert len(list(roots[form].glob("*-train-*"))) > 1
    roots["npy"].mkdir()
    for name, array in arrays.items():
        np.save(roots["npy"] / f"{name}.npy", array)
    return roots


def trained(config: Config, out: Path, **steps: int) -> dict[str, torch.Tensor]:
    """The weights after training to each number of steps in turn, in one run folder."""
    for number, most in enumerate(steps.values()):
        train_autoencoder(
            with_training(config, max_steps=most), RunFolder(out), resume=number > 0, say=lambda _: None
        )  # fmt: skip
    return storage.read(RunFolder(out).model)[0]


def test_every_form_trains_to_the_bits_of_a_folder(tiny: Config, stored: dict[str, Path], tmp_path: Path) -> None:
    """Live from where they lie, with flips: 50 images and 7 steps of 16 are two epochs and more."""
    config = with_training(with_data(tiny, dataset="digits", crop="random", flip=True), schedule="constant")
    expected = trained(with_data(config, root=str(stored["folder"])), tmp_path / "runs" / "folder", all=7)
    for name, root, workers, steps in (
        ("tar", stored["tar"] / "digits-{train,test}-00000*.tar", 2, {"some": 3, "all": 7}),
        ("parquet", stored["parquet"], 2, {"all": 7}),
        ("npy", stored["npy"], 0, {"all": 7}),
    ):
        found = trained(with_data(config, root=str(root), workers=workers), tmp_path / "runs" / name, **steps)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
