"""What is measured of a run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, empty

from benchmarks.common import read_images, side_by_side
from benchmarks.laboratory.systems import codewords_searched
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.config import Config
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.evaluation.samples import CLASSIFIER, RealImages, choose_features
from hrvqvae.models.perceptual import DISTANCES, PerceptualDistance, choose_perceptual
from hrvqvae.training.loggers import read_records
from hrvqvae.training.state import count_parameters
from hrvqvae.utils.errors import InputError

_TITLES = {
    "lpips-vgg16": "LPIPS (VGG16)",
    "efficientnet-lite0": "distance, efficientnet-lite0 features",
}
Say = Callable[[str], None]
Row = dict[str, Any]
"""The labels of a case, then its measurements by name."""

_COLUMNS = """
parameters | parameters | {:,.0f}
bits_per_image | bits per image | {:,.0f}
mse | MSE | {:.3e}
psnr | PSNR, dB | {:.2f}
ssim | SSIM | {:.4f}
perceptual_distance | {perceptual} | {:.4f}
frechet_reconstructions | {frechet} | {:.3f}
usage | codewords used | {:.1%}
perplexity | perplexity, finest | {:.1f}
codewords_searched | searched per position | {:,.0f}
training_seconds | training, s | {:,.0f}
steps_per_second | steps/s | {:.2f}
encode_images_per_second | encode, images/s | {:,.0f}
decode_images_per_second | decode, images/s | {:,.0f}
"""
COLUMNS: Mapping[str, tuple[str, str]] = {
    name: (head, form)
    for name, head, form in (line.split(" | ") for line in _COLUMNS.strip().splitlines())
}
"""Columns of a table: name in a row -> (header, format). A name in braces is a value of the row."""

_TIMED_IMAGES = 256
_FEATURE_IMAGES = 2_000
_VALIDATION_IMAGES = 2_000
_BATCH = 64
_SHOWN = 12


def shown_images(config: Config) -> Tensor:
    """Return the test images (B, C, Y, X) in [0, 1] whose reconstructions every row keeps."""
    return _read_tests(config)[:_SHOWN]


def _read_tests(config: Config) -> Tensor:
    return read_images(config.data, _FEATURE_IMAGES).float() / 255


class Instruments:
    """Measure a trained autoencoder on test images, by the best distances on this machine."""

    diverged: Mapping[str, None] | None = None
    """Columns of a training that diverged; None: divergence is an error."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Load the networks, or raise InputError. A classifier may lie in `folder`."""
        self.images = torch.split(_read_tests(config), _BATCH)
        self.real = RealImages(choose_features(config.data, folder / CLASSIFIER), self.images)
        self.perceptual: PerceptualDistance | None = None
        with suppress(InputError):  # the perceptual distance is optional: it needs a network
            self.perceptual = DISTANCES[choose_perceptual()]()
        title = self.perceptual and _TITLES[self.perceptual.name]
        self.distances: Row = {"perceptual": title, "frechet": self.real.frechet_name}

    def require_same(self, rows: Sequence[Row], folder: Path) -> None:
        """Raise InputError if a row was measured by other distances."""
        for row in rows:
            stored = {name: row.get(name) for name in self.distances}
            if stored != self.distances:
                before = " and ".join(map(str, stored.values()))
                now = " and ".join(map(str, self.distances.values()))
                raise InputError(
                    f"{folder} has rows measured by {before}, this machine now measures by {now}:"
                    f" delete {folder / 'rows'} to have every run measured again (none is trained"
                    " again)"
                )

    @torch.inference_mode()
    def measure(self, run: RunFolder) -> tuple[Row, Tensor]:
        """Return the row of a run, and a few reconstructions (B, C, Y, X) in [0, 1]."""
        # errors and codewords in use, on all test images
        report = evaluate_run(run.path, rate=False).report

        # distances, on the images of the features
        model, config = open_run(run.path).load()
        size = config.data.image_size
        decoded = [model.decode(model.encode(images), size=size) for images in self.images]
        shown = torch.cat(decoded)[:_SHOWN]
        distance = None
        if self.perceptual is not None:
            distances = [
                float(self.perceptual(images, outputs)) * len(images)
                for images, outputs in zip(self.images, decoded, strict=True)
            ]
            distance = sum(distances) / self.real.count

        # times of calls on some of them
        timed = torch.cat(self.images)[:_TIMED_IMAGES]
        codes = model.encode(timed)
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: model.encode(timed),
            "decode": lambda: model.decode(codes, size=size),
        }
        spent = side_by_side(calls)

        # the log has the errors on the way
        records = read_records(run.metrics)
        row = {
            "parameters": count_parameters(model),
            "bits_per_image": report.bits_per_image,
            "mse": report.mse,
            "psnr": report.psnr,
            "ssim": report.ssim,
            **self.distances,
            "perceptual_distance": distance,
            "frechet_reconstructions": self.real.compare(decoded).frechet,
            "usage": sum(level.used for level in report.levels) / sum(config.model.num_codewords),
            "perplexity": report.levels[-1].perplexity,
            "leaves_used": report.levels[-1].used,
            "codewords_searched": codewords_searched(config.model),
            "encode_images_per_second": len(timed) / spent["encode"],
            "decode_images_per_second": len(timed) / spent["decode"],
            "test_errors": [
                (record["step"], record["mse"])
                for record in records
                if record["kind"] == "evaluation"
            ],
        }
        return row, shown


class Validation(Instruments):
    """Measure a trial of a search by its error on held-out training images."""

    diverged: Mapping[str, None] | None = {"validation_mse": None, "leaves_used": None}

    def __init__(self, config: Config, folder: Path) -> None:
        """Load nothing."""
        self.distances = {}

    def measure(self, run: RunFolder) -> tuple[Row, Tensor]:
        """Return the columns of a trial, and no images."""
        report = evaluate_run(run.path, rate=False, limit=_VALIDATION_IMAGES).report
        return {"validation_mse": report.mse, "leaves_used": report.levels[-1].used}, empty(0)
