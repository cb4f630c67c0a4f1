"""Measure samples: classification accuracy, and distances from real images with their standard
deviations.

Images are batches (B, C, Y, X) float32 in [0, 1]; C is 1 or 3. Frechet and kernel distances are
named FID and KID only if the features are Inception's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import ImageSet, chunk_samples, make_rng, read_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import TrainedClassifier, find_recipe, obtain_classifier
from hrvqvae.model import Model
from hrvqvae.models import published
from hrvqvae.models.perceptual import EfficientNetDistance, has_efficientnet, to_three_channels
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError

CLASSIFIER = "classifier.safetensors"  # in a run folder, or in the folder of a comparison
DRAWS = 5  # number of sets of samples that are compared with test images
_BLOCK = 1_024
_BATCH = 128


@dataclass(frozen=True)
class Features:
    """A feature extractor."""

    source: str  #: the network's name, such as "efficientnet-lite0"; "" for Inception
    extract: Callable[[Tensor], Tensor]  #: maps images (B, C, Y, X) to features (B, width)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (B, width) float64 of images (B, C, Y, X)."""
        return self.extract(images).double()


def choose_features(config: DataConfig, classifier_path: Path) -> Features:
    """Choose the feature extractor for a data set, the same for every command on this machine.

    Inception is chosen if its weights are here. Otherwise a classifier is chosen for images that
    have classes, and are grey or have a recipe in their registry entry; it is trained and written
    to `classifier_path` if need be. All other images take efficientnet-lite0. Raises InputError if
    efficientnet-lite0 is not installed, or the data is missing.
    """
    if published.INCEPTION.available:
        with published.INCEPTION.read():
            inception = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
        return Features(
            "", lambda images: inception(to_three_channels((images * 255).round().byte()))
        )
    if (config.channels == 1 or find_recipe(config)) and load_images(config, "test").classes:
        trained = obtain_classifier(config, classifier_path)
        return Features(f"a classifier of {config.dataset}", trained.classifier.features)
    if not has_efficientnet():
        raise InputError(
            "colour images, and images without classes, are compared by"
            f" {EfficientNetDistance.name} or Inception: pip install 'hrvqvae[perceptual]'"
        )
    network = EfficientNetDistance()
    return Features(network.name, network.pooled)


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """Distances of a set of images from a set of real images."""

    #: Frechet distance between normal distributions with the sets' means and covariances (Heusel et
    #: al. 2017, equation
    #: 6); None if there are fewer images than features, since the covariance is then singular.
    frechet: float | None
    #: unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al.
    #: 2018)
    kernel: float
    #: share of the images inside the balls around real images, see `measure_share_inside`
    precision: float
    recall: float  #: share of the real images inside the balls around the images of the set


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over sets of images; the deviation is None if there is a single
    set.
    """

    mean: float
    deviation: float | None


Spreads = dict[str, Spread | None]
"""Spread of each field of SetDistances by name, or None if the sets are too small for the distance.
"""


def summarize(distances: Sequence[SetDistances]) -> Spreads:
    """Summarize the distances of several sets of equal size."""
    spreads: Spreads = {}
    for name in vars(distances[0]):
        values = [vars(set_distances)[name] for set_distances in distances]
        deviation = stdev(values) if len(values) > 1 and None not in values else None
        spreads[name] = None if None in values else Spread(mean(values), deviation)
    return spreads


class RealImages:
    """A set of at least two real images and their features, with which other sets are compared.

    Frechet distances, precision and recall depend on the number of images, so only sets of the same
    size are compared.
    """

    def __init__(self, features: Features, real: Iterable[Tensor]) -> None:
        self._extractor = features
        self._real = self._extract(real)
        self.count, self.width = self._real.shape
        if self.count < 2:
            raise InputError(
                f"a Frechet distance needs two test images at least; there is {self.count}"
            )
        self.frechet_name = f"FID of {self.count:,} images"
        if features.source:
            self.frechet_name = (
                f"Frechet distance of {self.count:,} images, features of {features.source}"
            )

    def _extract(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([self._extractor(images) for images in batches])

    def compare(self, batches: Iterable[Tensor]) -> SetDistances:
        """Measure the distances of a set of images. Raises InputError if it is larger or smaller
        than the real set.
        """
        features = self._extract(batches)
        if len(features) != self.count:
            raise InputError(
                f"{len(features):,} images can't be compared with {self.count:,} real images: give"
                " as many"
            )
        return SetDistances(
            frechet=self._measure_frechet(features) if self.count > self.width else None,
            kernel=measure_kernel_distance(self._real, features),
            precision=measure_share_inside(features, self._real),
            recall=measure_share_inside(self._real, features),
        )

    def _measure_frechet(self, features: Tensor) -> float:
        network = torch.nn.Identity()  # for Inception, because the metric gets features
        network.num_features = self.width  # type: ignore[assignment]
        metric = FrechetInceptionDistance(feature=network)
        metric.update(self._real, real=True)
        metric.update(features, real=False)
        return float(metric.compute())


def measure_kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return `SetDistances.kernel` of two sets of features (N, D), without their N x N products in
    memory.
    """

    def total(a: Tensor, b: Tensor) -> float:
        blocks = torch.split(a, _BLOCK)
        return fsum(float((block @ b.T / a.shape[1] + 1).pow(3).sum()) for block in blocks)

    def among(a: Tensor) -> float:
        itself = (a.square().mean(dim=1) + 1).pow(3).sum()
        return (total(a, a) - float(itself)) / (len(a) * (len(a) - 1))

    return among(first) + among(second) - 2 * total(first, second) / (len(first) * len(second))


def measure_share_inside(points: Tensor, centres: Tensor, neighbour: int = 3) -> float:
    """Return the share of points (N, D) inside a ball around any of the centres (M, D).

    A ball's radius is the distance to the `neighbour`-th nearest other centre (Kynkaanniemi et al.
    2019, equation 1).
    """
    rank = min(neighbour + 1, len(centres))  # the nearest centre is the centre itself
    distances = (torch.cdist(block, centres) for block in torch.split(centres, _BLOCK))
    radii = torch.cat([block.kthvalue(rank, dim=1).values for block in distances])
    inside = 0
    for block in torch.split(points, _BLOCK):
        inside += int((torch.cdist(block, centres) <= radii).any(dim=1).sum())
    return inside / len(points)


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """Accuracy of the samples' classes, and distances of the samples from test images."""

    #: number of samples that are classified; their classes are requested equally often
    samples: int
    guidance: Guidance  #: of the samples
    #: share of the samples whose predicted class is the requested class
    classification_accuracy: float
    classifier_accuracy: float  #: accuracy of the classifier on the test split
    #: the classifier's accuracy on reconstructions, the most that samples can reach
    reconstructions_accuracy: float
    #: number of images per set, and number of test images with which a set is compared
    compared: int
    frechet: str  #: name of the Frechet distance
    #: Distances from the `compared` test images, by key: "samples" (DRAWS sets, whose classes are
    #: drawn by their
    #: frequency in training), "reconstructions" (of the `compared` test images), "training images",
    #: and "test images"
    #: (sets of other test images). Samples can't do better than "test images".
    distances: dict[str, Spreads]


def measure_samples(
    model: Model,
    config: DataConfig,
    count: int,
    *,
    guidance: Sequence[Guidance] = (1.0,),
    lmbda: float | None = None,
    effort: int | None = None,
    levels: int | None = None,
    maps: CodeMaps | None = None,
) -> tuple[SampleQuality, ...]:
    """Draw samples, classify them, and compare them with test images.

    Classify `count` samples, drawn equally often from each class. Compare DRAWS other sets of
    samples, whose classes are drawn by their frequency in training, with test images. A set has
    `count` images, but at most half of the test split or all of the train split. Return a
    `SampleQuality` per guidance. `lmbda` and `effort` are for reconstructions, `levels` for
    samples; `maps` are the codes of the whole test split, if they are known.

    The model has classes. Raises InputError if the data or a prior is missing, or a prior does not
    support guidance.
    """
    classifier_path = model.run.folder.path / CLASSIFIER
    trained = obtain_classifier(config, classifier_path)
    tests = load_images(config, "test")
    train = load_images(config, "train")
    size = min(count, len(tests) // 2, len(train))
    if size < 2:
        raise InputError(
            f"{count} samples and {len(tests)} test images are too few to compare: take at least 2"
            " and 4"
        )

    # What samples are compared with, and what reconstructions and real images reach.
    reference, *other_tests = draw_subsets(tests, size, 1 + DRAWS)
    real = RealImages(choose_features(config, classifier_path), read_images_at(tests, reference))
    if maps is None:
        batches = read_images_at(tests, reference)
        coded = (model.encode(images, lmbda, effort=effort) for images in batches)
    else:
        parts = np.split(reference, range(_BATCH, size, _BATCH))
        coded = (maps.read(indices)[0] for indices in parts)
    decoded = torch.cat([model.decode(codes, size=config.image_size) for codes in coded])
    labels = torch.from_numpy(tests.labels[reference])
    distances = {"reconstructions": summarize([real.compare(torch.split(decoded, _BATCH))])}
    others = {
        "training images": (train, draw_subsets(train, size, DRAWS)),
        "test images": (tests, other_tests),
    }
    for title, (images, subsets) in others.items():
        compared = [real.compare(read_images_at(images, indices)) for indices in subsets]
        distances[title] = summarize(compared)
    reconstructions_accuracy = _measure_accuracy(trained, decoded, labels)

    qualities = []
    for weight in guidance:
        params = SamplingParams(guidance=weight, levels=levels)

        # Each class equally often, for the classifier.
        samples = []
        requested = []
        for index, name in enumerate(model.classes):
            share = count // len(model.classes) + (index < count % len(model.classes))
            if share:
                samples.append(model.draw(share, seed=index, class_name=name, params=params).images)
                requested += [index] * share
        accuracy = _measure_accuracy(trained, torch.cat(samples), torch.tensor(requested))

        # Classes as often as in training, for the distances.
        seeds = range(len(model.classes), len(model.classes) + DRAWS)
        draws = (model.draw(size, seed=seed, params=params).images for seed in seeds)
        drawn = summarize([real.compare(torch.split(images, _BATCH)) for images in draws])
        qualities.append(
            SampleQuality(
                samples=count,
                guidance=weight,
                compared=size,
                frechet=real.frechet_name,
                classification_accuracy=accuracy,
                classifier_accuracy=trained.accuracy,
                reconstructions_accuracy=reconstructions_accuracy,
                distances={"samples": drawn, **distances},
            )
        )
    return tuple(qualities)


def draw_subsets(images: ImageSet, size: int, count: int) -> list[NDArray[np.int64]]:
    """Return the indices of up to `count` disjoint random subsets of `size` images, the same in
    every call.
    """
    order = make_rng("subsets", 0).permutation(len(images))
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)][:count]


def read_images_at(images: ImageSet, indices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the images at the indices as batches (B, C, Y, X) in [0, 1]."""
    samples = chunk_samples(indices.tolist(), _BATCH)
    for batch in read_batches(images, samples, images.config.workers):
        yield batch.images.float() / 255


def _measure_accuracy(trained: TrainedClassifier, images: Tensor, classes: Tensor) -> float:
    """Return the share of images whose predicted class equals that in `classes` (B,)."""
    return float((trained.classify(images) == classes).double().mean())
