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
from torch import Tensor

from hrvqvae import data
from hrvqvae.bench.timing import median_seconds
from hrvqvae.checkpoint import RunFolder, load_with_config, prior_run
from hrvqvae.commands import evaluate_run
from hrvqvae.config import Config
from hrvqvae.errors import InputError
from hrvqvae.evaluation.features import FrechetDistance, features_of
from hrvqvae.generate import Generative
from hrvqvae.losses import PerceptualDistance, perceptual_distance
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


def test_images(config: Config, count: int) -> list[Tensor]:
    """Batches of the first `count` test images, float32 in [0, 1]."""
    batches = data.evaluation_batches(
        data.load(config.data, "test"), batch_size=_BATCH, limit=count, on_error=config.data.on_error
    )
    return [batch.images.float() / 255 for batch in batches]


@dataclass(frozen=True)
class Instruments:
    """What every run of a folder is measured with: the first test images, and distances between images by features.

    Attributes:
        tests: batches of images in [0, 1].
        frechet: distance of a set of images from them.
        perceptual: distance of reconstructions; None where no network for it is on this machine.
    """

    tests: Sequence[Tensor]
    frechet: FrechetDistance
    perceptual: PerceptualDistance | None

    @staticmethod
    def of(config: Config, folder: Path, say: Say) -> Instruments:
        """The best there are. Raises InputError where there are none, or the data is not there."""
        features, tests = features_of(folder, config.data, say), test_images(config, _FEATURE_IMAGES)
        try:
            perceptual = perceptual_distance()
        except InputError:
            perceptual = None
        return Instruments(tests, FrechetDistance(features, tests), perceptual)

    def names(self) -> Row:
        """The true names of the distances."""
        return {"perceptual": self.perceptual and self.perceptual.title, "frechet": self.frechet.title}

    def perceptual_of(self, decoded: Sequence[Tensor]) -> float | None:
        """Mean perceptual distance of the reconstructions of the test images."""
        if self.perceptual is None:
            return None
        pairs = zip(self.tests, decoded, strict=True)
        total = sum(float(self.perceptual(one, other)) * len(one) for one, other in pairs)
        return total / sum(len(one) for one in self.tests)


def _speed(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """(images encoded, images decoded) a second."""
    size = (images.shape[-2], images.shape[-1])
    with torch.inference_mode():
        codes = model.encode(images)
        encode = median_seconds(lambda: model.encode(images))
        decode = median_seconds(lambda: model.decode(codes, size=size))
    return len(images) / encode, len(images) / decode


@torch.inference_mode()
def _measured(run: RunFolder, case: Case, using: Instruments) -> Row:
    """Everything that is measured of a trained autoencoder, and the names of what is measured of priors, as None."""
    config = case.config
    report = evaluate_run(run.path, rate=False).report
    model, _ = load_with_config(run.path)
    size = (config.data.size, config.data.size)
    encode, decode = _speed(model, torch.cat(list(using.tests))[:_TIMED])
    used = sum(level.used for level in report.levels)
    decoded = [model.decode(model.encode(images), size=size) for images in using.tests]
    return {
        "parameters": count_parameters(model), "bits_per_image": report.bits_per_image,
        "compression_ratio": report.compression_ratio, "mse": report.mse, "psnr": report.psnr, "ssim": report.ssim,
        **using.names(), "perceptual_distance": using.perceptual_of(decoded),
        "frechet_reconstructions": using.frechet(decoded),
        "usage": used / sum(config.model.num_codewords), "perplexity": report.levels[-1].perplexity,
        "leaves_used": report.levels[-1].used, "codewords_searched": sum(config.model.num_symbols),
        "encode_images_per_second": encode, "decode_images_per_second": decode,
        "prior_bits_per_image": None, "frechet_samples": None, "seconds_per_sample": None,
    }  # fmt: skip


@torch.inference_mode()
def _measured_priors(run: RunFolder, using: Instruments) -> Row:
    """What is measured of a run's priors: bits of the first test images, and as many samples."""
    rate = evaluate_run(run.path, limit=_FEATURE_IMAGES).rate
    assert rate is not None
    generative = Generative(run.path)
    count = sum(len(images) for images in using.tests)
    begun = time.perf_counter()
    drawn = generative.sample(count, seed=1).images
    seconds = (time.perf_counter() - begun) / count
    batches = list(drawn.split(_BATCH))  # type: ignore[no-untyped-call]
    return {
        "prior_bits_per_image": rate.prior_bits_per_image,
        "frechet_samples": using.frechet(batches),
        "seconds_per_sample": seconds,
    }


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


def _same_instruments(out: Path, using: Instruments) -> None:
    """Raises InputError where the folder holds rows that were measured by other distances."""
    for row in rows_of(out, lambda row: 0):
        names = {name: row.get(name) for name in using.names()}
        if names != using.names():
            told = [" and ".join(str(name) for name in one.values()) for one in (names, using.names())]
            raise InputError(
                f"{out} has rows measured by {told[0]}, this machine now measures by {told[1]}: delete {out / 'rows'} "
                "to have every run measured again (none is trained again)"
            )


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
    using: Instruments | None = None
    for case in cases:
        path, run = out / "rows" / f"{case.name}.json", RunFolder(out / "runs" / case.name)
        row = json.loads(path.read_text()) if path.is_file() else {}
        if row.get("prior") and case.prior and row["prior"] != dict(case.prior):
            raise InputError(f"{path} has priors of another budget ({row['prior']}); choose another --out")
        if row and (row["prior"] or not case.prior):
            continue
        if using is None:  # first: what it needs may be missing
            using = Instruments.of(case.config, out, say)
            _same_instruments(out, using)
        say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
        if not row:
            outcome = train(case.config, run, resume=run.begun(), say=say)
            if outcome.signal is not None:
                return outcome.signal
            measured = {**_measured(run, case, using), **more(run)}
            row = {**case.labels, "training_seconds": outcome.seconds, "prior": {}, **measured}
            write_atomic(path, json.dumps(row, indent=2).encode())
        if case.prior:
            signal = _train_priors(case, run, say)
            if signal:
                return signal
            row |= {"prior": dict(case.prior), **_measured_priors(run, using)}
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
        columns: name -> (head, format of its values); a name in braces in a head stands for the rows' value of it.
    """
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    heads = [*labels, "seeds", *(columns[name][0].format(**rows[0]) for name in shown)]
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
