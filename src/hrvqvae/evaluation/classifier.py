"""Classifiers of data sets: they check the classes of samples, and give features for distances
between images.

The package holds classifiers of some data sets; recipes/train_classifier.py trains others.

Shapes: images (B, C, Y, X) float32 in [0, 1], at least 8 pixels per side; labels (B,) int64.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.config import DataConfig
from hrvqvae.data.loading import open_images
from hrvqvae.utils.errors import DamagedFileError, InputError

_SHIPPED = Path(__file__).parent.parent / "weights" / "classifiers"  # files DATASET.safetensors
_BATCH = 128


class Classifier(nn.Module):
    """A body that maps images to features (B, width), and a linear head that maps features to
    logits (B, classes).
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of images."""
        return self.body(images * 2 - 1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, *, halve: bool = False) -> list[nn.Module]:
    pooling = [nn.MaxPool2d(2)] if halve else []
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        *pooling,
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def small_classifier(channels: int, classes: int) -> Classifier:
    """Return an untrained network with 128 features for digits."""
    body = nn.Sequential(
        *_convolution(channels, 16),
        *_convolution(16, 16),
        nn.MaxPool2d(2),
        *_convolution(16, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
    )
    return Classifier(body, 128, classes)


class _Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.branch(images)  # type: ignore[no-any-return]


def natural_classifier(channels: int, classes: int) -> Classifier:
    """Return an untrained network with 192 features for natural images of about 32x32 pixels.

    The network is a narrow form of fast classifiers of CIFAR10 (D. Page, "How to train your
    ResNet", 2018; K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
    """
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 2),
        nn.ReLU(),
        *_convolution(16, 32, halve=True),
        *_convolution(32, 32),
        *_convolution(32, 96, halve=True),
        *_convolution(96, 96),
        *_convolution(96, 192, halve=True),
        _Residual(192),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, 192, classes)


def build_classifier(config: DataConfig, classes: int) -> Classifier:
    """Return the untrained network of a data set's classifier."""
    build = small_classifier if config.channels == 1 else natural_classifier
    return build(config.channels, classes)


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier in evaluation mode.

    Attributes:
        accuracy: on the test split.
        classes: names of the classes.
        images: `describe_images` of the images that it was trained and tested on.
    """

    classifier: Classifier
    accuracy: float
    classes: tuple[str, ...]
    images: str

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """Return the predicted class (B,) int64 of each image."""
        batches = torch.split(images, _BATCH)
        return torch.cat([self.classifier(batch).argmax(1) for batch in batches])


def find_classifier(config: DataConfig, path: Path) -> TrainedClassifier:
    """Return the classifier of a data set: from the package, or from the file `path`.

    A classifier serves only the images that it was trained on, whatever their name. Raises
    InputError if there is none, or as `read_classifier`.
    """
    # The shipped one was trained on the whole training split, and serves every share of it.
    shipped = _SHIPPED / f"{config.dataset}.safetensors"
    whole = replace(config, validation=0.0)
    for file, trained_on in ((shipped, whole), (path, config)):
        if not file.is_file():
            continue
        if storage.read_meta(file).get("images") == describe_images(trained_on):
            return read_classifier(file, config)
    raise InputError(
        f"samples of {config.dataset} need a classifier of its images in {path}; make it with"
        " recipes/train_classifier.py"
    )


def describe_images(config: DataConfig) -> str:
    """Return the size of a data set's images and a digest of both splits. Raises InputError if they
    are missing.
    """
    digests = (open_images(config, split).digest() for split in ("train", "test"))
    height, width = config.image_size
    return f"{height}x{width}x{config.channels} {' '.join(digests)}"


def write_classifier(path: Path, trained: TrainedClassifier) -> None:
    """Write a classifier to a file, with weights in half precision."""
    half = storage.compact_weights(trained.classifier.state_dict(), matrices=False)
    meta = {"accuracy": trained.accuracy, "classes": trained.classes, "images": trained.images}
    storage.write(path, half, {"kind": "classifier", **meta})


def read_classifier(path: Path, config: DataConfig) -> TrainedClassifier:
    """Read a classifier of a data set from a file. Raises DamagedFileError if the file is damaged
    or does not fit.
    """
    weights, meta = storage.read(path)
    try:
        classes = tuple(meta["classes"])
        classifier = build_classifier(config, len(classes))
        classifier.load_state_dict(weights)
        classifier.eval().requires_grad_(False)
        return TrainedClassifier(classifier, meta["accuracy"], classes, meta["images"])
    except (KeyError, RuntimeError) as error:
        raise DamagedFileError(f"{path} is no classifier of {config.dataset}; delete it") from error
