"""Measure samples: classification accuracy, and distances from real images with their standard
deviations.

Images are batches (B, C, Y, X) float32 in [0, 1]; C is 1 or 3. The Frechet distance is named FID
only if the features are Inception's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_part

from hrvqvae.config import DataConfig
from hrvqvae.data.batches import Batch, ImageSet, chunk_samples, make_rng, read_batches
from hrvqvae.data.loading import is_published, load_images
from hrvqvae.evaluation.classifier import TrainedClassifier, find_classifier
from hrvqvae.model import Model
from hrvqvae.models import published
from hrvqvae.models.perceptual import EfficientNetDistance, to_three_channels
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError

CLASSIFIER = "classifier.safetensors"  # in a run folder, or in the folder of a comparison
NUM_SETS = 5  # sets of samples; of training images and of other test images there may be fewer
_FEWEST = 4  # images of a set: precision and recall need three neighbours of each image
_BLOCK = 1_024
_NEIGHBOUR = 3
_BATCH = 128


@dataclass(frozen=True)
class Features:
    """A feature extractor."""

    source: str  #: the network's name, such as "efficientnet-lite0"; "" for Inception
    extract: Callable[[Tensor], Tensor]  #: maps images (B, C, Y, X) to features (B, width)

    @torch.inference_mode()
    def __call__(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the features (N, width) float64 of batches of images."""
        return torch.cat([self.extract(images).double() for images in batches])


def choose_features(config: DataConfig, classifier_path: Path) -> Features:
    """Choose the feature extractor for a data set, the same for every command on this machine.

    Inception is chosen if its weights are here. Otherwise the classifier is chosen for images with
    classes that are grey or of a published set. All other images take efficientnet-lite0. Raises
    InputError if the classifier or efficientnet-lite0 is not here, or the data is missing.
    """
    if published.INCEPTION.available:
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        return Features(
            "", lambda images: inception(to_three_channels((images * 255).round().byte()))[0]
        )
    has_classes = bool(load_images(config, "test").classes)
    if has_classes and (config.channels == 1 or is_published(config.dataset)):
        trained = find_classifier(config, classifier_path)
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
    #: share of the images inside the balls around real images, which reach to the third nearest
    #: other real image (Kynkaanniemi et al. 2019, equation 1)
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
    """A set of real images and their features, with which other sets are compared.

    Frechet distances, precision and recall depend on the number of images, so only sets of the same
    size are compared.
    """

    def __init__(self, extractor: Features, batches: Iterable[Tensor]) -> None:
        self._extractor = extractor
        self._features = extractor(batches)
        self.count, self.width = self._features.shape
        self.frechet_name = f"FID of {self.count:,} images"
        if extractor.source:
            self.frechet_name = (
                f"Frechet distance of {self.count:,} images, features of {extractor.source}"
            )

    def compare(self, batches: Iterable[Tensor]) -> SetDistances:
        """Measure the distances of a set of as many images as the real set has, at least 4."""
        features = self._extractor(batches)
        precision, recall = calculate_precision_recall_part(
            features, self._features, _NEIGHBOUR, _BLOCK
        )
        kernel = kernel_mmd(self._features.numpy(), features.numpy(), kid_kernel="poly")
        return SetDistances(
            frechet=self._measure_frechet(features) if self.count > self.width else None,
            kernel=float(kernel),
            precision=precision,
            recall=recall,
        )

    def summarize(self, sets: Iterable[Iterable[Tensor]]) -> Spreads:
        """Compare several sets, and summarize their distances."""
        distances = [vars(self.compare(batches)) for batches in sets]
        spreads: Spreads = {}
        for name in distances[0]:
            values = [of_set[name] for of_set in distances]
            spreads[name] = None
            if None not in values:
                deviation = stdev(values) if len(values) > 1 else None
                spreads[name] = Spread(mean(values), deviation)
        return spreads

    def _measure_frechet(self, features: Tensor) -> float:
        real, drawn = map(fid_features_to_statistics, (self._features, features))
        (distance,) = fid_statistics_to_metric(real, drawn, verbose=False).values()
        return float(distance)


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
) -> tuple[SampleQuality, ...]:
    """Draw samples, classify them, and compare them with test images.

    Classify `count` samples, drawn equally often from each class. Compare NUM_SETS other sets of
    samples, whose classes are drawn by their frequency in training, with test images. A set has
    `count` images, but at most half of the test split or all of the train split. Return a
    `SampleQuality` per guidance. `levels` is for samples, `effort` for reconstructions.

    The model has classes. Raises InputError if the data, the classifier or a prior is missing, or
    a prior does not support guidance.
    """
    tests = load_images(config, "test")
    train = load_images(config, "train")
    size = choose_set_size(count, tests, train)
    classifier_path = model.run.path / CLASSIFIER
    trained = find_classifier(config, classifier_path)

    # What samples are compared with.
    reference, *other_tests = draw_subsets(tests, size, 1 + NUM_SETS)
    real = RealImages(choose_features(config, classifier_path), read_images_at(tests, reference))

    # What reconstructions and real images reach.
    decoded_batches = []
    label_batches = []
    for batch in _read_at(tests, reference):
        codes = model.encode(batch.images.float() / 255, effort=effort)
        decoded_batches.append(model.decode(codes, size=config.image_size).cpu())
        label_batches.append(batch.labels)
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

    qualities = []
    for guidance in guidances:
        params = SamplingParams(guidance=guidance, levels=levels)

        # For the distances, without a class: `draw` takes classes as often as in training. The
        # seeds differ from those of the samples that are classified.
        seeds = range(len(model.classes), len(model.classes) + NUM_SETS)
        sets = (model.draw(size, seed=seed, params=params).images for seed in seeds)
        spreads = real.summarize(torch.split(images, _BATCH) for images in sets)
        qualities.append(
            SampleQuality(
                samples=count,
                guidance=guidance,
                compared=size,
                frechet=real.frechet_name,
                classification_accuracy=_classify_samples(model, trained, count, params),
                classifier_accuracy=trained.accuracy,
                reconstructions_accuracy=reconstructions_accuracy,
                distances={"samples": spreads, **distances},
            )
        )
    return tuple(qualities)


def _classify_samples(
    model: Model, trained: TrainedClassifier, count: int, params: SamplingParams
) -> float:
    """Return the share of samples whose predicted class is the requested class. Each class is
    requested equally often.
    """
    samples = []
    requested = sorted(index % len(model.classes) for index in range(count))
    for index, name in enumerate(model.classes):
        num_drawn = requested.count(index)
        if num_drawn:
            drawn = model.draw(num_drawn, seed=index, class_name=name, params=params)
            samples.append(drawn.images)
    return _measure_accuracy(trained, torch.cat(samples), torch.tensor(requested))


def choose_set_size(count: int, tests: ImageSet, train: ImageSet) -> int:
    """Return the number of images of a set for `count` samples (see `measure_samples`). Raises
    InputError if it is too small.
    """
    size = min(count, len(tests) // 2, len(train))
    if size < _FEWEST:
        raise InputError(
            f"{count} samples and {len(tests)} test images are too few to compare: take at least"
            f" {_FEWEST} and {2 * _FEWEST}"
        )
    return size


def draw_subsets(images: ImageSet, size: int, count: int) -> list[NDArray[np.int64]]:
    """Return the indices of up to `count` disjoint random subsets of `size` images, the same in
    every call.
    """
    order = make_rng("subsets", 0).permutation(len(images))
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)][:count]


def _read_at(images: ImageSet, indices: NDArray[np.int64]) -> Iterator[Batch]:
    """Yield batches of the images at the indices. The next image replaces a broken image, since
    only sets of equal size are compared.
    """
    samples = chunk_samples(indices.tolist(), _BATCH)
    yield from read_batches(images, samples, images.config.workers, replace=True)


def read_images_at(images: ImageSet, indices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the images at the indices as batches (B, C, Y, X) in [0, 1]."""
    for batch in _read_at(images, indices):
        yield batch.images.float() / 255


def _measure_accuracy(trained: TrainedClassifier, images: Tensor, classes: Tensor) -> float:
    """Return the share of images whose predicted class equals that in `classes` (B,)."""
    return float((trained.classify(images) == classes).double().mean())
