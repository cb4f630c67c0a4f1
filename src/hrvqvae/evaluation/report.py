"""Evaluate a run: distortion, codeword usage, rate, and the quality of samples.

The rate is the number of bits of the codes under the priors, and in files of codes.
Class-conditional priors get the class, whose bits are listed separately. Files (docs/format.md) are
coded by the entropy model, without classes, and are measured without headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hrvqvae.checkpoints.codemaps import CodeMaps, extract_codes
from hrvqvae.checkpoints.run import renewal_advice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.images import flat_codes
from hrvqvae.compression.levels import encode_level
from hrvqvae.config import Grid, TrainingConfig, level_names
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.distortion import Report, evaluate
from hrvqvae.evaluation.samples import SampleQuality, measure_samples
from hrvqvae.model import Model
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, Priors, measure_bits
from hrvqvae.priors.generative import check_sampling_params
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.device import Compute, exact_float32
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

_BATCH = 64
_FILES = 1_024


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits per image, mean over the coded images."""

    prior: tuple[
        float, ...
    ]  #: bits of each level under its prior, given the class if the prior is class-conditional
    files: (
        tuple[float, ...] | None
    )  #: bits of each level in files of codes; None if the run has no entropy model
    positions: tuple[int, ...]  #: number of positions of each level's grid
    label: float  #: bits of the class, by the classes' frequencies in training; 0 without classes


def measure_label_bits(class_counts: Sequence[int], labels: NDArray[np.int64]) -> float:
    """Return the mean bits of labels, coded by the frequencies of the classes, with 1 added to each
    class count.
    """
    counts = np.asarray(class_counts) + 1
    return float(-np.log2(counts[labels] / counts.sum()).mean())


def measure_file_bits(entropy_model: EntropyModel, maps: CodeMaps, size: Grid) -> tuple[float, ...]:
    """Return the bits per image of each level in files, where a level takes whole bytes; images
    have `size` pixels.
    """
    layout = entropy_model.layout(size)
    level_bytes = np.zeros(len(maps.levels))
    for start in range(0, len(maps), _FILES):
        codes, _ = maps.read(np.arange(start, min(start + _FILES, len(maps))))
        flat = flat_codes(codes)
        for level in range(len(level_bytes)):
            level_bytes[level] += sum(
                map(len, encode_level(flat, layout, level, entropy_model.network(level)))
            )
    return tuple((8 * level_bytes / len(maps)).tolist())


def measure_prior_bits(
    prior: Prior, model: Autoencoder, maps: CodeMaps, device: torch.device
) -> tuple[float, ...]:
    """Return the bits per image of each level that a prior covers, computed in float32."""
    prior.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = prior.level.index
    count = len(prior.levels)
    bits = np.zeros(count)
    title = (
        f"bits of {level_names(range(first, first + count))} under"
        f" {'its' if count == 1 else 'their'} prior"
    )
    starts = range(0, len(maps), _BATCH)
    for start in tracked(starts, title, len(maps), lambda start: min(_BATCH, len(maps) - start)):
        codes, labels = maps.read(np.arange(start, min(start + _BATCH, len(maps))))
        coarser = [indices.to(device) for indices in model.codeword_indices(codes[:first])]
        prior_codes = [code.to(device) for code in codes[first : first + count]]
        bits += measure_bits(
            prior, prior_codes, coarser, labels.to(device) if prior.level.classes else None
        )
    prior.cpu()
    return tuple((bits / len(maps)).tolist())


def measure_rate(
    priors: Priors,
    model: Autoencoder,
    entropy_model: EntropyModel,
    maps: CodeMaps,
    size: Grid,
    device: torch.device,
) -> Rate:
    """Return the rate of the codes in `maps`, of images of `size` pixels; in files, if the entropy
    model is fitted.
    """
    return Rate(
        prior=tuple(
            bits
            for prior in priors.networks
            for bits in measure_prior_bits(prior, model, maps, device)
        ),
        files=measure_file_bits(entropy_model, maps, size) if entropy_model.networks else None,
        positions=tuple(int(np.prod(level[0].shape)) for level in maps.levels),
        label=measure_label_bits(priors.class_counts, maps.labels) if priors.classes else 0.0,
    )


@dataclass(frozen=True)
class RunEvaluation:
    """The results of evaluating a run."""

    report: Report
    rate: Rate | None
    no_rate: str  # why there is no rate; "" if there is one
    samples: tuple[SampleQuality, ...] = ()  # one for each guidance weight

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = self.report.to_dict()
        rate = self.rate
        bits = {"prior": rate and rate.prior, "file": rate and rate.files}
        values |= {
            f"{name}_bits_per_image": sum(per_level) if per_level else None
            for name, per_level in bits.items()
        }
        values["label_bits_per_image"] = rate and rate.label
        for level, columns in enumerate(values["levels"]):
            for name, per_level in bits.items():
                per_code = per_level[level] / rate.positions[level] if rate and per_level else None
                columns[f"{name}_bits_per_code"] = per_code
        values["no_priors"] = self.no_rate or None
        if self.samples:
            values |= asdict(self.samples[0])
            names = ("guidance", "classification_accuracy")
            plain = [asdict(quality) for quality in self.samples]
            values["by_guidance"] = [
                {name: of[name] for name in names} | of["distances"]["samples"] for of in plain
            ]
        return values


@exact_float32()
def evaluate_run(
    run: str | Path,
    split: str = "test",
    root: str | None = None,
    device: str = "auto",
    samples: int = 0,
    *,
    guidance: Sequence[float] = (1.0,),
    limit: int | None = None,
    beam: int | None = None,
    lmbda: float | None = None,
    sample_levels: int | None = None,
    rate: bool = True,
) -> RunEvaluation:
    """Measure a run's autoencoder on a split, and the priors if every level has one that is not
    stale, in float32.

    Raises InputError if the run or the data is missing, if a prior is missing and samples are
    drawn, or if the run does not support the guidance or the lambda.

    Args:
        samples: number of samples to draw and measure with each weight of `guidance`.
        limit: number of images, spread evenly over the split (None: all).
        beam: as for `hrvqvae.load`; `lmbda` is as for `Model.encode`.
        sample_levels: levels to draw (`SamplingParams.levels`).
        rate: measure the rate; if False, samples are not measured either.
    """
    compute = Compute(TrainingConfig(epochs=1, device=device, precision="fp32"))
    trained = Model(run, str(compute.device), beam)
    trained.autoencoder.check_levels(sample_levels)
    if samples and rate and not trained.classes:
        raise InputError(
            f"the priors of {run} know no classes: leave out --samples, or train on images with"
            " classes"
        )
    for weight in guidance if samples else ():
        check_sampling_params(trained.priors.networks, SamplingParams(guidance=weight))
    model = trained.autoencoder
    config = trained.config.with_root(root)
    encode = trained.encoder(lmbda)
    images = load_images(config.data, split)
    model = compute.place_model(model)
    batch_size = min(128, config.training.batch_size)
    batches = evaluation_batches(
        images, batch_size=batch_size, limit=limit, workers=config.data.workers
    )
    total = len(images) if limit is None else min(limit, len(images))
    progress = tracked(
        batches, f"evaluate on the {split} split", total, lambda batch: len(batch.images)
    )
    report = evaluate(model, config, progress, split, compute.device, encode)
    if not rate:
        return RunEvaluation(report, None, "not asked for")
    if not samples and (command := trained.run.missing_priors()):
        return RunEvaluation(report, None, f"train them: {command}")
    stale = [
        str(artifact)
        for artifact in trained.run.stale_artifacts()
        if artifact.path != trained.run.progressive.path
    ]
    if stale and not samples:
        return RunEvaluation(report, None, f"{', '.join(stale)}: {renewal_advice(run)}")
    priors = trained.priors
    maps = extract_codes(model, config, split, compute.device, limit, encode=encode)
    if priors.classes and maps.classes != priors.classes:
        raise InputError(
            f"the priors of {run} have other classes than the data: {', '.join(priors.classes)}"
        )
    size = (config.data.size, config.data.size)
    measured = measure_rate(priors, model, trained.entropy_model, maps, size, compute.device)
    if not samples:
        return RunEvaluation(report, measured, "")
    cpu_model = Model(run, beam=beam)
    quality = measure_samples(
        cpu_model, config.data, samples, guidance=guidance, lmbda=lmbda, levels=sample_levels
    )
    return RunEvaluation(report, measured, "", quality)
