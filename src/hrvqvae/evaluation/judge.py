"""The judge of a data set: a classifier that knows nothing of the models whose images it judges.

It is trained on the images and labels of the train split alone, as the data set's entry says. The judges of some data
sets are in the package; others are trained where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.config import DataConfig
from hrvqvae.config.presets import data_config
from hrvqvae.config.registry import DATASETS, imported
from hrvqvae.data.batches import Batch, batches, evaluation_batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import load_images, note
from hrvqvae.evaluation.classifier import SMALL, Classifier, Recipe
from hrvqvae.training.device import computes_bf16
from hrvqvae.utils.errors import DamagedFileError, InputError

SHIPPED = Path(__file__).parent.parent / "weights" / "judges"
"""Judges inside the package, a file NAME.safetensors each."""

_BATCH, _SEED = 128, 1


@dataclass(frozen=True)
class Judge:
    """A trained classifier, in evaluation mode, with its accuracy on the test split and the classes that it knows."""

    classifier: Classifier
    accuracy: float
    classes: tuple[str, ...]

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """The class that each image (B, C, Y, X) in [0, 1] is taken for: (B,) int64."""
        return torch.cat([self.classifier(some).argmax(1) for some in images.split(_BATCH)])  # type: ignore[no-untyped-call]


def recipe_of(config: DataConfig) -> Recipe:
    """How the judge of that data is trained: as the data set's entry says, else as a small one."""
    named = DATASETS.get(config.dataset).judge if config.dataset in DATASETS else ""
    recipe: Recipe = imported(named) if named else SMALL
    return recipe


def has_trusted_features(config: DataConfig) -> bool:
    """Whether images of that data are compared by their judge's features: its entry names one, or they are grey."""
    return config.channels == 1 or bool(config.dataset in DATASETS and DATASETS.get(config.dataset).judge)


def shipped_judge(config: DataConfig) -> Path | None:
    """The weights of the judge inside the package, of images of that data set, size and channels, or None."""
    path = SHIPPED / f"{config.dataset}.safetensors"
    if not path.is_file() or config.dataset not in DATASETS:
        return None
    known = data_config(DATASETS.get(config.dataset))
    return path if (known.size, known.channels) == (config.size, config.channels) else None


def judge_of(config: DataConfig, kept: Path | None = None, say: Callable[[str], None] = note) -> Judge:
    """The judge of that data: the one inside the package, else the one that is kept, else one that is trained now.

    Args:
        kept: a weights file, written where the judge had to be trained.

    Raises:
        InputError: the data is not there, or has no classes.
        DamagedFileError: a weights file is damaged, or is no judge of that data.
    """
    shipped = shipped_judge(config)
    if shipped:
        return read_judge(shipped, config)
    if kept and kept.is_file():
        return read_judge(kept, config)
    judge = train_judge(config, say=say)
    if not kept:
        return judge
    write_judge(kept, judge)
    return read_judge(kept, config)  # in half precision, as every later process has it


def write_judge(path: Path, judge: Judge) -> None:
    """Keep a judge as a file, its weights in half precision. Raises OSError where it can't be written."""
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in judge.classifier.state_dict().items()
    }
    storage.write(path, half, {"kind": "judge", "accuracy": judge.accuracy, "classes": judge.classes})


def read_judge(path: Path, config: DataConfig) -> Judge:
    """The judge in a file. Raises DamagedFileError where it is damaged, or is no judge of that data."""
    weights, meta = storage.read(path)
    try:
        classes = tuple(meta["classes"])
        classifier = recipe_of(config).network(config.channels, len(classes))
        classifier.load_state_dict(weights)
        return Judge(classifier.eval().requires_grad_(False), float(meta["accuracy"]), classes)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(f"{path} is no judge of {config.dataset}; delete it, and one is trained") from error


def train_judge(
    config: DataConfig, epochs: int | None = None, seed: int = _SEED, say: Callable[[str], None] = note
) -> Judge:
    """Train the judge of that data on the train split, measure it on the test split.

    Args:
        epochs: of the train split; None takes as many as its recipe says.

    Raises:
        InputError: the data is not there, or has no classes.
    """
    images, test = (load_images(config, split, say) for split in ("train", "test"))
    if not images.classes:
        raise InputError(f"{config.dataset} has no classes: nothing can be recognized")
    recipe = recipe_of(config)
    torch.manual_seed(seed)
    classifier = recipe.network(config.channels, len(images.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(1, (recipe.epochs if epochs is None else epochs) * len(images) // recipe.batch_size)
    say(f"training the classifier that judges {config.dataset}: {steps:,} steps")
    stream = batches(images, batch_size=recipe.batch_size, seed=seed, on_error=config.on_error)
    _train(classifier, recipe, steps, stream, seed, say)
    stream.close()
    judge = Judge(classifier.eval().requires_grad_(False), 0.0, images.classes)
    return Judge(judge.classifier, _accuracy(judge, test, config.on_error), images.classes)


def _train(
    classifier: Classifier, recipe: Recipe, steps: int, stream: Iterator[Batch], seed: int, say: Callable[[str], None]
) -> None:
    """Take so many steps: one cycle of the learning rate, in bfloat16 where the processor multiplies it."""
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    generator = torch.Generator().manual_seed(seed)
    bf16 = computes_bf16(torch.device("cpu"))
    for step, batch in zip(range(1, steps + 1), stream, strict=False):
        moved = recipe.augment(batch.images.float() / 255, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = classifier(moved.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            say(f"step {step:,}  loss {float(loss.detach()):.3f}")


def _accuracy(judge: Judge, images: ImageSet, on_error: str) -> float:
    """Share of the images that are classified rightly."""
    right = total = 0
    for batch in evaluation_batches(images, batch_size=_BATCH, on_error=on_error):
        right += int((judge.classify(batch.images.float() / 255) == batch.labels).sum())
        total += len(batch.labels)
    return right / max(total, 1)
