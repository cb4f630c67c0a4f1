"""Which images, and how they become the pixels that a model sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.checks import require

_PILLOW_PIXELS = 178_956_970  # beyond this Pillow refuses by itself


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become the pixels that a model sees (spec.md Table 5).

    Attributes:
        dataset: mnist, fashion-mnist, cifar10, or the name of an image folder (imagenet, ffhq, photos, ...).
        root: folder of the data; None takes the variable HRVQVAE_DATA, else the user's cache folder.
        size: height and width in pixels that images of a folder are resized and cropped to.
        channels: 1 (greyscale) or 3 (RGB).
        train_samples, test_samples: published counts (0: not published); they give the published training steps.
        split: how a folder without train/ and test/ is divided: by a hash of the file name, or its first
            `train_samples` names in sorted order for training ("sorted", FFHQ's convention).
        test_fraction: share of the files that goes to the test split where the split is by hash.
        crop: random crops of the training images, or the centre one; test images always take the centre.
        flip: mirror half of the training images.
        labels: whether class folders are classes.
        on_error: a broken image stops the run, or is skipped and counted.
        max_pixels: largest image that is decoded, in pixels.
        workers: processes that decode the images of a folder.
        memory_mb: folders whose images have no random crop are held in memory as uint8 up to this size.
    """

    dataset: str = "mnist"
    root: str | None = None
    size: int = 28
    channels: int = 1
    train_samples: int = 0
    test_samples: int = 0
    split: Literal["hash", "sorted"] = "hash"
    test_fraction: float = 0.1
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    labels: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    max_pixels: int = 64_000_000
    workers: int = 2
    memory_mb: int = 512

    def __post_init__(self) -> None:
        require(self.size >= 1, "data.size", self.size, "at least 1 pixel")
        require(self.channels in (1, 3), "data.channels", self.channels, "1 (greyscale) or 3 (RGB)")
        require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "between 0 and 1")
        require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        require(1 <= self.max_pixels <= _PILLOW_PIXELS, "data.max_pixels", self.max_pixels, f"1 to {_PILLOW_PIXELS}")
