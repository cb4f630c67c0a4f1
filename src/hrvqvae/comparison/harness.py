"""Cases that are trained and measured alike, one after the other, and taken up where they were stopped.

DIR/comparison.json      what is compared; another comparison is refused
    runs/NAME/           a run folder for each case
    rows/NAME.json       what was measured of it
    results.json, results.md, of all rows

More systems, more seeds, or priors can be added to a folder later.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hrvqvae import data, storage
from hrvqvae.bench.timing import median_seconds
from hrvqvae.checkpoint import RunFolder, load_with_config, prior_run
from hrvqvae.commands import evaluate_run
from hrvqvae.config import Config
from hrvqvae.errors import InputError
from hrvqvae.evaluation.classifier import Classifier, train_judge
from hrvqvae.generate import Generative
from hrvqvae.losses.perceptual import NAME, PerceptualDistance
from hrvqvae.models import Autoencoder
from hrvqvae.resolve import resolve_priors
from hrvqvae.storage import write_atomic
from hrvqvae.training.autoencoder import train
from hrvqvae.training.prior import train_priors
from hrvqvae.training.stage import count_parameters

Row = dict[str, Any]
Say = Callable[[str], None]

_TIMED, _FEATURE_IMAGES, _BATCH = 256, 2_000, 64

# The printed batch sizes of priors are for a GPU: every system's get the same small batch here.
_SMALL_PRIOR = {
    "prior.training.batch_size": "32", "prior.batch_size": "[]", "prior.training.learning_rate": "2e-3",
    "prior.training.warmup_steps": "50", "prior.training.evaluate_every": "200",
    "prior.training.checkpoint_every": "200",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is trained and measured.

    Attributes:
        name: of its folder.
        labels: what its row begins with, such as system and seed.
        config: its whole configuration.
        prior: dotted name -> text, the budget of each level's prior (empty: no priors).
    """

    name: str
    labels: Mapping[str, Any]
    config: Config
    prior: Mapping[str, str] = field(default_factory=dict)


class Features(nn.Module):
    """Features of images for a Frechet distance, as torchmetrics takes them; `name` says of which network."""

    def __init__(self, name: str, extract: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.name, self.extract, self.num_features = name, extract, width

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) float32 in [0, 1] -> (B, n)."""
        return self.extract(images)


def frechet_distance(features: Features, real: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Frechet distance between features of two sets of batches. It is FID only with Inception's, which are not here."""
    metric = FrechetInceptionDistance(feature=features, normalize=True)
    for is_real, batches in ((True, real), (False, other)):
        for images in batches:
            metric.update(images, real=is_real)
    distance: Tensor = metric.compute()
    return float(distance)


def features_of(folder: Path, config: Config, say: Say) -> Features:
    """Of greyscale images with classes: a classifier trained on them, once a comparison. Else efficientnet-lite0's.

    Raises:
        InputError: that network is not installed.
    """
    classes = len(data.load(config.data, "test").classes)
    if config.data.channels == 3 or not classes:
        try:
            pooled = PerceptualDistance().pooled
        except InputError as error:
            raise InputError(
                f"images in colour, or without classes, are compared by {NAME}: pip install 'hrvqvae[perceptual]'"
            ) from error
        return Features(NAME, pooled, 320)
    path = folder / "classifier.safetensors"
    if not path.is_file():
        judge = train_judge(config.data, say=say)
        storage.write(path, judge.classifier.state_dict(), {"kind": "classifier", "accuracy": judge.accuracy})
    classifier = Classifier(config.data.channels, classes)
    classifier.load_state_dict(storage.read(path)[0])
    return Features("classifier", classifier.eval().requires_grad_(False).features, 128)


def test_images(config: Config, count: int) -> list[Tensor]:
    """Batches of the first `count` test images, float32 in [0, 1]."""
    batches = data.evaluation_batches(
        data.load(config.data, "test"), batch_size=_BATCH, limit=count, on_error=config.data.on_error
    )
    return [batch.images.float() / 255 for batch in batches]


def _speed(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """(images encoded, images decoded) a second."""
    size = (images.shape[-2], images.shape[-1])
    with torch.inference_mode():
        codes = model.encode(images)
        encode = median_seconds(lambda: model.encode(images))
        decode = median_seconds(lambda: model.decode(codes, size=size))
    return len(images) / encode, len(images) / decode


@torch.inference_mode()
def _measured(run: RunFolder, case: Case, features: Features) -> Row:
    """Everything that is measured of a trained autoencoder, and the names of what is measured of priors, as None."""
    config = case.config
    report = evaluate_run(run.path, rate=False).report
    model, _ = load_with_config(run.path)
    tests, size = test_images(config, _FEATURE_IMAGES), (config.data.size, config.data.size)
    encode, decode = _speed(model, torch.cat(tests)[:_TIMED])
    used = sum(level.used for level in report.levels)
    decoded = [model.decode(model.encode(images), size=size) for images in tests]
    return {
        "parameters": count_parameters(model), "bits_per_image": report.bits_per_image,
        "compression_ratio": report.compression_ratio, "mse": report.mse, "psnr": report.psnr, "ssim": report.ssim,
        "perceptual_distance": _perceptual(tests, decoded), "features": features.name,
        "frechet_reconstructions": frechet_distance(features, tests, decoded),
        "usage": used / sum(config.model.num_codewords), "perplexity": report.levels[-1].perplexity,
        "leaves_used": report.levels[-1].used, "codewords_searched": sum(config.model.num_symbols),
        "encode_images_per_second": encode, "decode_images_per_second": decode,
        "prior_bits_per_image": None, "frechet_samples": None, "seconds_per_sample": None,
    }  # fmt: skip


@torch.inference_mode()
def _measured_priors(run: RunFolder, case: Case, features: Features) -> Row:
    """What is measured of a run's priors: bits of the first test images, and as many samples."""
    rate = evaluate_run(run.path, limit=_FEATURE_IMAGES).rate
    assert rate is not None
    tests, generative = test_images(case.config, _FEATURE_IMAGES), Generative(run.path)
    count = sum(len(images) for images in tests)
    begun = time.perf_counter()
    drawn = generative.sample(count, seed=1).images
    seconds = (time.perf_counter() - begun) / count
    batches = list(drawn.split(_BATCH))  # type: ignore[no-untyped-call]
    return {
        "prior_bits_per_image": rate.prior_bits_per_image,
        "frechet_samples": frechet_distance(features, tests, batches),
        "seconds_per_sample": seconds,
    }


def _perceptual(tests: Sequence[Tensor], decoded: Sequence[Tensor]) -> float | None:
    """Mean distance of reconstructions by efficientnet-lite0's features; None where that is not installed."""
    try:
        distance = PerceptualDistance()
    except InputError:
        return None
    total = sum(float(distance(one, other)) * len(one) for one, other in zip(tests, decoded, strict=True))
    return total / sum(len(one) for one in tests)


def _train_priors(case: Case, run: RunFolder, say: Say) -> int:
    """Train a case's priors; -> the signal that stopped it, or 0."""
    given = {**case.prior, "prior.training.seed": str(case.config.training.seed), **_SMALL_PRIOR}
    configs = resolve_priors(str(run.path), None, given, resume=prior_run(run.path, 0).begun())
    outcomes = train_priors(run.path, configs, resume=True, say=say).values()
    return next((one.signal for one in outcomes if one.signal is not None), 0)


def _claim(out: Path, about: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Make a folder this comparison's: write there what is compared.

    Raises:
        InputError: it holds another comparison, or a run of one of these names with another configuration.
    """
    path, told = out / "comparison.json", json.loads(json.dumps(about))
    if path.is_file() and json.loads(path.read_text()) != told:
        raise InputError(f"{out} holds another comparison ({path.read_text()}); choose another --out")
    for case in cases:
        run = RunFolder(out / "runs" / case.name)
        if run.begun() and run.read_config() != case.config:
            raise InputError(f"{run.path} was trained with another configuration; choose another --out")
    (out / "rows").mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(told).encode())


def run_cases(
    cases: Sequence[Case],
    about: Mapping[str, Any],
    out: Path,
    say: Say,
    more: Callable[[RunFolder], Row] = lambda _: {},
) -> int:
    """Train and measure every case; -> the signal that stopped it (0: none).

    What is there already is not made again: a run goes on where it stopped, a measured one is taken as it is.

    Args:
        about: what is compared, as plain values; a folder that holds something else is refused.
        more: further columns of a run.

    Raises:
        InputError: no such data, or the folder holds another comparison.
    """
    _claim(out, about, cases)
    features: Features | None = None
    for case in cases:
        path, run = out / "rows" / f"{case.name}.json", RunFolder(out / "runs" / case.name)
        row = json.loads(path.read_text()) if path.is_file() else {}
        if row.get("prior") and case.prior and row["prior"] != dict(case.prior):
            raise InputError(f"{path} has priors of another budget ({row['prior']}); choose another --out")
        if row and (row["prior"] or not case.prior):
            continue
        features = features or features_of(out, case.config, say)  # first: what it needs may be missing
        say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
        if not row:
            outcome = train(case.config, run, resume=run.begun(), say=say)
            if outcome.signal is not None:
                return outcome.signal
            measured = {**_measured(run, case, features), **more(run)}
            row = {**case.labels, "training_seconds": outcome.seconds, "prior": {}, **measured}
            write_atomic(path, json.dumps(row, indent=2).encode())
        if case.prior:
            signal = _train_priors(case, run, say)
            if signal:
                return signal
            row |= {"prior": dict(case.prior), **_measured_priors(run, case, features)}
            write_atomic(path, json.dumps(row, indent=2).encode())
    return 0


def rows_of(out: Path, order: Callable[[Row], Any]) -> list[Row]:
    """All rows that a folder holds, in that order."""
    return sorted((json.loads(path.read_text()) for path in (out / "rows").glob("*.json")), key=order)


def write_results(out: Path, rows: Sequence[Row], table: str) -> None:
    """The rows as JSON, and as the table."""
    write_atomic(out / "results.json", json.dumps(rows, indent=2).encode())
    write_atomic(out / "results.md", table.encode())


def as_markdown(rows: Sequence[Row], labels: Sequence[str], columns: Mapping[str, tuple[str, str]]) -> str:
    """A table with a row for each set of labels: means over the rest, with standard deviations where there are several.

    Args:
        columns: name -> (head, format of its values); "{features}" in a head is the network that gave the features.
    """
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    network = next((row["features"] for row in rows if "features" in row), "")
    heads = [*labels, "seeds", *(columns[name][0].format(features=network) for name in shown)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key in dict.fromkeys(tuple(row[label] for label in labels) for row in rows):
        some = [row for row in rows if tuple(row[label] for label in labels) == key]
        cells = [*map(str, key), str(len(some))]
        for name in shown:
            values = [row[name] for row in some if row.get(name) is not None]
            form = columns[name][1]
            cell = form.format(mean(values)) if values else "-"
            if len(values) > 1 and not math.isclose(stdev(values), 0, abs_tol=1e-12):
                cell += f" ± {form.format(stdev(values))}"
            if 0 < len(values) < len(some):
                cell += f" (n={len(values)})"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
