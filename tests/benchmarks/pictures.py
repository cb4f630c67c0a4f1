"""Data for the measurements: a small Fashion-MNIST, and smooth colours with a disc in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hrvqvae.data.sets.mnist import write_idx
from tests.conftest import drawn_digits


def fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set in Fashion-MNIST's form, where commands look for it."""
    folder = root / "fashion-mnist"
    folder.mkdir()
    for part, count, seed in (("train", 40, 1), ("t10k", 20, 2)):
        images, labels = drawn_digits(count, seed, 28)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setenv("HRVQVAE_DATA", str(root))


def smooth_images(count: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """(count, channels, height, width) uint8, which compress."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    images = np.empty((count, channels, height, width), np.uint8)
    for image in images:
        slopes, centre = generator.uniform(-100, 100, (channels, 2)), generator.uniform(0.2, 0.8, 2)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < generator.uniform(0.02, 0.1)
        for plane, (down, across) in zip(image, slopes, strict=True):
            plane[:] = np.clip(128 + down * y + across * x + disc * generator.uniform(-80, 80), 0, 255)
    return images
