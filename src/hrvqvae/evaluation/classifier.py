"""A small classifier of small greyscale images: whether samples are recognized as what they were asked to be.

It knows nothing of the models that it judges: it is trained on the images and labels of the train split alone.
Shapes: images (B, C, Y, X) float32 in [0, 1], at least 8 pixels a side; labels (B,) int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import batches, evaluation_batches
from hrvqvae.data.loading import load_images, note
from hrvqvae.errors import InputError

_BATCH, _RATE = 128, 2e-3
_TURN, _SHIFT = 0.15, 0.08  # radians, share of the side: how far a training image is moved at most


class Classifier(nn.Module):
    """image -> two stages of convolutions, each halving the sides -> features (B, 128) -> logits (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.MaxPool2d(2),
            ]  # fmt: skip

        self.body = nn.Sequential(
            *stage(channels, 16), *stage(16, 32), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 128), nn.ReLU()
        )
        self.head = nn.Linear(128, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, 128), what the last layer sees."""
        seen: Tensor = self.body(images * 2 - 1)
        return seen

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


@dataclass(frozen=True)
class Judge:
    """A trained classifier, in evaluation mode, and its accuracy on the test split."""

    classifier: Classifier
    accuracy: float

    @torch.inference_mode()
    def classes(self, images: Tensor) -> Tensor:
        """The class that each image is taken for: (B,) int64."""
        return torch.cat([self.classifier(some).argmax(1) for some in images.split(_BATCH)])  # type: ignore[no-untyped-call]


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images turned and shifted a little, each by its own draw."""
    turn = (torch.rand(len(images), generator=generator) * 2 - 1) * _TURN
    shift = (torch.rand(len(images), 2, generator=generator) * 2 - 1) * _SHIFT * 2
    rows = torch.stack([turn.cos(), -turn.sin(), shift[:, 0], turn.sin(), turn.cos(), shift[:, 1]], 1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(rows, list(images.shape), align_corners=False), align_corners=False)


def train_judge(config: DataConfig, epochs: int = 4, seed: int = 1, say: Callable[[str], None] = note) -> Judge:
    """Train a classifier on the train split, measure it on the test split.

    Raises:
        InputError: the data is not there, or has no classes.
    """
    images, test = (load_images(config, split, say) for split in ("train", "test"))
    if not images.classes:
        raise InputError(f"{config.dataset} has no classes: nothing can be recognized")
    torch.manual_seed(seed)
    classifier = Classifier(config.channels, len(images.classes))
    steps = max(1, epochs * len(images) // _BATCH)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(seed)
    stream = batches(images, batch_size=_BATCH, seed=seed, on_error=config.on_error)
    say(f"training the classifier that judges: {steps} steps")
    for _, batch in zip(range(steps), stream, strict=False):
        loss = cross_entropy(classifier(_moved(batch.images.float() / 255, generator)), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    stream.close()
    judge = Judge(classifier.eval().requires_grad_(False), 0.0)
    right = total = 0
    for batch in evaluation_batches(test, batch_size=_BATCH, on_error=config.on_error):
        right += int((judge.classes(batch.images.float() / 255) == batch.labels).sum())
        total += len(batch.labels)
    return Judge(classifier, right / max(total, 1))
