"""Evaluate a run: distortion, codeword usage, rate, and the quality of samples.

The rate is the number of bits of the codes under the priors, and in files of codes.
Class-conditional priors get the class, whose bits are listed separately. Files (docs/format.md) are
coded by the entropy model, without classes, and are measured without headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.codes.maps import CodeMaps, CodeRecorder
from hrvqvae.compression import hrv
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.levels import flat_codes
from hrvqvae.config import DataConfig, Grid, TrainingConfig, level_names
from hrvqvae.config.parsing import OWN_IMAGES
from hrvqvae.config.registry import DATASETS
from hrvqvae.data.batches import ImageSet, evaluation_batches
from hrvqvae.data.fetch import find_folder, list_missing_files
from hrvqvae.data.images import BrokenImageError
from hrvqvae.data.loading import is_named, is_published, is_undivided, load_images
from hrvqvae.distributed import working_alone
from hrvqvae.evaluation.samples import SampleQuality, measure_samples
from hrvqvae.model import Model
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.distortion import Report, evaluate
from hrvqvae.priors.base import Prior, Priors, measure_bits
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import Compute, exact_float32
from hrvqvae.utils.errors import InputError, expand_home, require
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.outputs import base_name
from hrvqvae.utils.progress import note, tracked

_BATCH = 64
_FILES = 1_024


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits per image, mean over the coded images."""

    #: bits of each level that has a prior, from the first on; given the class, if priors know it
    prior: tuple[float, ...]
    file: tuple[float, ...]  #: bits of each level in files of codes; empty without an entropy model
    positions: tuple[int, ...]  #: number of positions of each level's grid
    label: float  #: bits of the class, by the classes' frequencies in training; 0 without classes

    def per_code(self, coder: str) -> list[float | None]:
        """Return the bits per code of each level by "prior" or "file"; None for a level that is not
        measured.
        """
        pairs = zip_longest(getattr(self, coder), self.positions)
        return [None if bits is None else bits / count for bits, count in pairs]

    def per_image(self, coder: str) -> float | None:
        """Return the bits per image by "prior" or "file"; None if a level is not measured."""
        bits = getattr(self, coder)
        return sum(bits) if len(bits) == len(self.positions) else None


def measure_label_bits(class_counts: Sequence[int], labels: NDArray[np.int64]) -> float:
    """Return the mean bits of labels, coded by the frequencies of the classes, with 1 added to each
    class count.
    """
    counts = np.asarray(class_counts) + 1
    return float(-np.log2(counts[labels] / counts.sum()).mean())


def _read_parts(maps: CodeMaps, size: int) -> Iterator[tuple[Codes, Tensor]]:
    """Yield all codes and labels in order, of at most `size` images at a time."""
    return map(maps.read, slices(np.arange(len(maps)), size))


def measure_file_bits(entropy_model: EntropyModel, maps: CodeMaps, size: Grid) -> tuple[float, ...]:
    """Return the bits per image of each level in files, without headers and checks; images have
    `size` pixels.
    """
    total = np.zeros(len(maps.levels))
    for codes, _ in _read_parts(maps, _FILES):
        files = hrv.write(entropy_model, flat_codes(codes), size)
        for image in hrv.read(entropy_model, files):
            total += np.array(image.lengths[1:]) - 1  # a level takes whole bytes, then its check
    return tuple((8 * total / len(maps)).tolist())


def measure_prior_bits(
    prior: Prior, model: Autoencoder, maps: CodeMaps, device: torch.device
) -> tuple[float, ...]:
    """Return the bits per image of each level that a prior covers, computed in float32."""
    prior.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = prior.level.index
    count = len(prior.levels)
    bits = np.zeros(count)
    title = f"bits of {level_names(range(first, first + count))} under the prior"
    parts = _read_parts(maps, _BATCH)
    for codes, labels in tracked(parts, title, len(maps), lambda part: len(part[1])):
        coarser = [indices.to(device) for indices in model.codeword_indices(codes[:first])]
        prior_codes = [code.to(device) for code in codes[first : first + count]]
        label = labels.to(device) if prior.level.classes else None
        bits += measure_bits(prior, prior_codes, coarser, label)
    prior.cpu()
    return tuple((bits / len(maps)).tolist())


def measure_rate(
    priors: Priors,
    model: Autoencoder,
    entropy_model: EntropyModel | None,
    maps: CodeMaps,
    size: Grid,
    device: torch.device,
) -> Rate:
    """Return the rate of the codes in `maps`, of images of `size` pixels; in files, if there is an
    entropy model.
    """
    return Rate(
        prior=tuple(
            bits
            for prior in priors.networks
            for bits in measure_prior_bits(prior, model, maps, device)
        ),
        file=measure_file_bits(entropy_model, maps, size) if entropy_model else (),
        positions=tuple(int(np.prod(level[0].shape)) for level in maps.levels),
        label=measure_label_bits(priors.class_counts, maps.labels) if priors.classes else 0.0,
    )


@dataclass(frozen=True)
class RunEvaluation:
    """The results of evaluating a run."""

    report: Report
    rate: Rate | None
    no_rate: str  # why there is no rate under priors; "" if there is one
    samples: tuple[SampleQuality, ...] = ()  # one for each guidance

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = self.report.to_dict()
        rate = self.rate
        for coder in ("prior", "file"):
            values[f"{coder}_bits_per_image"] = rate and rate.per_image(coder)
            per_code = rate.per_code(coder) if rate else [None] * len(values["levels"])
            for columns, bits in zip(values["levels"], per_code, strict=True):
                columns[f"{coder}_bits_per_code"] = bits
        values["label_bits_per_image"] = rate and rate.label
        values["no_priors"] = self.no_rate or None
        if self.samples:
            values |= asdict(self.samples[0])
            values["by_guidance"] = [asdict(quality) for quality in self.samples]
        return values


def choose_data(data: DataConfig, root: str | None, split: str | None) -> tuple[DataConfig, str]:
    """Return the data to measure on, and its split.

    `data` is the data of the run. If `root` holds the published set or is the run's own folder, it
    is measured as in training. Another folder is measured whole by default (split "all", see
    `open_images`), or on its test split if it has splits.
    """
    if root is None:
        return data, split or "test"

    # The published set, or the run's own folder, is measured as in training.
    if is_named(root):
        is_as_trained = root == data.root
    else:
        root = str(expand_home(root))
        folder = find_folder(data.dataset, root)
        trained_on = find_folder(data.dataset, data.root)
        # `root` may hold the set under its name
        is_as_trained = folder != Path(root) or folder.resolve() == trained_on.resolve()
        if is_published(data.dataset):
            is_as_trained = not list_missing_files(DATASETS.get(data.dataset), folder)
    if is_as_trained:
        return replace(data, root=root), split or "test"

    # Any other folder gives the set its name, unless a published set would be looked for then.
    name = base_name(root)
    if is_published(name):
        name = OWN_IMAGES
    data = replace(data, dataset=name, root=root, validation=0.0)
    return data, split or ("all" if is_undivided(data) else "test")


def load_with_labels(data: DataConfig, split: str) -> ImageSet:
    """Load images, without labels if the labels are wrong, with a note. Raises InputError."""
    try:
        return load_images(data, split)
    except InputError as error:
        if not data.labels or isinstance(error, BrokenImageError):
            raise
        images = load_images(replace(data, labels=False), split)
        note(f"measured without labels: {error}")
        return images


def load_fitting_priors(model: Model, classes: Sequence[str]) -> tuple[Priors | None, str]:
    """Return the priors of the first levels, as far as they are trained, if they fit images of
    these classes; else None and why.
    """
    num_levels = model.run.count_prior_levels()
    if not num_levels:
        return None, f"train them: hrvqvae train-prior {model.run}"
    try:
        priors = model.load_priors(num_levels)
    except InputError as error:
        return None, str(error)
    if priors.classes and priors.classes != classes:
        return None, _describe_other_classes(priors.classes, classes)
    return priors, ""


def _describe_other_classes(expected: Sequence[str], classes: Sequence[str]) -> str:
    known = ", ".join(expected) or "none"
    has = ", ".join(classes) or "no classes"
    return f"the priors have other classes than the data: {known}; the data has {has}"


@exact_float32()
@working_alone()
def evaluate_run(
    run: str | Path,
    split: str | None = None,
    root: str | None = None,
    device: str = "auto",
    samples: int = 0,
    *,
    guidance: Sequence[Guidance] = (1.0,),
    limit: int | None = None,
    beam: int | None = None,
    effort: int = 0,
    sample_levels: int | None = None,
    rate: bool = True,
    on_error: str | None = None,
) -> RunEvaluation:
    """Measure a run's autoencoder on images, and its priors if they fit the images, in float32.

    Args:
        split: "train", "test" or "all" (default: as in `choose_data`).
        root: folder of the images (default: as in training).
        samples: number of samples to draw and measure with each guidance.
        guidance: one or several guidances: (1, 5) measures samples with guidance 1, and others
            with guidance 5; [(1, 5)] measures samples with guidance from 1 at the first position to
            5 at the last.
        limit: number of images, spread evenly over the split, at least 1 (None: all).
        beam: as for `hrvqvae.load`; `effort` is as for `Model.encode`.
        sample_levels: levels to draw (default: all, or those of sampling.json if a level has no
            prior).
        rate: measure the rate.
        on_error: "stop" at an unreadable image, or "skip" it (default: as in training).

    Raises:
        InputError: The run or the data is missing, a value is out of range, or samples are asked
            for and the run lacks a prior, classes or guidance, or there are too few samples or
            images to compare.
    """
    require(limit is None or limit >= 1, "limit", limit, "at least 1")
    compute = Compute(TrainingConfig(epochs=1, device=device, precision="fp32"))
    model = Model(run, str(compute.device), beam)

    # Find the images, and the priors that fit them.
    data = model.config.data
    data = data.replace(on_error=on_error or data.on_error)
    data, split = choose_data(data, root, split)
    images = load_with_labels(data, split)
    priors: Priors | None = None
    no_rate = "not asked for"
    if rate:
        priors, no_rate = load_fitting_priors(model, images.classes)

    # Measure samples first: most of what can be missing is missing there.
    quality: tuple[SampleQuality, ...] = ()
    if samples:
        if not images.classes or images.classes != model.classes:
            raise InputError(_describe_other_classes(model.classes, images.classes))
        levels = model.run.sampling_options(guidance[0], sample_levels)["levels"]
        priors_of_samples = model.load_priors(model.autoencoder.check_levels(levels))
        for of_samples in guidance:
            SamplingParams(guidance=of_samples).check(priors_of_samples.networks)
        quality = measure_samples(
            model, data, samples, guidances=guidance, effort=effort, levels=levels
        )

    # Encode, decode and compare; the recorder keeps the codes.
    config = replace(model.config, data=data)
    recorder = CodeRecorder(model.encoder(effort=effort), config.model.num_symbols)
    batch_size = min(128, config.training.batch_size)
    batches = evaluation_batches(images, batch_size=batch_size, limit=limit, workers=data.workers)
    total = len(images) if limit is None else min(limit, len(images))
    title = f"evaluate on the {split} split" if split != "all" else "evaluate"
    progress = tracked(recorder.watch(batches), title, total, lambda batch: len(batch.images))
    autoencoder = compute.place_model(model.autoencoder)
    report = evaluate(autoencoder, config, progress, split, compute.device, recorder.encode)

    # Measure the rate of these codes.
    maps = recorder.maps(images.classes)
    autoencoder.cpu()
    measured = None
    entropy_model = _load_entropy_model(model) if rate else None
    if priors or entropy_model:
        measured = measure_rate(
            priors or Priors((), (), ()),
            autoencoder,
            entropy_model,
            maps,
            data.image_size,
            compute.device,
        )
    return RunEvaluation(report, measured, no_rate, quality)


def _load_entropy_model(model: Model) -> EntropyModel | None:
    """Return the entropy model; None with a note if it is stale or damaged, or if there is none."""
    try:
        entropy_model = model.entropy_model
    except InputError as error:
        note(f"bits in files are not measured: {error}")
        return None
    return entropy_model if entropy_model.networks else None
