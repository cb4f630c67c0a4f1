"""What a classifier, trained on the data alone, takes samples for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images, note
from hrvqvae.errors import InputError
from hrvqvae.evaluation.judge import judge_of
from hrvqvae.runs.trained import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """What a classifier, trained on the data alone, takes samples for.

    Attributes:
        samples: drawn, a class after the other.
        recognized: share that is taken for the class that was asked for.
        classifier_accuracy: its accuracy on the test split.
    """

    samples: int
    recognized: float
    classifier_accuracy: float


def recognize(
    model: TrainedModel, config: DataConfig, count: int, *, seed: int = 0, say: Callable[[str], None] = note
) -> Recognized:
    """Draw `count` images, classes in turn, and have them classified.

    Raises:
        InputError: a level has no prior; no classes, or others than the data has; the data is not there.
    """
    classes = model.classes
    if not classes:
        raise InputError(f"the priors of {model.run} know no classes: nothing can be recognized")
    if load_images(config, "train", say).classes != classes:
        raise InputError(f"the priors of {model.run} know other classes than the data has: {', '.join(classes)}")
    judge = judge_of(config, say=say)
    right = 0
    for number, name in enumerate(classes):
        wanted = count // len(classes) + (number < count % len(classes))
        if wanted:
            drawn = model.draw(wanted, seed=seed + number, class_name=name)
            right += int((judge.classify(drawn.images) == number).sum())
    return Recognized(samples=count, recognized=right / count, classifier_accuracy=judge.accuracy)
