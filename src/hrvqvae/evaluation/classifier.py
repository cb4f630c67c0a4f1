"""Classifiers of data sets: they check the classes of samples, and give features for distances
between images.

A classifier trains on the training split, by the recipe in the data set's registry entry or else by
`SMALL`. The package holds trained classifiers for some data sets; others are trained when they are
needed.

Shapes: images (B, C, Y, X) float32 in [0, 1], at least 8 pixels per side; labels (B,) int64.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

from hrvqvae.checkpoints import storage
from hrvqvae.config import DataConfig
from hrvqvae.config.registry import DATASETS
from hrvqvae.data.batches import batches, evaluation_batches
from hrvqvae.data.loading import load_images, open_images
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.progress import note

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


def turn_and_shift(images: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate each image by up to 0.15 radians and shift it by up to 8% of a side, at random."""
    turn = (torch.rand(len(images), generator=rng) * 2 - 1) * 0.15
    shift = (torch.rand(len(images), 2, generator=rng) * 2 - 1) * 0.08 * 2
    rows = [turn.cos(), -turn.sin(), shift[:, 0], turn.sin(), turn.cos(), shift[:, 1]]
    affine = torch.stack(rows, 1).view(-1, 2, 3)
    grid = affine_grid(affine, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def shift_and_flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of a side with mirrored borders, and flip half of the
    images, at random.
    """
    # Pad, then take a window of each image at an offset of its own.
    count, _, height, width = images.shape
    reach = height // 8
    padded = pad(images, (reach, reach, reach, reach), mode="reflect")
    down, right = torch.randint(0, 2 * reach + 1, (2, count), generator=rng)
    flipped = torch.rand(count, generator=rng) < 0.5
    order = torch.arange(width)
    columns = right[:, None] + torch.where(flipped[:, None], width - 1 - order, order)
    rows = down[:, None] + torch.arange(height)
    image = torch.arange(count)[:, None, None]
    # The indices give (B, Y, X, C): a slice between index tensors comes last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The network of a classifier, and its training by AdamW with a one-cycle learning rate."""

    network: Callable[[int, int], Classifier]  #: builds the classifier from (channels, classes)
    augment: Callable[[Tensor, torch.Generator], Tensor]  #: changes each image of a batch at random
    epochs: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0


SMALL = Recipe(network=small_classifier, augment=turn_and_shift, epochs=4)
"""For digits and similar images; trains in a minute."""

NATURAL = Recipe(
    network=natural_classifier,
    augment=shift_and_flip,
    epochs=8,
    learning_rate=5e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
)
"""For natural images of about 32x32 pixels; trains in half an hour to an hour on two CPU cores."""


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


def find_recipe(config: DataConfig) -> Recipe | None:
    """Return the recipe in the data set's registry entry, or None if there is no entry or no
    recipe.
    """
    reference = DATASETS.get(config.dataset).classifier if config.dataset in DATASETS else ""
    return resolve_name(reference) if reference else None


def obtain_classifier(config: DataConfig, path: Path) -> TrainedClassifier:
    """Return the classifier of a data set: from the package, else from the file `path`, else newly
    trained.

    A classifier serves only the images that it was trained on, whatever their name. A newly trained
    classifier is written to `path`, also if the file there is of other images. Raises as
    `train_classifier` and `read_classifier`.
    """
    shipped = _SHIPPED / f"{config.dataset}.safetensors"
    # It was trained on the whole training split, and also serves runs with `data.validation`.
    if shipped.is_file() and _is_of(shipped, replace(config, validation=0.0)):
        return read_classifier(shipped, config)
    if path.is_file():
        if _is_of(path, config):
            return read_classifier(path, config)
        note(f"{path} was trained on other images, and is replaced")
    trained = train_classifier(config)
    try:
        write_classifier(path, trained)
    except OSError as error:
        note(
            f"{path} can't be written ({error.strerror}): the classifier is trained again next time"
        )
        return trained
    return read_classifier(path, config)  # with weights in half precision, as in later calls


def _is_of(path: Path, config: DataConfig) -> bool:
    """Return whether the classifier in a file was trained on these images."""
    return storage.read_meta(path).get("images") == describe_images(config)


def describe_images(config: DataConfig) -> str:
    """Return the size of a data set's images and a digest of both splits. Raises InputError if they
    are missing.
    """
    digests = (open_images(config, split).digest() for split in ("train", "test"))
    height, width = config.image_size
    return f"{height}x{width}x{config.channels} {' '.join(digests)}"


def write_classifier(path: Path, trained: TrainedClassifier) -> None:
    """Write a classifier to a file, with weights in half precision. Raises OSError if it can't be
    written.
    """
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
        classifier = (find_recipe(config) or SMALL).network(config.channels, len(classes))
        classifier.load_state_dict(weights)
        accuracy = float(meta["accuracy"])
        images = str(meta.get("images", ""))
        return TrainedClassifier(classifier.eval().requires_grad_(False), accuracy, classes, images)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(
            f"{path} is no classifier of {config.dataset}; delete it to train a new classifier"
        ) from error


@torch.random.fork_rng(devices=())
def train_classifier(config: DataConfig, seed: int = 1) -> TrainedClassifier:
    """Train a classifier on the training split of a data set, and measure its accuracy on the test
    split.

    Raises InputError if the data is missing or has no classes.
    """
    images, test_images = (load_images(config, split) for split in ("train", "test"))
    if not images.classes:
        raise InputError(f"{config.dataset} has no classes to classify")
    recipe = find_recipe(config) or SMALL

    # network, optimizer and learning rate
    torch.manual_seed(seed)
    classifier = recipe.network(config.channels, len(images.classes)).to(
        memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    steps = max(1, recipe.epochs * len(images) // _BATCH)
    note(f"training the classifier of {config.dataset}: {steps:,} steps")
    rate = recipe.learning_rate
    decay = recipe.weight_decay
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=decay, fused=True)
    # The last rate, which is almost 0, is set after the last update.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)

    # training, with images that are changed at random
    rng = torch.Generator().manual_seed(seed)
    bf16 = computes_bf16(torch.device("cpu"))
    with closing(batches(images, batch_size=_BATCH, seed=seed)) as train_batches:
        for step, batch in zip(range(1, steps + 1), train_batches, strict=False):
            augmented = recipe.augment(batch.images.float() / 255, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = classifier(augmented.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(
                logits.float(), batch.labels, label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % 500 == 0:
                note(f"step {step:,}  loss {float(loss.detach()):.3f}")

    # accuracy on the test split
    classifier.eval().requires_grad_(False)
    trained = TrainedClassifier(classifier, 0.0, images.classes, describe_images(config))
    test_batches = evaluation_batches(test_images, batch_size=_BATCH)
    correct = torch.cat(
        [trained.classify(batch.images.float() / 255) == batch.labels for batch in test_batches]
    )
    return replace(trained, accuracy=float(correct.double().mean()))
