"""Systems side by side: same data, same order, same budget, same test images; only the system differs.

DIR/runs/SYSTEM-SEED/    a run folder each
    rows/SYSTEM-SEED.json  what was measured of it
    results.json, results.md, reconstructions.png, samples.png
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hrvqvae import data, presets, storage
from hrvqvae.checkpoint import RunFolder, load_with_config, prior_run
from hrvqvae.commands import evaluate_run
from hrvqvae.config import Config
from hrvqvae.errors import InputError
from hrvqvae.evaluation.classifier import Classifier, Judge, train_judge
from hrvqvae.generate import Generative
from hrvqvae.models import Autoencoder
from hrvqvae.pictures import sheets
from hrvqvae.resolve import resolve_priors
from hrvqvae.storage import write_atomic
from hrvqvae.training.autoencoder import train
from hrvqvae.training.prior import train_priors
from hrvqvae.training.stage import count_parameters

Row = dict[str, Any]
Say = Callable[[str], None]

SYSTEMS = ("hrvqvae", "vqvae", "vqvae2", "vqgan")
_SHEET, _SAMPLES, _TIMED = 12, 24, 256
_FRECHET_IMAGES = 2_000

# column of results.json -> (head of results.md, how its values are shown)
COLUMNS: Mapping[str, tuple[str, str]] = {
    "parameters": ("parameters", "{:,.0f}"),
    "bits_per_image": ("bits an image", "{:,.0f}"),
    "compression_ratio": ("compression", "{:.2f}"),
    "mse": ("MSE", "{:.3e}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "classifier_frechet": ("Frechet, classifier features", "{:.3f}"),
    "usage": ("codewords used", "{:.1%}"),
    "perplexity": ("perplexity, finest", "{:.1f}"),
    "codewords_searched": ("searched a position", "{:,.0f}"),
    "training_seconds": ("training, s", "{:,.0f}"),
    "encode_images_per_second": ("encode, images/s", "{:,.0f}"),
    "decode_images_per_second": ("decode, images/s", "{:,.0f}"),
    "prior_bits_per_image": ("prior, bits an image", "{:.1f}"),
    "samples_classifier_frechet": ("samples: Frechet, classifier features", "{:.3f}"),
    "seconds_per_sample": ("s a sample", "{:.3f}"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        dataset: the part of the preset's name after the system.
        systems: their names.
        seeds: 0 .. seeds - 1, each trains every system.
        max_steps, max_minutes: the budget of each autoencoder (0: no such limit; one is needed).
        prior_steps: updates of the priors of a system in all, shared equally among its levels (0: no priors).
        root: folder of the data.
    """

    dataset: str
    systems: tuple[str, ...] = SYSTEMS
    seeds: int = 1
    max_steps: int = 0
    max_minutes: float = 0.0
    prior_steps: int = 0
    root: str | None = None

    def __post_init__(self) -> None:
        for system in self.systems:
            presets.get(f"{system}/{self.dataset}")
        if not self.systems:
            raise InputError(f"--systems names none; there are {', '.join(SYSTEMS)}")
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; it must be at least 1")
        if not (self.max_steps > 0 or self.max_minutes > 0):
            raise InputError("no budget: give --max-steps or --max-minutes")

    def config(self, system: str, seed: int) -> Config:
        """The preset of a system with the budget and seed of this comparison."""
        preset = presets.get(f"{system}/{self.dataset}").config.with_root(self.root)
        steps = {"epochs": 0, "max_steps": self.max_steps, "max_minutes": self.max_minutes, "seed": seed}
        return dataclasses.replace(preset, training=dataclasses.replace(preset.training, **steps))  # type: ignore[arg-type]


class _Features(nn.Module):
    """The classifier's features, as torchmetrics' Frechet distance takes them."""

    num_features = 128

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) float32 in [0, 1] -> (B, 128)."""
        return self.classifier.features(images)


def frechet_distance(classifier: Classifier, real: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Frechet distance between the classifier's features of two sets of batches. Not FID: that means Inception's."""
    metric = FrechetInceptionDistance(feature=_Features(classifier), normalize=True)
    for is_real, batches in ((True, real), (False, other)):
        for images in batches:
            metric.update(images, real=is_real)
    distance: Tensor = metric.compute()
    return float(distance)


def _judge(folder: Path, config: Config, say: Say) -> Judge | None:
    """The classifier of the data, trained once a comparison; None where the data has no classes."""
    path = folder / "classifier.safetensors"
    classes = len(data.load(config.data, "test").classes)
    if not classes:
        return None
    if path.is_file():
        weights, meta = storage.read(path)
        classifier = Classifier(config.data.channels, classes)
        classifier.load_state_dict(weights)
        return Judge(classifier.eval().requires_grad_(False), meta["accuracy"])
    judge = train_judge(config.data, say=say)
    storage.write(path, judge.classifier.state_dict(), {"kind": "classifier", "accuracy": judge.accuracy})
    return judge


def _speed(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """(images encoded, images decoded) a second: medians of five."""
    size = (images.shape[-2], images.shape[-1])

    def rate(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        return len(images) / float(np.median(times))

    with torch.inference_mode():
        codes = model.encode(images)
        return rate(lambda: model.encode(images)), rate(lambda: model.decode(codes, size=size))


def _test_images(config: Config, count: int) -> list[Tensor]:
    batches = data.evaluation_batches(
        data.load(config.data, "test"), batch_size=64, limit=count, on_error=config.data.on_error
    )
    return [batch.images.float() / 255 for batch in batches]


@torch.inference_mode()
def _measured(run: RunFolder, config: Config, judge: Judge | None, priors: bool) -> Row:
    """Everything that is measured of a trained run."""
    evaluated = evaluate_run(run.path, rate=priors)
    report = evaluated.report
    model, _ = load_with_config(run.path)
    tests = _test_images(config, _FRECHET_IMAGES)
    size = (config.data.size, config.data.size)
    encode, decode = _speed(model, torch.cat(list(islice(tests, -(-_TIMED // 64))))[:_TIMED])
    used = sum(level.used for level in report.levels)
    row: Row = {
        "parameters": count_parameters(model), "bits_per_image": report.bits_per_image,
        "compression_ratio": report.compression_ratio, "mse": report.mse, "psnr": report.psnr, "ssim": report.ssim,
        "classifier_frechet": None, "usage": used / sum(config.model.num_codewords),
        "perplexity": report.levels[-1].perplexity, "codewords_searched": sum(config.model.num_symbols),
        "encode_images_per_second": encode, "decode_images_per_second": decode, "prior_bits_per_image": None,
        "samples_classifier_frechet": None, "seconds_per_sample": None,
    }  # fmt: skip
    if judge is not None:
        decoded = [model.decode(model.encode(images), size=size) for images in tests]
        row["classifier_frechet"] = frechet_distance(judge.classifier, tests, decoded)
    if evaluated.rate is not None:
        row["prior_bits_per_image"] = evaluated.rate.prior_bits_per_image
        generative = Generative(run.path)
        count = min(_FRECHET_IMAGES, sum(len(images) for images in tests))
        begun = time.perf_counter()
        drawn = generative.sample(count, seed=1)
        row["seconds_per_sample"] = (time.perf_counter() - begun) / count
        if judge is not None:
            row["samples_classifier_frechet"] = frechet_distance(
                judge.classifier,
                tests,
                list(drawn.images.split(64)),  # type: ignore[no-untyped-call]
            )
    return row


def compare(comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Row], int]:
    """Train, measure and draw every system and seed; -> rows, and the signal that stopped it (0: none).

    What is there already is not made again: a run goes on where it stopped, a measured one is taken as it is.

    Raises:
        InputError: no such preset or data, or the folder holds another comparison.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows").mkdir(exist_ok=True)
    about = json.loads(json.dumps({k: v for k, v in dataclasses.asdict(comparison).items() if k != "root"}))
    settings = out / "comparison.json"
    for key in ("systems", "seeds"):  # more of these may come
        about.pop(key)
    if settings.is_file() and json.loads(settings.read_text()) != about:
        raise InputError(f"{out} holds another comparison ({settings.read_text()}); choose another --out")
    write_atomic(settings, json.dumps(about).encode())
    rows: list[Row] = []
    judge: Judge | None = None
    for seed in range(comparison.seeds):
        for system in comparison.systems:
            config = comparison.config(system, seed)
            name = f"{system}-{seed}"
            path, run = out / "rows" / f"{name}.json", RunFolder(out / "runs" / name)
            if not path.is_file():
                say(f"--- {system}, seed {seed}")
                seconds, signal = _trained(comparison, config, run, say)
                if signal:
                    return rows, signal
                judge = judge or _judge(out, config, say)
                row = {"system": system, "seed": seed, "training_seconds": seconds}
                row |= _measured(run, config, judge, comparison.prior_steps > 0)
                write_atomic(path, json.dumps(row, indent=2).encode())
            rows.append(json.loads(path.read_text()))
    write_atomic(out / "results.json", json.dumps(rows, indent=2).encode())
    write_atomic(out / "results.md", as_markdown(rows).encode())
    _sheets(comparison, out)
    return rows, 0


def _trained(comparison: Comparison, config: Config, run: RunFolder, say: Say) -> tuple[float, int]:
    """Train a run's autoencoder and priors; -> seconds of the autoencoder's training, signal that stopped it or 0."""
    outcome = train(config, run, resume=run.begun(), say=say)
    if outcome.signal is not None:
        return outcome.seconds, outcome.signal
    if comparison.prior_steps:
        levels = len(config.model.num_symbols)
        given = {
            "prior.training.max_steps": str(max(1, comparison.prior_steps // levels)),
            "prior.training.seed": str(config.training.seed), **_SMALL_PRIOR,
        }  # fmt: skip
        configs = resolve_priors(str(run.path), None, given, resume=prior_run(run.path, 0).begun())
        for one in train_priors(run.path, configs, resume=True, say=say).values():
            if one.signal is not None:
                return outcome.seconds, one.signal
    return outcome.seconds, 0


# The printed batch sizes are for a GPU: every system's priors get the same small batch here.
_SMALL_PRIOR = {
    "prior.training.batch_size": "32", "prior.batch_size": "[]", "prior.training.learning_rate": "2e-3",
    "prior.training.warmup_steps": "50", "prior.training.evaluate_every": "200",
    "prior.training.checkpoint_every": "200",
}  # fmt: skip


def _sheets(comparison: Comparison, out: Path) -> None:
    """The same test images by each system, and samples of each (of seed 0)."""
    first = comparison.config(comparison.systems[0], 0)
    images = _test_images(first, _SHEET)[0][:_SHEET]
    reconstructions, samples = [sheets.Row("original", list(images))], []
    for system in comparison.systems:
        run = out / "runs" / f"{system}-0"
        model, _ = load_with_config(run)
        with torch.inference_mode():
            decoded = model.decode(model.encode(images), size=(images.shape[-2], images.shape[-1]))
        error = float((decoded - images).square().mean())
        reconstructions.append(sheets.Row(f"{system}: MSE {error:.2e}", list(decoded)))
        if comparison.prior_steps:
            drawn = list(Generative(run).sample(_SAMPLES, seed=0).images)
            half = _SAMPLES // 2
            samples += [sheets.Row(system, drawn[:half]), sheets.Row("", drawn[half:])]
    sheets.save(sheets.draw(reconstructions), out / "reconstructions.png")
    if samples:
        sheets.save(sheets.draw(samples), out / "samples.png")


def as_markdown(rows: Sequence[Row]) -> str:
    """A table with a row a system: means over seeds, with their standard deviation where there are several."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [
        "| system | seeds | " + " | ".join(COLUMNS[name][0] for name in shown) + " |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        some = [row for row in rows if row["system"] == system]
        cells = []
        for name in shown:
            values = [row[name] for row in some if row.get(name) is not None]
            form = COLUMNS[name][1]
            cell = form.format(mean(values)) if values else "-"
            if len(values) > 1 and not math.isclose(stdev(values), 0, abs_tol=1e-12):
                cell += f" ± {form.format(stdev(values))}"
            cells.append(cell)
        lines.append(f"| {system} | {len(some)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
