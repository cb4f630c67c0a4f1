"""Presets. SYSTEM/DATASET joins the settings of a system (`config.systems`) and of a data set.

A system may have extra presets with names of their own (`entries.ExtraPreset`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hrvqvae.config.entries import Dataset, Settings, System
from hrvqvae.config.registry import DATASETS, SYSTEMS
from hrvqvae.config.schema import (
    DEFAULT_PRIOR,
    Config,
    bits_per_image,
    compression_ratio,
    default_config,
)
from hrvqvae.config.section import flatten
from hrvqvae.config.systems import OURS, select_column
from hrvqvae.utils.errors import InputError, near_names


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration with the sources of its values."""

    config: Config
    sources: Mapping[str, str]  # dotted name -> "Table 5", ...; a missing name is ours
    about: str
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each


def _build_preset(
    name: str, system: System, settings: Settings, about: str, notes: tuple[str, ...]
) -> Preset:
    values = {"name": name} | {field: value for field, (value, _) in settings.items()}
    config = default_config(system.name, values.get("prior.network.kind", DEFAULT_PRIOR))
    fields = flatten(config)  # a printed table may have fields that this system lacks
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


def _list_parts() -> dict[str, tuple[System, Settings, str, tuple[str, ...]]]:
    """Return system, settings, title and notes of each preset by name: SYSTEM/DATASET first, then
    the extras of the systems.
    """
    parts = {}
    extras = {}
    for system in SYSTEMS.entries():
        settings_of = dict[str, Settings]({"": {}})
        for dataset in DATASETS.entries():
            if dataset.column:  # a data set without a column has no presets
                merged = _merge_settings(system, dataset)
                notes = dataset.notes + system.notes
                settings_of[dataset.name] = merged
                parts[f"{system.name}/{dataset.name}"] = (system, merged, dataset.about, notes)
        for extra in system.extras:
            merged = {**settings_of[extra.dataset], **extra.settings}
            extras[extra.name] = (system, merged, extra.about, extra.notes)
    return parts | extras


def names() -> list[str]:
    """Return the names of all presets."""
    return [*_list_parts()]


@cache
def get(name: str) -> Preset:
    """Return the preset `name`. Raises InputError if it does not exist."""
    parts = _list_parts()
    if name in parts:
        return _build_preset(name, *parts[name])
    near = near_names(name, parts)
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"unknown preset {name!r}: {hint}hrvqvae presets lists them")


def describe(preset: Preset) -> dict[str, Any]:
    """Return everything about a preset as plain values: values with sources, notes, and derived
    figures (grids, codewords, training steps, bits, compression factor).
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
            name: {"value": value, "source": preset.sources.get(name, OURS)}
            for name, value in values.items()
        },
        "derived": derived,
        "notes": list(preset.notes),
    }
