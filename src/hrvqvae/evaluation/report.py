"""A run measured: distortion and codeword usage, the rate under its priors, the quality of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints.codemaps import extract
from hrvqvae.checkpoints.loading import lacking_priors
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.config import TrainingConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.distortion import Report, evaluate
from hrvqvae.evaluation.rate import Rate, measure_rate
from hrvqvae.evaluation.samples import SampleQuality, measure_samples
from hrvqvae.priors.generative import check_sampling_params
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.device import Compute
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note, tracked


@dataclass(frozen=True)
class Evaluated:
    """The autoencoder's report; the priors' rate, or why there is none; the quality of samples for each guidance."""

    report: Report
    rate: Rate | None
    no_rate: str
    samples: tuple[SampleQuality, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the rate's beside the report's, None where there are no priors or no entropy model."""
        plain, rate = self.report.to_dict(), self.rate
        bits = {"prior": rate and rate.prior, "file": rate and rate.files}
        plain |= {f"{name}_bits_per_image": sum(each) if each else None for name, each in bits.items()}
        plain["label_bits_per_image"] = rate and rate.label
        for level, values in enumerate(plain["levels"]):
            for name, each in bits.items():
                values[f"{name}_bits_per_code"] = each[level] / rate.positions[level] if rate and each else None
        plain["no_priors"] = self.no_rate or None
        if self.samples:
            plain |= self.samples[0].to_dict()
            plain["by_guidance"] = [
                {name: vars(one)[name] for name in ("guidance", "classification_accuracy")}
                | vars(one.distances["samples"])
                for one in self.samples
            ]
        return plain


def evaluate_run(
    run: str | Path, split: str = "test", root: str | None = None, device: str = "auto", samples: int = 0, *,
    guidance: Sequence[float] = (1.0,), limit: int | None = None, beam: int | None = None,
    lmbda: float | None = None, rate: bool = True, say: Callable[[str], None] = note,
) -> Evaluated:  # fmt: skip
    """Measure a run's autoencoder, and its priors where every level has one, on a whole split, in float32.

    Args:
        samples: draw so many and have them classified (0: none).
        guidance: so many with each of these.
        limit: measure on so many images, spread evenly over the split (None: all).
        beam: paths that the search keeps when it encodes; None keeps as many as in training.
        lmbda: as for `TrainedModel.encode`; None measures the usual codes.
        rate: whether the priors are measured.

    Raises:
        InputError: the run or its data is missing, samples can't be guided, or a lambda that the model can't have.
    """
    compute = Compute.of(TrainingConfig(epochs=1, device=device, precision="fp32"))
    trained = TrainedModel(run, str(compute.device), beam)
    for weight in guidance if samples else ():
        check_sampling_params(trained.priors.networks, SamplingParams(guidance=weight))
    model, config, encode = trained.autoencoder, trained.config.with_root(root), trained.encoder(lmbda)
    images = load_images(config.data, split, say)
    model = compute.place_model(model)
    batch_size = min(128, config.training.batch_size)
    batches = evaluation_batches(images, batch_size=batch_size, limit=limit, workers=config.data.workers)
    total = len(images) if limit is None else min(limit, len(images))
    shown = tracked(batches, f"evaluate on the {split} split", total, lambda batch: len(batch.images))
    report = evaluate(model, config, shown, split, compute.device, encode)
    if not rate:
        return Evaluated(report, None, "not asked for")
    lacking = "" if samples else lacking_priors(run)
    if lacking:
        return Evaluated(report, None, lacking)
    priors = trained.priors
    coded = extract(model, config, split, compute.device, limit, encode=encode)
    if priors.classes and coded.classes != priors.classes:
        raise InputError(f"the priors of {run} know other classes than the data has: {', '.join(priors.classes)}")
    found = measure_rate(priors, model, trained.codec, coded, (config.data.size, config.data.size), compute.device)
    if not samples:
        return Evaluated(report, found, "")
    drawing = TrainedModel(run, beam=beam)
    quality = measure_samples(drawing, config.data, samples, guidance=guidance, lmbda=lmbda, say=say)
    return Evaluated(report, found, "", quality)
