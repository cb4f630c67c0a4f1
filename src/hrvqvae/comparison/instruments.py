"""What every run of a comparison is measured with, and what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import median_seconds
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.comparison.folder import Measured
from hrvqvae.comparison.systems import codewords_searched
from hrvqvae.config import Config
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.evaluation.samples import RealImages, features_of
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.perceptual import PerceptualDistance, choose_perceptual, perceptual_distance
from hrvqvae.training.loggers import read_records
from hrvqvae.training.state import count_parameters
from hrvqvae.utils.errors import InputError

Say = Callable[[str], None]

# What is measured of priors.
_OF_PRIORS = (
    "prior_bits_per_image", "frechet_samples", "kernel_samples", "precision_samples", "recall_samples",
    "seconds_per_sample",
)  # fmt: skip
_TIMED_BATCHES, _FEATURE_IMAGES, _BATCH = 4, 2_000, 64
_SHOWN, _SHOWN_SAMPLES = 12, 24


def test_images(config: Config, count: int) -> list[Tensor]:
    """Batches of so many test images, spread evenly over the split, float32 in [0, 1]."""
    batches = evaluation_batches(
        load_images(config.data, "test"), batch_size=_BATCH, limit=count, on_error=config.data.on_error
    )
    return [batch.images.float() / 255 for batch in batches]


def shown_images(config: Config) -> Tensor:
    """The test images (B, C, Y, X) in [0, 1] whose reconstructions are kept of each run: those measured first."""
    return test_images(config, _FEATURE_IMAGES)[0][:_SHOWN]


@dataclass(frozen=True)
class Instruments:
    """Test images, and distances between images and between sets of them by features.

    Attributes:
        tests: batches of images in [0, 1].
        real: the same images as features, from which sets of images have their distances.
        perceptual: distance of reconstructions; None where no network for it is on this machine.
    """

    tests: Sequence[Tensor]
    real: RealImages
    perceptual: PerceptualDistance | None

    @staticmethod
    def of(config: Config, folder: Path, say: Say) -> Instruments:
        """The best there are on this machine, for that data; a classifier that is trained for it lies in `folder`.

        Raises:
            InputError: there are no features, a network's file is damaged, the data is not there or is a single image.
        """
        tests = test_images(config, _FEATURE_IMAGES)
        try:
            name = choose_perceptual()
        except InputError:  # none is here, and none is needed
            perceptual = None
        else:
            perceptual = perceptual_distance(name)
        return Instruments(tests, RealImages(features_of(folder, config.data, say), tests), perceptual)

    def names(self) -> Measured:
        """The true names of the distances."""
        return {
            "perceptual": self.perceptual and self.perceptual.title,
            "frechet": self.real.frechet,
            "kernel": self.real.kernel,
        }

    def _perceptual_of(self, decoded: Sequence[Tensor]) -> float | None:
        """Mean perceptual distance of the reconstructions of the test images."""
        if self.perceptual is None:
            return None
        pairs = zip(self.tests, decoded, strict=True)
        total = sum(float(self.perceptual(one, other)) * len(one) for one, other in pairs)
        return total / sum(len(one) for one in self.tests)

    @torch.inference_mode()
    def measure(self, run: RunFolder) -> tuple[Measured, Tensor]:
        """All that is measured of a trained autoencoder, and a few reconstructions (B, C, Y, X) in [0, 1].

        What is measured of priors is in the row, as None.
        """
        report = evaluate_run(run.path, rate=False).report
        model, config = load_with_config(run.path)
        size = (config.data.size, config.data.size)
        encode, decode = _speed(model, torch.cat(list(self.tests[:_TIMED_BATCHES])))
        used = sum(level.used for level in report.levels)
        decoded = [model.decode(model.encode(images), size=size) for images in self.tests]
        row = {
            "parameters": count_parameters(model), "bits_per_image": report.bits_per_image,
            "compression_ratio": report.compression_ratio, "mse": report.mse, "psnr": report.psnr, "ssim": report.ssim,
            **self.names(), "perceptual_distance": self._perceptual_of(decoded),
            "frechet_reconstructions": self.real.frechet_of(decoded),
            "usage": used / sum(config.model.num_codewords), "perplexity": report.levels[-1].perplexity,
            "leaves_used": report.levels[-1].used, "codewords_searched": codewords_searched(config.model),
            "encode_images_per_second": encode, "decode_images_per_second": decode,
            **dict.fromkeys(_OF_PRIORS), "test_errors": _test_errors(run),
        }  # fmt: skip
        return row, torch.cat(list(decoded))[:_SHOWN]

    @torch.inference_mode()
    def measure_priors(self, run: RunFolder) -> tuple[Measured, Tensor]:
        """What is measured of a run's priors: bits of the test images, and as many samples; and a few samples."""
        rate = evaluate_run(run.path, limit=_FEATURE_IMAGES).rate
        assert rate is not None
        model = TrainedModel(run.path)
        count = sum(len(images) for images in self.tests)
        begun = time.perf_counter()
        drawn = model.sample(count, seed=1)
        seconds = (time.perf_counter() - begun) / count
        batches = list(drawn.split(_BATCH))  # type: ignore[no-untyped-call]
        row = {
            "prior_bits_per_image": rate.prior_bits_per_image,
            **{f"{name}_samples": value for name, value in vars(self.real.distances(batches)).items()},
            "seconds_per_sample": seconds,
        }
        return row, drawn[:_SHOWN_SAMPLES]


def _test_errors(run: RunFolder) -> list[tuple[int, float]]:
    """(step, test MSE) of each evaluation during the training of a run."""
    return [(one["step"], one["mse"]) for one in read_records(run.metrics) if one["kind"] == "evaluation"]


def _speed(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """(images encoded, images decoded) a second."""
    size = (images.shape[-2], images.shape[-1])
    with torch.inference_mode():
        codes = model.encode(images)
        encode = median_seconds(lambda: model.encode(images))
        decode = median_seconds(lambda: model.decode(codes, size=size))
    return len(images) / encode, len(images) / decode
