"""What the judge of the data takes samples for, and how far they are from real images by what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images, note
from hrvqvae.evaluation.features import Features
from hrvqvae.evaluation.judge import Judge, judge_of
from hrvqvae.evaluation.sets import RealImages, SetDistances
from hrvqvae.priors.sampling_params import SamplingParams
from hrvqvae.utils.errors import InputError

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """What the judge, trained on the data alone, takes samples for.

    Attributes:
        samples: drawn, a class after the other.
        guidance: that they were drawn with.
        recognized: share that is taken for the class that was asked for.
        classifier_accuracy: the judge's accuracy on the test split.
        reconstructions_recognized: share of reconstructions of test images that are taken for their class: what samples
            of this autoencoder can hope to reach.
        compared: images in each set that has a distance from as many test images.
        frechet: true name of that distance.
        distances: of "samples", of "reconstructions" of those test images, and of "training images".
    """

    samples: int
    guidance: float
    recognized: float
    classifier_accuracy: float
    reconstructions_recognized: float
    compared: int
    frechet: str
    distances: dict[str, SetDistances]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "distances": {name: vars(found) for name, found in self.distances.items()}}


def recognize(
    model: TrainedModel, config: DataConfig, count: int, *, seed: int = 0, guidance: Sequence[float] = (1.0,),
    lmbda: float | None = None, say: Callable[[str], None] = note,
) -> tuple[Recognized, ...]:  # fmt: skip
    """Draw `count` images, classes in turn, have them classified, and compare them with the test split.

    Args:
        guidance: so many images are drawn with each of these (`SamplingParams.guidance`); a `Recognized` for each.
        lmbda: of the reconstructions, as for `TrainedModel.encode`.

    Raises:
        InputError: a level has no prior, or one that can't be guided; no classes, or others than the data has; the data
            is not there.
    """
    classes = model.classes
    if not classes:
        raise InputError(f"the priors of {model.run} know no classes: nothing can be recognized")
    if load_images(config, "train", say).classes != classes:
        raise InputError(f"the priors of {model.run} know other classes than the data has: {', '.join(classes)}")
    judge = judge_of(config, say=say)
    tests, labels = _images(config, "test", count)
    compared = len(tests)
    decoded = torch.cat([model.decode(model.encode(some, lmbda), size=_size(some)) for some in _batches(tests)])
    real = RealImages(Features(f"a classifier of {config.dataset}", judge.classifier.features), _batches(tests))
    others = {"reconstructions": decoded, "training images": _images(config, "train", compared)[0]}
    distances = {name: real.distances(_batches(images)) for name, images in others.items()}
    reconstructed, found = _share(judge, decoded, labels), []
    for weight in guidance:
        drawn, wanted = _draw(model, count, seed, SamplingParams(guidance=weight))
        some = drawn[torch.linspace(0, count - 1, compared).long()]
        found.append(
            Recognized(
                samples=count, guidance=weight, recognized=_share(judge, drawn, wanted),
                classifier_accuracy=judge.accuracy, reconstructions_recognized=reconstructed, compared=compared,
                frechet=real.frechet, distances={"samples": real.distances(_batches(some)), **distances},
            )
        )  # fmt: skip
    return tuple(found)


def _draw(model: TrainedModel, count: int, seed: int, draw: SamplingParams) -> tuple[Tensor, Tensor]:
    """(images (count, C, Y, X), the class (count,) that each was asked for)."""
    drawn, wanted = [], []
    for number, name in enumerate(model.classes):
        share = count // len(model.classes) + (number < count % len(model.classes))
        if share:
            drawn.append(model.draw(share, seed=seed + number, class_name=name, draw=draw).images)
            wanted += [number] * share
    return torch.cat(drawn), torch.tensor(wanted)


def _images(config: DataConfig, split: str, count: int) -> tuple[Tensor, Tensor]:
    """So many images (B, C, Y, X) in [0, 1] of a split, evenly spread, or all there are, and their classes (B,)."""
    some = list(
        evaluation_batches(load_images(config, split), batch_size=_BATCH, limit=count, on_error=config.on_error)
    )
    return torch.cat([batch.images for batch in some]).float() / 255, torch.cat([batch.labels for batch in some])


def _batches(images: Tensor) -> list[Tensor]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _size(images: Tensor) -> tuple[int, int]:
    return (images.shape[-2], images.shape[-1])


def _share(judge: Judge, images: Tensor, wanted: Tensor) -> float:
    """Share of the images that are taken for the class that is wanted."""
    return float((judge.classify(images) == wanted).double().mean())
