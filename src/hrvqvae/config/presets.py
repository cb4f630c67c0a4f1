"""The presets: for every system and data set, the settings of both, each value with its source (else "ours")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS, Dataset, System
from hrvqvae.config.schema import (
    DEFAULT_PRIOR,
    Config,
    DataConfig,
    PriorConfig,
    bits_per_image,
    compression_ratio,
    training_steps,
)
from hrvqvae.config.section import flatten, to_dict
from hrvqvae.config.systems import OURS, RATIOS, TABLE_5_STEPS, Settings, column
from hrvqvae.utils.errors import InputError, near_names


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration, where each value comes from, and what the paper prints about it.

    Attributes:
        sources: dotted name -> "Table 5", ...; a name that is missing is ours.
        notes: contradictions and departures, a line each.
    """

    config: Config
    sources: Mapping[str, str]
    about: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    def source(self, name: str) -> str:
        return self.sources.get(name, OURS)

    @property
    def printed(self) -> dict[str, int]:
        """Derived figures as the paper prints them: training steps, compression factor."""
        system, _, data = self.name.partition("/")
        steps = TABLE_5_STEPS.get(data) if system in ("hrvqvae", "vqvae2") else None
        figures = {"training_steps": steps, "compression_ratio": RATIOS.get(self.name)}
        return {name: value for name, value in figures.items() if value is not None}


def _preset(name: str, system: System, settings: Settings, about: str, notes: tuple[str, ...]) -> Preset:
    values = {"name": name} | {key: value for key, (value, _) in settings.items()}
    network = PRIORS.get(values.get("prior.network.kind", DEFAULT_PRIOR)).config()
    config = Config(model=system.config, prior=PriorConfig(network=network))
    fields = dict(flatten(to_dict(config)))  # a data set's settings may name a field that the system has not
    config = config.replace(**{key: value for key, value in values.items() if key in fields})
    sources = {key: source for key, (_, source) in settings.items()}
    return Preset(config=config, sources=sources, about=about, notes=notes)


def _settings(system: System, dataset: Dataset) -> Settings:
    """Return the settings of a system for a data set."""
    rows = column({**system.settings, **(system.few_images if dataset.few_images else {})}, dataset.column)
    if dataset.column != dataset.name:  # the data set borrows a column
        label = f" ({dataset.column})"
        rows = {key: (value, source if source == OURS else source + label) for key, (value, source) in rows.items()}
    return {**rows, **dataset.settings}


def of_dataset(system: System, dataset: Dataset) -> Preset:
    """Return the preset of a system for a data set, which need not be registered."""
    name = f"{system.name}/{dataset.name}"
    return _preset(name, system, _settings(system, dataset), dataset.about, dataset.notes + system.notes)


def data_config(dataset: Dataset) -> DataConfig:
    """Return what a data set's settings say of the data."""
    values = {name: value for name, (value, _) in dataset.settings.items() if name.startswith("data.")}
    return Config().replace(**values).data


def names() -> Iterator[str]:
    """Names of all presets of systems and data sets that can be used: the data sets' presets, then the extras."""
    data = [dataset.name for dataset in DATASETS.entries() if dataset.column]
    systems = SYSTEMS.entries()
    yield from (f"{system.name}/{name}" for system in systems for name in data)
    yield from (extra.name for system in systems for extra in system.extras)


@cache
def get(name: str) -> Preset:
    """The preset of that name. Raises InputError where there is none."""
    first, _, data = name.partition("/")
    if first in SYSTEMS and data in DATASETS and DATASETS.get(data).column:
        return of_dataset(SYSTEMS.get(first), DATASETS.get(data))
    for system in SYSTEMS.entries():
        for extra in system.extras:
            if extra.name == name:
                begun = _settings(system, DATASETS.get(extra.dataset)) if extra.dataset else {}
                return _preset(name, system, {**begun, **extra.settings}, extra.about, extra.notes)
    known = [*names()]
    near = " or ".join([of for of in known if name in of.split("/")][:3]) or near_names(name, known, cutoff=0.4)
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"unknown preset {name!r}: {hint}hrvqvae presets lists them")


def derived(config: Config) -> dict[str, Any]:
    """Figures that follow from a configuration: grids, codewords, training steps, bits, compression factor."""
    data, model, training = config.data, config.model, config.training
    figures: dict[str, Any] = {
        "latent_grids": model.latent_grids(data.size, data.size),
        "codewords": model.num_codewords,
        "image_bits": 8 * data.channels * data.size * data.size,
        "bits_per_image": bits_per_image(model, data.size, data.size),
        "compression_ratio": compression_ratio(model, data.channels, data.size, data.size),
    }
    if data.train_samples and training.epochs:
        figures["training_steps"] = training_steps(data.train_samples, training.epochs, training.batch_size)
    return figures


def describe(preset: Preset) -> dict[str, Any]:
    """Everything about a preset as plain values: values with sources, derived and printed figures, notes."""
    values = [(name, value) for name, value in flatten(to_dict(preset.config)) if name != "name"]
    return {
        "name": preset.name,
        "about": preset.about,
        "system": preset.config.model.system,
        "values": {name: {"value": value, "source": preset.source(name)} for name, value in values},
        "derived": derived(preset.config),
        "printed": preset.printed,
        "notes": list(preset.notes),
    }
