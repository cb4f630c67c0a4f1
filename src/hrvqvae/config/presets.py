"""Presets. SYSTEM/DATASET joins the settings of a system (`config.systems`) and of a data set.

A system may have extra presets with names of their own (`entries.ExtraPreset`).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hrvqvae.config.entries import Dataset, Settings, System
from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS
from hrvqvae.config.schema import (
    DEFAULT_PRIOR,
    Config,
    DataConfig,
    PriorConfig,
    bits_per_image,
    compression_ratio,
)
from hrvqvae.config.section import flatten
from hrvqvae.config.systems import OURS, PRINTED, select_column
from hrvqvae.utils.errors import InputError, near_names


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration with the sources of its values."""

    config: Config
    sources: Mapping[str, str]  # dotted name -> "Table 5", ...; a missing name is ours
    about: str
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each

    def source(self, name: str) -> str:
        return self.sources.get(name, OURS)


def _build_preset(
    name: str, system: System, settings: Settings, about: str, notes: tuple[str, ...]
) -> Preset:
    values = {"name": name} | {field: value for field, (value, _) in settings.items()}
    network = PRIORS.get(values.get("prior.network.kind", DEFAULT_PRIOR)).config()
    config = Config(model=system.config, prior=PriorConfig(network=network))
    fields = flatten(config)  # a printed table has further fields, which this system lacks
    config = config.replace(**{field: value for field, value in values.items() if field in fields})
    sources = {field: source for field, (_, source) in settings.items()}
    return Preset(config=config, sources=sources, about=about, notes=notes)


def _merge_settings(system: System, dataset: Dataset) -> Settings:
    """Return the settings of a system for a data set."""
    settings = select_column(system.settings, dataset.column)
    # If the paper has no column for the data set, printed values name the set of their column.
    if dataset.column != dataset.name:
        for field, (value, source) in settings.items():
            if source != OURS:
                settings[field] = (value, f"{source} ({dataset.column})")
    return {**settings, **dataset.settings}


def combine(system: System, dataset: Dataset) -> Preset:
    """Return the preset of a system for a data set. Neither needs to be registered."""
    name = f"{system.name}/{dataset.name}"
    return _build_preset(
        name, system, _merge_settings(system, dataset), dataset.about, dataset.notes + system.notes
    )


def data_config(dataset: Dataset) -> DataConfig:
    """Return the data section with the settings of a data set."""
    values = {
        field: value for field, (value, _) in dataset.settings.items() if field.startswith("data.")
    }
    return Config().replace(**values).data


def names() -> Iterator[str]:
    """Yield the names of all presets: SYSTEM/DATASET first, then the extras of the systems."""
    # A data set without a column has no presets.
    data = [dataset.name for dataset in DATASETS.entries() if dataset.column]
    systems = SYSTEMS.entries()
    yield from (f"{system.name}/{name}" for system in systems for name in data)
    yield from (extra.name for system in systems for extra in system.extras)


@cache
def get(name: str) -> Preset:
    """Return the preset `name`. Raises InputError if it does not exist."""
    first, _, data = name.partition("/")
    if first in SYSTEMS and data in DATASETS and DATASETS.get(data).column:
        return combine(SYSTEMS.get(first), DATASETS.get(data))

    # an extra of a system
    for system in SYSTEMS.entries():
        for extra in system.extras:
            if extra.name == name:
                base = _merge_settings(system, DATASETS.get(extra.dataset)) if extra.dataset else {}
                return _build_preset(
                    name, system, {**base, **extra.settings}, extra.about, extra.notes
                )

    # Propose presets of that system or data set, or of a similar name.
    presets = [*names()]
    with_part = " or ".join([preset for preset in presets if name in preset.split("/")][:3])
    near = with_part or near_names(name, presets, cutoff=0.4)
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"unknown preset {name!r}: {hint}hrvqvae presets lists them")


def describe(preset: Preset) -> dict[str, Any]:
    """Return everything about a preset as plain values: values with sources, notes, and derived
    figures (grids, codewords, training steps, bits, compression factor), some also as printed.
    """
    config = preset.config
    data = config.data
    model = config.model
    training = config.training
    derived: dict[str, Any] = {
        "latent_grids": model.geometry.grids(*data.image_size),
        "codewords": model.num_codewords,
        "image_bits": 8 * data.channels * math.prod(data.image_size),
        "bits_per_image": bits_per_image(model, *data.image_size),
        "compression_ratio": compression_ratio(model, data.channels, *data.image_size),
    }
    if data.train_samples and training.epochs:  # rounded down, as in Table 5
        derived["training_steps"] = data.train_samples * training.epochs // training.batch_size
    values = flatten(config)
    del values["name"]
    return {
        "name": config.name,
        "about": preset.about,
        "system": model.system,
        "values": {
            name: {"value": value, "source": preset.source(name)} for name, value in values.items()
        },
        "derived": derived,
        "printed": {
            figure: by_preset[config.name]
            for figure, by_preset in PRINTED.items()
            if config.name in by_preset
        },
        "notes": list(preset.notes),
    }
