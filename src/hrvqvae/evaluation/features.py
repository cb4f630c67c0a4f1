"""Frechet distances between sets of images, by features that are named for what they are.

Images are batches (B, C, Y, X) float32 in [0, 1], C is 1 or 3. Only a distance by Inception's features is called FID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images
from hrvqvae.errors import InputError
from hrvqvae.evaluation.classifier import Classifier, train_judge
from hrvqvae.perceptual import EfficientNetDistance, published
from hrvqvae.perceptual.distance import three_channels
from hrvqvae.runs import storage

_INCEPTION_WIDTH, _CLASSIFIER_WIDTH = 2048, 128


class Features(nn.Module):
    """Features of images, as torchmetrics takes them.

    Args:
        distance: true name of the distance that they give.
        source: what they are features of, where that name does not tell.
        extract: (B, C, Y, X) -> (B, width).
    """

    def __init__(self, distance: str, source: str, extract: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.distance, self.source, self.extract, self.num_features = distance, source, extract, width

    def title(self, count: int) -> str:
        """Name of the distance of `count` images: it depends on their number, so that belongs to the name."""
        return f"{self.distance} of {count:,} images" + (f", {self.source}" if self.source else "")

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, num_features)."""
        return self.extract(images)


class FrechetDistance:
    """Frechet distance (Heusel et al. 2017, equation 6) of sets of images from one set, whose features are kept.

    Attributes:
        title: its true name, with the number of images of that set; the sets that are compared should be as large.

    Raises:
        InputError: fewer than two images, which have no covariance.
    """

    def __init__(self, features: Features, real: Sequence[Tensor]) -> None:
        count = sum(len(images) for images in real)
        if count < 2:
            raise InputError(f"a Frechet distance needs two test images at least; there is {count}")
        self.title = features.title(count)
        self._metric = FrechetInceptionDistance(feature=features, normalize=True, reset_real_features=False)
        self._add(real, real=True)

    @torch.inference_mode()
    def _add(self, batches: Sequence[Tensor], *, real: bool) -> None:
        for images in batches:
            self._metric.update(images, real=real)

    def __call__(self, batches: Sequence[Tensor]) -> float:
        """The distance of those images from the kept ones."""
        self._metric.reset()
        self._add(batches, real=False)
        distance: Tensor = self._metric.compute()
        return float(distance)


def _inception() -> Features:
    with published.INCEPTION.read():
        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(_INCEPTION_WIDTH)])

    def extract(images: Tensor) -> Tensor:
        seen: Tensor = network(three_channels((images * 255).byte()))
        return seen

    return Features("FID", "", extract, _INCEPTION_WIDTH)


def _of_classifier(path: Path, config: DataConfig, classes: int, say: Callable[[str], None]) -> Features:
    if not path.is_file():
        judge = train_judge(config, say=say)
        storage.write(path, judge.classifier.state_dict(), {"kind": "classifier", "accuracy": judge.accuracy})
    classifier = Classifier(config.channels, classes)
    classifier.load_state_dict(storage.read(path)[0])
    network = classifier.eval().requires_grad_(False)
    source = f"features of a classifier of {config.dataset}"
    return Features("Frechet distance", source, network.features, _CLASSIFIER_WIDTH)


def features_of(folder: Path, config: DataConfig, say: Callable[[str], None]) -> Features:
    """The best features there are for images of that data: Inception's, where its weights are on this machine.

    Else, for greyscale images with classes, those of a classifier that is trained on them, once for a folder; else
    efficientnet-lite0's.

    Raises:
        InputError: none of them can be had, or the data is not there.
    """
    if published.INCEPTION.there:
        return _inception()
    classes = len(load_images(config, "test", say).classes)
    if config.channels == 1 and classes:
        return _of_classifier(folder / "classifier.safetensors", config, classes, say)
    if not EfficientNetDistance.there():
        raise InputError(
            f"images in colour, or without classes, are compared by {EfficientNetDistance.name} or Inception: "
            "pip install 'hrvqvae[perceptual]'"
        )
    network = EfficientNetDistance()
    return Features("Frechet distance", f"{network.name} features", network.pooled, network.width)
