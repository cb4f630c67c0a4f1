"""The presets: for every system and data set, the settings of both, each value with its source.

What no table prints is "ours". Derived figures are computed from the configuration and shown beside the printed ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hrvqvae.config.data import DataConfig
from hrvqvae.config.entries import DATASETS, PRIORS, SYSTEMS, Dataset, System
from hrvqvae.config.paper_tables import printed_figures
from hrvqvae.config.prior import PriorConfig
from hrvqvae.config.schema import (
    DEFAULT_PRIOR,
    Config,
    bits_per_image,
    compression_ratio,
    flatten,
    from_plain,
    to_dict,
    training_steps,
)
from hrvqvae.config.tables import OURS, Part
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig
from hrvqvae.errors import InputError


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


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _preset(name: str, system: System, parts: Sequence[Part], about: str, notes: tuple[str, ...]) -> Preset:
    """The parts' fields, of which the later ones win; whatever they leave out takes its default."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for part in parts:
        values |= part.values
        sources |= {key: part.source_of(key) for key in part.values}
    tree = _nested(values)
    prior = tree["prior"]
    network = PRIORS.get(prior["network"].get("kind", DEFAULT_PRIOR)).config
    config = Config(
        name=name,
        data=from_plain(DataConfig, tree["data"]),
        model=from_plain(system.config, tree["model"]),
        training=from_plain(TrainingConfig, tree["training"]),
        prior=PriorConfig(
            network=from_plain(network, prior["network"]), training=from_plain(PriorTrainingConfig, prior["training"])
        ),
    )
    return Preset(config=config, sources=sources, printed=printed_figures(name), about=about, notes=notes)


def _of_dataset(system: System, dataset: Dataset) -> Preset:
    parts = [*system.settings(dataset), *dataset.settings]
    notes = (*dataset.notes, *system.notes)
    return _preset(f"{system.name}/{dataset.name}", system, parts, dataset.about, notes)


def names() -> Iterator[str]:
    """Names of all presets: each system's for each data set that has a column, then its further ones."""
    data = [dataset.name for dataset in DATASETS.entries() if dataset.column]
    systems = SYSTEMS.entries()
    yield from (f"{system.name}/{name}" for system in systems for name in data)
    yield from (extra.name for system in systems for extra in system.extras)


@cache
def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none; near names are listed.
    """
    first, _, data = name.partition("/")
    if first in SYSTEMS and data in DATASETS and DATASETS.get(data).column:
        return _of_dataset(SYSTEMS.get(first), DATASETS.get(data))
    for system in SYSTEMS.entries():
        for extra in system.extras:
            if extra.name == name:
                return _preset(name, system, extra.parts, extra.about, extra.notes)
    known = list(names())
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise InputError(f"unknown preset {name!r}: {hint} (hrvqvae presets lists them)")


def derived(config: Config) -> dict[str, Any]:
    """Figures that follow from a configuration: grids, codewords, training steps, bits, compression factor."""
    data, model, training = config.data, config.model, config.training
    figures: dict[str, Any] = {
        "latent_grids": model.latent_grids(data.size, data.size),
        "codewords": model.num_codewords,
        "codewords_searched": sum(model.num_symbols),
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
