"""Images that compress: smooth colours with a bar or a disc in each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smooth_images(count: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """(count, channels, height, width) uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    images = np.empty((count, channels, height, width), np.uint8)
    for image in images:
        slopes, centre = generator.uniform(-100, 100, (channels, 2)), generator.uniform(0.2, 0.8, 2)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < generator.uniform(0.02, 0.1)
        for plane, (down, across) in zip(image, slopes, strict=True):
            plane[:] = np.clip(128 + down * y + across * x + disc * generator.uniform(-80, 80), 0, 255)
    return images
