"""Measurements of the runs of a comparison."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.run import Run
from hrvqvae.comparison.systems import codewords_searched
from hrvqvae.config import Config
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.evaluation.samples import CLASSIFIER, RealImages, choose_features, read_split
from hrvqvae.model import Model
from hrvqvae.models.perceptual import PerceptualDistance, choose_perceptual, perceptual_distance
from hrvqvae.training.loggers import read_records
from hrvqvae.training.state import count_parameters
from hrvqvae.utils.errors import InputError

Say = Callable[[str], None]
Measured = dict[str, Any]
"""A row: the labels of a case, then its measurements by name."""

_PRIOR_COLUMNS = (
    "prior_bits_per_image",
    "frechet_samples",
    "kernel_samples",
    "precision_samples",
    "recall_samples",
    "seconds_per_sample",
)
_TIMED_IMAGES = 256
_TIMED_CALLS = 5
_FEATURE_IMAGES = 2_000
_BATCH = 64
_SHOWN = 12
_SHOWN_SAMPLES = 24


def shown_images(config: Config) -> Tensor:
    """Return the test images (B, C, Y, X) in [0, 1] whose reconstructions every run keeps."""
    return read_split(config.data, "test", _FEATURE_IMAGES)[:_SHOWN]


class Instruments:
    """Test images of a data set, and the best distances of images, and of sets of images, on this
    machine.
    """

    diverged: Mapping[str, None] | None = (
        None  # columns of a diverged training; None: divergence is an error
    )

    def __init__(self, config: Config, folder: Path) -> None:
        """Load the networks, or raise InputError. A classifier that must be trained is kept in
        `folder`.
        """
        self.test_images = torch.split(read_split(config.data, "test", _FEATURE_IMAGES), _BATCH)
        self.real = RealImages(choose_features(config.data, folder / CLASSIFIER), self.test_images)
        self.perceptual: PerceptualDistance | None = None
        try:
            name = choose_perceptual()
        except InputError:  # no network for the perceptual distance, which is optional
            pass
        else:
            self.perceptual = perceptual_distance(name)
        title = self.perceptual and self.perceptual.title
        self.distance_names: Measured = {
            "perceptual": title,
            "frechet": self.real.frechet_name,
            "kernel": self.real.kernel_name,
        }

    def require_same(self, rows: Sequence[Measured], folder: Path) -> None:
        """Raise InputError if a row was measured by other distances."""
        for row in rows:
            if (
                stored := {name: row.get(name) for name in self.distance_names}
            ) != self.distance_names:
                before, now = (
                    " and ".join(map(str, names.values()))
                    for names in (stored, self.distance_names)
                )
                raise InputError(
                    f"{folder} has rows measured by {before}, this machine now measures by {now}:"
                    f" delete {folder / 'rows'} to have every run measured again (none is trained"
                    " again)"
                )

    @torch.inference_mode()
    def measure(self, run: RunFolder) -> tuple[Measured, Tensor]:
        """Return the row of a trained autoencoder and a few reconstructions (B, C, Y, X) in [0,
        1].
        """
        report = evaluate_run(run.path, rate=False).report
        model, config = Run(run.path).load()
        size = (config.data.size, config.data.size)
        decoded = [model.decode(model.encode(images), size=size) for images in self.test_images]
        distance = None
        if self.perceptual is not None:
            pairs = zip(self.test_images, decoded, strict=True)
            total = sum(
                float(self.perceptual(images, outputs)) * len(images) for images, outputs in pairs
            )
            distance = total / sum(map(len, self.test_images))
        timed = torch.cat(self.test_images)[:_TIMED_IMAGES]
        codes = model.encode(timed)
        start = getattr(config.model, "adversarial_start", None)
        evaluations = [
            record for record in read_records(run.metrics) if record["kind"] == "evaluation"
        ]
        row = {
            "parameters": count_parameters(model),
            "bits_per_image": report.bits_per_image,
            "compression_ratio": report.compression_ratio,
            "mse": report.mse,
            "psnr": report.psnr,
            "ssim": report.ssim,
            **self.distance_names,
            "perceptual_distance": distance,
            "frechet_reconstructions": self.real.compare(decoded).frechet,
            "usage": sum(level.used for level in report.levels) / sum(config.model.num_codewords),
            "perplexity": report.levels[-1].perplexity,
            "leaves_used": report.levels[-1].used,
            "codewords_searched": codewords_searched(config.model),
            "encode_images_per_second": len(timed) / _median_seconds(lambda: model.encode(timed)),
            "decode_images_per_second": (
                len(timed) / _median_seconds(lambda: model.decode(codes, size=size))
            ),
            **dict.fromkeys(_PRIOR_COLUMNS),
            "test_errors": [(record["step"], record["mse"]) for record in evaluations],
            "adversarial_steps": None if start is None else max(0, evaluations[-1]["step"] - start),
        }
        return row, torch.cat(decoded)[:_SHOWN]

    @torch.inference_mode()
    def measure_priors(self, run: RunFolder) -> tuple[Measured, Tensor]:
        """Return the columns of a run's priors, measured on as many samples as test images, and a
        few samples.
        """
        rate = evaluate_run(run.path, limit=_FEATURE_IMAGES).to_dict()
        model = Model(run.path)
        count = sum(map(len, self.test_images))
        start = time.perf_counter()
        drawn = model.sample(count, seed=1)
        seconds = (time.perf_counter() - start) / count
        distances = self.real.compare(torch.split(drawn, _BATCH))
        row = {"prior_bits_per_image": rate["prior_bits_per_image"], "seconds_per_sample": seconds}
        row |= {f"{name}_samples": value for name, value in vars(distances).items()}
        return row, drawn[:_SHOWN_SAMPLES]


def _median_seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, without the first call, which allocates memory."""
    return median(timeit.repeat(call, number=1, repeat=1 + _TIMED_CALLS)[1:])
