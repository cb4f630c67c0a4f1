"""The presets: for every system and data set, the settings of both, each value with its source.

What no table prints is "ours". Derived figures are computed from the configuration and shown beside the printed ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hrvqvae.config.checks import near_names
from hrvqvae.config.data import DataConfig
from hrvqvae.config.entries import DATASETS, PRIORS, SYSTEMS, Dataset, System
from hrvqvae.config.paper_tables import printed_figures
from hrvqvae.config.prior import PriorConfig
from hrvqvae.config.progressive import ProgressiveConfig
from hrvqvae.config.schema import (
    DEFAULT_PRIOR,
    Config,
    bits_per_image,
    compression_ratio,
    flatten,
    from_plain,
    nested,
    to_dict,
    training_steps,
    updated,
)
from hrvqvae.config.tables import OURS, Part
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration, where each value comes from, and what the paper prints about it.

    Attributes:
        config: the configuration.
        sources: dotted name -> "Table 5", ...; a name that is missing is ours.
        printed: derived figures as the paper prints them.
        about: one line on what it is for.
        notes: contradictions and departures, a line each.
    """

    config: Config
    sources: Mapping[str, str]
    printed: Mapping[str, Any]
    about: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    def source(self, name: str) -> str:
        """Where the value of that dotted name comes from."""
        return self.sources.get(name, OURS)


def _preset(name: str, system: System, parts: Sequence[Part], about: str, notes: tuple[str, ...]) -> Preset:
    """The parts' fields, of which the later ones win; whatever they leave out takes its default."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for part in parts:
        values |= part.values
        sources |= {key: part.source_of(key) for key in part.values}
    tree = nested(values)
    of_prior = tree.get("prior", {})
    of_network, of_training = of_prior.get("network", {}), of_prior.get("training", {})
    network = PRIORS.get(of_network.get("kind", DEFAULT_PRIOR)).config
    config = Config(
        name=name,
        data=from_plain(DataConfig, tree.get("data", {})),
        model=updated(system.config, tree.get("model", {})),
        training=from_plain(TrainingConfig, tree.get("training", {})),
        prior=PriorConfig(
            network=from_plain(network, of_network), training=from_plain(PriorTrainingConfig, of_training)
        ),
        progressive=from_plain(ProgressiveConfig, tree.get("progressive", {})),
    )
    return Preset(config=config, sources=sources, printed=printed_figures(name), about=about, notes=notes)


def of_dataset(system: System, dataset: Dataset) -> Preset:
    """The preset of a system for a data set, which need not be registered."""
    fields = {f"model.{one.name}" for one in dataclasses.fields(system.config)}
    of_data = [part.only(lambda name: not name.startswith("model.") or name in fields) for part in dataset.settings]
    parts = [*system.settings(dataset), *of_data]  # a field of the model that the system has not means nothing to it
    notes = (*dataset.notes, *system.notes)
    return _preset(f"{system.name}/{dataset.name}", system, parts, dataset.about, notes)


def listed() -> Iterator[tuple[str, str]]:
    """(name, one line on what it is for) of all presets, none of which is built.

    Each system's for each data set that has a column come first, then its further ones. A system or a data set that
    can't be used has none; its registry's `faults` say why.
    """
    data = [dataset for dataset in DATASETS.entries() if dataset.column]
    systems = SYSTEMS.entries()
    yield from ((f"{system.name}/{dataset.name}", dataset.about) for system in systems for dataset in data)
    yield from ((extra.name, extra.about) for system in systems for extra in system.extras)


def names() -> Iterator[str]:
    """Names of all presets, in the order of `listed`."""
    yield from (name for name, _ in listed())


@cache
def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none; near names are listed.
    """
    first, _, data = name.partition("/")
    if first in SYSTEMS and data in DATASETS and DATASETS.get(data).column:
        return of_dataset(SYSTEMS.get(first), DATASETS.get(data))
    for system in SYSTEMS.entries():
        for extra in system.extras:
            if extra.name == name:
                return _preset(name, system, extra.parts, extra.about, extra.notes)
    near = near_names(name, names(), cutoff=0.4)
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"unknown preset {name!r}: {hint}hrvqvae presets lists them")


def derived(config: Config) -> dict[str, Any]:
    """Figures that follow from a configuration: grids, codewords, training steps, bits, compression factor."""
    data, model, training = config.data, config.model, config.training
    figures: dict[str, Any] = {
        "latent_grids": model.latent_grids(data.size, data.size),
        "codewords": model.num_codewords,
        "codewords_searched": model.codewords_searched,
        "image_bits": 8 * data.channels * data.size * data.size,
        "bits_per_image": bits_per_image(model, data.size, data.size),
        "compression_ratio": compression_ratio(model, data.channels, data.size, data.size),
    }
    if data.train_samples and training.epochs:
        figures["training_steps"] = training_steps(data.train_samples, training.epochs, training.batch_size)
    return figures


def describe(preset: Preset) -> dict[str, Any]:
    """Everything about a preset as plain values: values with sources, derived and printed figures, notes."""
    values = {
        name: {"value": value, "source": preset.source(name)}
        for name, value in flatten(to_dict(preset.config))
        if name != "name"
    }
    return {
        "name": preset.name,
        "about": preset.about,
        "system": preset.config.model.system,
        "values": values,
        "derived": derived(preset.config),
        "printed": dict(preset.printed),
        "notes": list(preset.notes),
    }
