"""A comparison: systems, each from its preset, with the same data, budget and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hrvqvae.config import Config, ModelConfig, presets
from hrvqvae.config.parsing import digest_of, override, stage_config
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.models.build import get_system
from hrvqvae.utils.errors import InputError

_STYLES = {
    "hrvqvae": ("o", "#4477aa"),
    "treevq": ("*", "#222255"),
    "vqvae": ("s", "#cc6677"),
    "vqvae2": ("^", "#228833"),
    "vqgan": ("D", "#aa8800"),
    "rqvae": ("v", "#aa3377"),
    "fsq": ("P", "#66ccee"),
    "vqpytorch": ("X", "#555555"),
    "simvq": ("p", "#ee8866"),
    "qinco": ("h", "#bbaa00"),
}

# The paper's batches for priors need a GPU. In a comparison the priors of every system have the
# same small batch.
_SMALL_PRIOR = {
    "prior.training.batch_size": "32",
    "prior.training.learning_rate": "2e-3",
    "prior.training.warmup_steps": "50",
    "prior.training.evaluate_every": "200",
    "prior.training.checkpoint_every": "200",
}

# field -> option of the comparison that sets it for all systems
_OPTIONS = {
    "data.root": "--data",
    "training.seed": "--seeds",
    "training.max_steps": "--max-steps",
    "training.max_minutes": "--max-minutes",
    "training.epochs": "--max-steps",
    **{
        f"prior.training.{name}": "--prior-steps" for name in ("max_steps", "max_minutes", "epochs")
    },
    "prior.training.seed": "--seeds",
}


def plot_style(system: str) -> tuple[str, str]:
    """Return matplotlib's marker and colour of a system; third-party systems are grey circles."""
    return _STYLES.get(system, ("o", "#777777"))


def codewords_searched(model: ModelConfig) -> int | None:
    """Return the distances that a search computes per position of the finest grid: 0 if it rounds,
    None if unknown.
    """
    quantizer = getattr(model, "quantizer", None)
    if model.system == "fsq" or getattr(quantizer, "name", "") == "lfq":
        return 0
    if model.system not in _STYLES:
        return None
    beam = getattr(quantizer, "beam", 1)
    joint = getattr(quantizer, "joint_beam", False)
    searched = 0
    branches = 1
    times = model.geometry.times
    for symbols, linked, factor in zip(model.num_symbols, model.linked, times, strict=True):
        branches = (branches if linked or joint else 1) * symbols  # before the beam keeps the best
        searched = searched + branches * factor**2
        branches = min(beam, branches)
    return searched // times[-1] ** 2


def available_systems() -> tuple[str, ...]:
    """Return the names of the systems whose packages are installed."""
    return tuple(system.name for system in SYSTEMS.entries() if system.available)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run to train and measure."""

    name: str  # of the run folder
    labels: Mapping[str, Any]  # first columns of its row, "seed" among them
    config: Config
    prior: Mapping[str, str] = field(
        default_factory=dict
    )  # fields of its priors by dotted name; empty: no priors

    def digests(self) -> dict[str, str]:
        """Return digests of the configuration without the seed: of the autoencoder, and of the
        priors if any.
        """
        config = override(self.config, {"training.seed": "0"})
        digests = {"autoencoder": digest_of(config, "data", "model", "training")}
        if self.prior:
            prior = stage_config("prior", self.config, {**self.prior, "prior.training.seed": "0"})
            digests["prior"] = digest_of(prior, "prior")
        return digests


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Systems to compare, with their budget, seeds and fields. Raises InputError if an option is
    invalid.
    """

    dataset: str  # second part of the presets' names
    systems: tuple[str, ...]
    variants: Mapping[str, str] = field(default_factory=dict)  # name of a variant -> its system
    seeds: int = 1  # number of seeds; each trains every system
    first_seed: int = 0
    max_steps: int = 0  # budget of each autoencoder; 0: no limit in steps
    max_minutes: float = 0.0
    prior_steps: int = 0  # updates of all priors of a system together; 0: no priors
    root: str | None = None  # folder of the data
    fields: Mapping[str, str] = field(
        default_factory=dict
    )  # of every system, or of one system: "vqgan.model.NAME"
    settings: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict
    )  # fields that a search chose, by system

    def __post_init__(self) -> None:
        if not (self.max_steps > 0 or self.max_minutes > 0):
            raise InputError("no budget: give --max-steps or --max-minutes")
        for name in (*self.variants.values(), *self.systems) or ("none",):
            if name not in SYSTEMS and name not in self.variants:
                raise InputError(f"--systems names {name}; there are {', '.join(SYSTEMS)}")
        for name in self.variants:
            if not re.fullmatch("[a-z0-9_]+", name) or name in (
                *SYSTEMS,
                "data",
                "model",
                "training",
                "prior",
            ):
                raise InputError(
                    f"--systems names a variant {name!r}; take a new name of small letters and"
                    " digits"
                )
        for option, least in (("seeds", 1), ("first_seed", 0), ("prior_steps", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option.replace('_', '-')} is below {least}")
        for name in self.fields:
            first, _, inner = name.partition(".")
            decided_by = _OPTIONS.get(name) or (
                _OPTIONS.get(inner) if first in self.systems else None
            )
            if decided_by:
                raise InputError(f"--{name} is decided by the comparison: give {decided_by}")
            of_system = first in self.systems and inner.partition(".")[0] in ("model", "training")
            if first in (*SYSTEMS, *self.systems) and not of_system:
                raise InputError(
                    f"--{name} must be a field of the model or training of"
                    f" {', '.join(self.systems)}"
                )
        for (
            system
        ) in self.systems:  # fail before any training if a package is missing or a field is invalid
            get_system(self.config(system, self.first_seed))

    def config(self, system: str, seed: int) -> Config:
        """Return the preset of a system with the budget and seed of this comparison."""
        budget = {
            "epochs": 0,
            "max_steps": self.max_steps,
            "max_minutes": self.max_minutes,
            "seed": seed,
        }
        fields = {f"training.{name}": str(value) for name, value in budget.items()}
        preset = presets.get(
            f"{self.variants.get(system, system)}/{self.dataset}"
        ).config.with_root(self.root)
        return override(
            preset, {**self.settings.get(system, {}), **self.fields_of(system), **fields}
        )

    def fields_of(self, system: str | None = None) -> dict[str, str]:
        """Return the fields of every system, and the fields of `system` alone, without its name."""
        names = (*SYSTEMS, *self.systems)
        shared = {
            name: text for name, text in self.fields.items() if name.split(".")[0] not in names
        }
        parts = {name: name.partition(".") for name in self.fields}
        return shared | {
            inner: self.fields[name] for name, (first, _, inner) in parts.items() if first == system
        }

    def cases(self) -> list[Case]:
        """Return the cases: every system with every seed."""
        cases = []
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            for system in self.systems:
                config = self.config(system, seed)
                labels = {"system": system, "seed": seed}
                prior = self._prior_fields(config) if self.prior_steps else {}
                cases.append(
                    Case(name=f"{system}-{seed}", labels=labels, config=config, prior=prior)
                )
        return cases

    def _prior_fields(self, config: Config) -> dict[str, str]:
        """Return the fields of the priors: budget, seed, and settings for small batches."""
        steps = max(1, self.prior_steps // len(config.prior_levels))
        budget = {"epochs": 0, "max_steps": steps, "max_minutes": 0.0, "seed": config.training.seed}
        fields = {name: value for name, value in self.fields.items() if name.startswith("prior.")}
        return {
            **_SMALL_PRIOR,
            **fields,
            **{f"prior.training.{name}": str(value) for name, value in budget.items()},
        }

    def about(self) -> dict[str, Any]:
        """Return the settings that must stay the same when systems, seeds or priors are added."""
        plain = {
            name: getattr(self, name) for name in ("dataset", "max_steps", "max_minutes", "root")
        }
        priors = {"max_steps": self.prior_steps, "max_minutes": 0.0} if self.prior_steps else None
        return {"study": None, **plain, "fields": self.fields_of(), "priors": priors}
