"""Measure samples: classification accuracy, and distances from real images with their standard
deviations.

Images are batches (B, C, Y, X) float32 in [0, 1]; C is 1 or 3. The Frechet distance is named FID
only if the features are Inception's.
"""

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

from hrvqvae.codes.maps import CodeMaps
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import Batch, ImageSet, chunk_samples, make_rng, read_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import TrainedClassifier, find_recipe, obtain_classifier
from hrvqvae.model import Model
from hrvqvae.models import published
from hrvqvae.models.perceptual import EfficientNetDistance, has_efficientnet, to_three_channels
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.progress import note_once

CLASSIFIER = "classifier.safetensors"  # in a run folder, or in the folder of a comparison
NUM_SETS = 5  # sets of samples; of training images and of other test images there may be fewer
_BLOCK = 1_024
_NEIGHBOUR = 3
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


def _takes_classifier(config: DataConfig, classes: Sequence[str]) -> bool:
    return bool(classes) and (config.channels == 1 or find_recipe(config) is not None)


def require_features(config: DataConfig, classes: Sequence[str]) -> None:
    """Raise InputError if images of these classes have no feature extractor on this machine."""
    is_here = published.INCEPTION.available or _takes_classifier(config, classes)
    if not is_here and not has_efficientnet():
        raise InputError(
            "colour images, and images without classes, are compared by"
            f" {EfficientNetDistance.name} or Inception: pip install '.[perceptual]'"
        )


def choose_features(config: DataConfig, classifier_path: Path) -> Features:
    """Choose the feature extractor for a data set, the same for every command on this machine.

    Inception is chosen if its weights are here. Otherwise a classifier is chosen for images that
    have classes, and are grey or have a recipe in their registry entry; it is trained and written
    to `classifier_path` if need be. All other images take efficientnet-lite0. Raises InputError if
    efficientnet-lite0 is not installed, or the data is missing.
    """
    if published.INCEPTION.available:
        with published.INCEPTION.reading():
            inception = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
        return Features(
            "", lambda images: inception(to_three_channels((images * 255).round().byte()))
        )
    classes = load_images(config, "test").classes
    require_features(config, classes)
    if _takes_classifier(config, classes):
        trained = obtain_classifier(config, classifier_path)
        return Features(f"a classifier of {config.dataset}", trained.classifier.features)
    network = EfficientNetDistance()
    return Features(network.name, network.pooled)


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """Distances of a set of images from a set of real images."""

    #: Frechet distance between normal distributions with the sets' means and covariances (Heusel et
    #: al. 2017, equation 6); None unless there are more images than features, since the covariance
    #: is singular then.
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


class RealImages:
    """A set of at least two real images and their features, with which other sets are compared.

    Frechet distances, precision and recall depend on the number of images, so only sets of the same
    size are compared.
    """

    def __init__(self, extractor: Features, batches: Iterable[Tensor]) -> None:
        self._extractor = extractor
        self._features = self._extract(batches)
        self.count, self.width = self._features.shape
        if self.count < 2:
            raise InputError(
                f"a Frechet distance needs two test images at least; there is {self.count}"
            )
        self.frechet_name = f"FID of {self.count:,} images"
        if extractor.source:
            self.frechet_name = (
                f"Frechet distance of {self.count:,} images, features of {extractor.source}"
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
            kernel=measure_kernel_distance(self._features, features),
            precision=measure_share_inside(features, self._features),
            recall=measure_share_inside(self._features, features),
        )

    def summarize(self, sets: Iterable[Iterable[Tensor]]) -> Spreads:
        """Compare several sets, and summarize their distances."""
        distances = [vars(self.compare(batches)) for batches in sets]
        spreads: Spreads = {}
        for name in distances[0]:
            values = [of_set[name] for of_set in distances]
            deviation = stdev(values) if len(values) > 1 and None not in values else None
            spreads[name] = None if None in values else Spread(mean(values), deviation)
        return spreads

    def _measure_frechet(self, features: Tensor) -> float:
        # torchmetrics runs Inception on images unless it has a network, here one that passes
        # features on.
        network = torch.nn.Identity()
        network.num_features = self.width  # type: ignore[assignment]
        metric = FrechetInceptionDistance(feature=network)
        metric.update(self._features, real=True)
        metric.update(features, real=False)
        return float(metric.compute())


def measure_kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return `SetDistances.kernel` of two sets of features (N, D), block by block, so that no N x N
    matrix is in memory.
    """

    def sum_over_pairs(a: Tensor, b: Tensor) -> float:
        blocks = torch.split(a, _BLOCK)
        return fsum(float((block @ b.T / a.shape[1] + 1).pow(3).sum()) for block in blocks)

    def mean_over_different(a: Tensor) -> float:
        diagonal = (a.square().mean(dim=1) + 1).pow(3).sum()
        return (sum_over_pairs(a, a) - float(diagonal)) / (len(a) * (len(a) - 1))

    mean_between = sum_over_pairs(first, second) / (len(first) * len(second))
    return mean_over_different(first) + mean_over_different(second) - 2 * mean_between


def measure_share_inside(points: Tensor, centres: Tensor) -> float:
    """Return the share of points (N, D) inside a ball around any of the centres (M, D).

    A ball's radius is the distance to the third nearest other centre (Kynkaanniemi et al. 2019,
    equation 1).
    """
    # The radius of each ball. The nearest centre to a centre is the centre itself.
    rank = min(_NEIGHBOUR + 1, len(centres))
    distances = (torch.cdist(block, centres) for block in torch.split(centres, _BLOCK))
    radii = torch.cat([block.kthvalue(rank, dim=1).values for block in distances])

    # Count the points inside any ball.
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
    #: Distances from the `compared` test images, by key:
    #: "samples": sets whose classes are drawn by their frequency in training
    #: "reconstructions": of the `compared` test images
    #: "training images"
    #: "test images": sets of other test images; samples can't do better
    distances: dict[str, Spreads]


def measure_samples(
    model: Model,
    config: DataConfig,
    count: int,
    *,
    guidances: Sequence[Guidance] = (1.0,),
    effort: int = 0,
    levels: int | None = None,
    maps: CodeMaps | None = None,
) -> tuple[SampleQuality, ...]:
    """Draw samples, classify them, and compare them with test images.

    Classify `count` samples, drawn equally often from each class. Compare NUM_SETS other sets of
    samples, whose classes are drawn by their frequency in training, with test images. A set has
    `count` images, but at most half of the test split or all of the train split. Return a
    `SampleQuality` per guidance. `levels` is for samples, `effort` for reconstructions;
    they are not used with `maps`, the codes of the whole test split.

    The model has classes. Raises InputError if the data or a prior is missing, or a prior does not
    support guidance.
    """
    tests = load_images(config, "test")
    train = load_images(config, "train")
    size = choose_set_size(count, tests, train)
    classifier_path = model.run.path / CLASSIFIER
    trained = obtain_classifier(config, classifier_path)

    # What samples are compared with. `choose_features` may take the same classifier from its file.
    reference, *other_tests = draw_subsets(tests, size, 1 + NUM_SETS)
    real = RealImages(choose_features(config, classifier_path), read_images_at(tests, reference))

    # What reconstructions and real images reach.
    coded: Iterable[tuple[Codes, Tensor]]
    if maps is None:
        batches = read_batches_at(tests, reference)
        coded = (
            (model.encode(batch.images.float() / 255, effort=effort), batch.labels)
            for batch in batches
        )
    else:
        coded = map(maps.read, slices(reference, _BATCH))
    decoded_batches = []
    label_batches = []
    for codes, batch_labels in coded:
        decoded_batches.append(model.decode(codes, size=config.image_size).cpu())
        label_batches.append(batch_labels)
    decoded = torch.cat(decoded_batches)
    labels = torch.cat(label_batches)
    train_sets = (read_images_at(train, subset) for subset in draw_subsets(train, size, NUM_SETS))
    test_sets = (read_images_at(tests, subset) for subset in other_tests)
    distances = {
        "reconstructions": real.summarize([torch.split(decoded, _BATCH)]),
        "training images": real.summarize(train_sets),
        "test images": real.summarize(test_sets),
    }
    reconstructions_accuracy = _measure_accuracy(trained, decoded, labels)

    # two classes of one name are told apart by their numbers
    names = model.classes
    if len(set(names)) < len(names):
        names = tuple(map(str, range(len(names))))

    qualities = []
    for guidance in guidances:
        params = SamplingParams(guidance=guidance, levels=levels)

        # Each class equally often, for the classifier.
        samples = []
        requested = sorted(index % len(model.classes) for index in range(count))
        for index, name in enumerate(names):
            num_drawn = requested.count(index)
            if num_drawn:
                drawn = model.draw(num_drawn, seed=index, class_name=name, params=params)
                samples.append(drawn.images)
        accuracy = _measure_accuracy(trained, torch.cat(samples), torch.tensor(requested))

        # For the distances, without a class: `draw` takes classes as often as in training. The
        # seeds differ from those above.
        seeds = range(len(model.classes), len(model.classes) + NUM_SETS)
        sets = (model.draw(size, seed=seed, params=params).images for seed in seeds)
        spreads = real.summarize(torch.split(images, _BATCH) for images in sets)
        qualities.append(
            SampleQuality(
                samples=count,
                guidance=guidance,
                compared=size,
                frechet=real.frechet_name,
                classification_accuracy=accuracy,
                classifier_accuracy=trained.accuracy,
                reconstructions_accuracy=reconstructions_accuracy,
                distances={"samples": spreads, **distances},
            )
        )
    return tuple(qualities)


def choose_set_size(count: int, tests: ImageSet, train: ImageSet) -> int:
    """Return the number of images of a set for `count` samples (see `measure_samples`). Raises
    InputError if it is below 2.
    """
    size = min(count, len(tests) // 2, len(train))
    if size < 2:
        raise InputError(
            f"{count} samples and {len(tests)} test images are too few to compare: take at least 2"
            " and 4"
        )
    return size


def draw_subsets(images: ImageSet, size: int, count: int) -> list[NDArray[np.int64]]:
    """Return the indices of up to `count` disjoint random subsets of `size` images, the same in
    every call.
    """
    order = make_rng("subsets", 0).permutation(len(images))
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)][:count]


def read_batches_at(images: ImageSet, indices: NDArray[np.int64]) -> Iterator[Batch]:
    """Yield batches of the images at the indices. The next image replaces a broken image, since
    only sets of equal size are compared; a note counts the broken images.
    """
    samples = chunk_samples(indices.tolist(), _BATCH)
    broken = list[str]()
    for batch in read_batches(images, samples, images.config.workers, replace=True):
        broken += batch.broken
        yield batch
    if broken:
        note_once(
            f"broken images replaced by the next: {len(broken)} in a set of {len(indices)}, the"
            f" first: {broken[0]}"
        )


def read_images_at(images: ImageSet, indices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the images of `read_batches_at` as batches (B, C, Y, X) in [0, 1]."""
    for batch in read_batches_at(images, indices):
        yield batch.images.float() / 255


def _measure_accuracy(trained: TrainedClassifier, images: Tensor, classes: Tensor) -> float:
    """Return the share of images whose predicted class equals that in `classes` (B,)."""
    return float((trained.classify(images) == classes).double().mean())
