"""Which images, and how they become the pixels that a model sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrvqvae.config.checks import require

_PILLOW_PIXELS = 178_956_970  # beyond this Pillow refuses by itself


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become the pixels that a model sees (Table 5 in docs/paper-tables.md).

    A folder of images is divided as `data.images.list_folder` says: `train/` beside `test/`, `val/` or `validation/`
    is a given split; without one, `split` decides; one of the two alone is an error. Tars, Parquet files and arrays
    are taken wherever a folder of images is, and divided as `data.sources.opening.open_stored` says.

    Attributes:
        dataset: a data set's name (mnist, fashion-mnist, cifar10), or an image folder's (imagenet, ffhq, photos, ...).
        root: folder of the data, or tars, Parquet files or arrays, by a name or a pattern; None takes the variable
            HRVQVAE_DATA, else the user's cache folder.
        size: height and width in pixels that images of a folder are resized and cropped to.
        channels: 1 (greyscale) or 3 (RGB). Images of a folder are converted, and how many of them lost something
            (colour, transparency) is told.
        train_samples, test_samples: published counts (0: not published); they give the published training steps.
        split: how a folder without a given split is divided: by a hash of the file name, or its first `train_samples`
            names in sorted order for training ("sorted", FFHQ's convention), which needs that count.
        test_fraction: share of the files that goes to the test split where the split is by hash.
        crop: random crops of the training images, or the centre one; test images always take the centre.
        flip: mirror half of the training images.
        labels: whether class folders are classes.
        on_error: a broken image stops the run, or is skipped and counted.
        max_pixels: largest image that is decoded, in pixels.
        workers: processes that decode images.
        memory_mb: images without a random crop are held in memory as uint8 where all take up to this size.
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
        for name in ("train_samples", "test_samples"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "at least 0")
        require(
            self.split != "sorted" or self.train_samples > 0, "data.train_samples", self.train_samples,
            "above 0 where data.split is sorted: so many names in sorted order are the train split",
        )  # fmt: skip
        for name in ("workers", "memory_mb"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "at least 0")
        require(1 <= self.max_pixels <= _PILLOW_PIXELS, "data.max_pixels", self.max_pixels, f"1 to {_PILLOW_PIXELS}")
