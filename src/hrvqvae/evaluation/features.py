"""Features of images, by which sets of images are compared, each under its true name.

Images are batches (B, C, Y, X) float32 in [0, 1], C is 1 or 3.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.judge import has_trusted_features, judge_of
from hrvqvae.models import published
from hrvqvae.models.perceptual import EfficientNetDistance, three_channels
from hrvqvae.utils.errors import InputError

_INCEPTION_WIDTH = 2048


class Features:
    """Features of images.

    Args:
        source: what they are features of, such as "efficientnet-lite0"; "" for Inception's, whose Frechet and kernel
            distances have names of their own.
        extract: (B, C, Y, X) -> (B, width).
    """

    def __init__(self, source: str, extract: Callable[[Tensor], Tensor]) -> None:
        self.source, self._extract = source, extract

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, width) float64."""
        return self._extract(images).double()

    def title(self, published_name: str, plain_name: str, count: int) -> str:
        """Name of a distance of `count` images: it depends on their number, so that belongs to the name.

        Args:
            published_name: of the distance by Inception's features, such as FID.
            plain_name: of the same distance by any others, such as Frechet distance.
        """
        if not self.source:
            return f"{published_name} of {count:,} images"
        return f"{plain_name} of {count:,} images, features of {self.source}"


def _inception() -> Features:
    with published.INCEPTION.read():
        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(_INCEPTION_WIDTH)])

    def extract(images: Tensor) -> Tensor:
        seen: Tensor = network(three_channels((images * 255).byte()))
        return seen

    return Features("", extract)


def features_of(folder: Path, config: DataConfig, say: Callable[[str], None]) -> Features:
    """The best features there are for images of that data: Inception's, where its weights are on this machine.

    Else those of the data set's judge, for grey images of any data with classes; it is kept in `folder` where it had to
    be trained. Else efficientnet-lite0's.

    Raises:
        InputError: none of them can be had, or the data is not there.
    """
    if published.INCEPTION.there:
        return _inception()
    if has_trusted_features(config) and load_images(config, "test", say).classes:
        judge = judge_of(config, folder / "judge.safetensors", say)
        return Features(f"a classifier of {config.dataset}", judge.classifier.features)
    if not EfficientNetDistance.there():
        raise InputError(
            f"images in colour, or without classes, are compared by {EfficientNetDistance.name} or Inception: "
            "pip install 'hrvqvae[perceptual]'"
        )
    network = EfficientNetDistance()
    return Features(network.name, network.pooled)
