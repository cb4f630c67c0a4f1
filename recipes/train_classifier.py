"""Train the classifier of a data set, which measures samples.

python recipes/train_classifier.py DATASET --out FILE
python recipes/train_classifier.py RUN --out RUN/classifier.safetensors
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

from hrvqvae.checkpoints.folder import open_run
from hrvqvae.config import Config, DataConfig
from hrvqvae.config.registry import DATASETS
from hrvqvae.data.batches import batches, evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import (
    TrainedClassifier,
    build_classifier,
    describe_images,
    write_classifier,
)
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

_BATCH = 128


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
    """The training of a classifier by AdamW with a one-cycle learning rate."""

    augment: Callable[[Tensor, torch.Generator], Tensor]  #: changes each image of a batch at random
    epochs: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0


SMALL = Recipe(augment=turn_and_shift, epochs=4)
"""For digits and similar images; trains in a minute."""

NATURAL = Recipe(
    augment=shift_and_flip,
    epochs=8,
    learning_rate=5e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
)
"""For natural images of about 32x32 pixels; trains in half an hour to an hour on two CPU cores."""


@torch.random.fork_rng(devices=())
def train_classifier(
    config: DataConfig, seed: int = 1, epochs: int | None = None
) -> TrainedClassifier:
    """Train a classifier on the training split of a data set, and measure its accuracy on the test
    split.

    Raises InputError if the data is missing or has no classes.
    """
    images, test_images = (load_images(config, split) for split in ("train", "test"))
    if not images.classes:
        raise InputError(f"{config.dataset} has no classes to classify")
    recipe = SMALL if config.channels == 1 else NATURAL

    # network, optimizer and learning rate
    torch.manual_seed(seed)
    classifier = build_classifier(config, len(images.classes)).to(memory_format=torch.channels_last)
    steps = max(1, (epochs or recipe.epochs) * len(images) // _BATCH)
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
            loss.backward()
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "dataset", help="data set in the folder HRVQVAE_DATA, such as cifar10, or a run"
    )
    parser.add_argument("--out", type=Path, required=True, help="write the classifier to this file")
    parser.add_argument("--epochs", type=int, help="train for so many epochs (default: 4 or 8)")
    parser.add_argument("--seed", type=int, default=1, help="draw the weights from this seed")
    options = parser.parse_args(arguments)
    out = options.out
    if out.exists():
        parser.error(f"{out} is there already")
    if options.dataset in DATASETS:
        settings = DATASETS.get(options.dataset).settings
        fields = {name: value for name, (value, _) in settings.items() if name.startswith("data.")}
        data = Config().replace(**fields).data
    else:
        data = open_run(options.dataset).read_config().data
    trained = train_classifier(data, options.seed, options.epochs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_classifier(out, trained)
    size = out.stat().st_size / 1e6
    print(f"{out}: accuracy {trained.accuracy:.2%} on the test images, {size:.2f} MB")


if __name__ == "__main__":
    main()
