"""What is compared: systems, each from its preset, with the same data, budget and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hrvqvae.config import Config, ModelConfig, presets
from hrvqvae.config.parsing import digest_of, override, prior_config
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.models.build import system_of
from hrvqvae.utils.errors import InputError

_STYLES = {
    "hrvqvae": ("o", "#4477aa"), "treevq": ("*", "#222255"), "vqvae": ("s", "#cc6677"), "vqvae2": ("^", "#228833"),
    "vqgan": ("D", "#aa8800"), "rqvae": ("v", "#aa3377"), "fsq": ("P", "#66ccee"), "vqpytorch": ("X", "#555555"),
    "simvq": ("p", "#ee8866"), "qinco": ("h", "#bbaa00"),
}  # fmt: skip

# The printed batch sizes of priors are for a GPU: every system's get the same small batch here.
_SMALL_PRIOR = {
    "prior.training.batch_size": "32", "prior.training.learning_rate": "2e-3",
    "prior.training.warmup_steps": "50", "prior.training.evaluate_every": "200",
    "prior.training.checkpoint_every": "200",
}  # fmt: skip

# Fields that options of a comparison decide, for every system alike.
_DECIDED = {
    "data.root": "--data", "training.seed": "--seeds", "training.max_steps": "--max-steps",
    "training.max_minutes": "--max-minutes", "training.epochs": "--max-steps",
    **{f"prior.training.{name}": "--prior-steps" for name in ("max_steps", "max_minutes", "epochs")},
    "prior.training.seed": "--seeds",
}  # fmt: skip


def style(system: str) -> tuple[str, str]:
    """Marker and colour of a system's curves, as matplotlib names them; a grey circle for a system of others."""
    return _STYLES.get(system, ("o", "#777777"))


def codewords_searched(model: ModelConfig) -> int | None:
    """Distances to codewords that the search computes for each position, over all levels or grids.

    0 where codes are found by rounding; None of a system that is not ours.
    """
    quantizer = getattr(model, "quantizer", None)
    if model.system == "fsq" or getattr(quantizer, "name", "") == "lfq":
        return 0
    if model.system not in _STYLES:
        return None
    kept = getattr(quantizer, "beam", 1)  # paths, fewer where a level has fewer
    levels = zip(model.num_symbols, model.num_codewords, strict=True)
    return sum(min(kept * symbols, codewords) for symbols, codewords in levels)


def available_systems() -> tuple[str, ...]:
    """Names of the systems whose packages are on this machine."""
    return tuple(system.name for system in SYSTEMS.entries() if system.available)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is trained and measured."""

    name: str  # of its folder
    labels: Mapping[str, Any]  # what its row begins with; "seed" is one of them
    config: Config
    prior: Mapping[str, str] = field(default_factory=dict)  # dotted name -> text, for its priors (empty: no priors)

    def digests(self) -> dict[str, str]:
        """Of what decides the results, but for the seed: of its autoencoder, and of its priors where it has some."""
        config = override(self.config, {"training.seed": "0"})
        found = {"autoencoder": digest_of(config, "data", "model", "training")}
        if self.prior:
            prior = prior_config(self.config, {**self.prior, "prior.training.seed": "0"})
            found["prior"] = digest_of(prior, "prior")
        return found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Raises:
        InputError: no such preset, no budget, no such system, a field of a system that is not compared or that an
            option decides.
    """

    dataset: str  # the part of a preset's name after the system
    systems: tuple[str, ...]
    variants: Mapping[str, str] = field(default_factory=dict)  # those of them that are variants -> of which system
    seeds: int = 1  # how many; each trains every system
    first_seed: int = 0
    max_steps: int = 0  # budget of each autoencoder; 0: no such limit, but one is needed
    max_minutes: float = 0.0
    prior_steps: int = 0  # train each system's priors too, in so many updates, shared equally among them; 0: none
    root: str | None = None  # folder of the data
    fields: Mapping[str, str] = field(default_factory=dict)  # for every system; "vqgan.model.NAME" for one
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # fields of each system, as a search chose

    def __post_init__(self) -> None:
        if not (self.max_steps > 0 or self.max_minutes > 0):
            raise InputError("no budget: give --max-steps or --max-minutes")
        for name in (*self.variants.values(), *self.systems) or ("none",):
            if name not in SYSTEMS and name not in self.variants:
                raise InputError(f"--systems names {name}; there are {', '.join(SYSTEMS)}")
        for name in self.variants:
            if not re.fullmatch("[a-z0-9_]+", name) or name in (*SYSTEMS, "data", "model", "training", "prior"):
                raise InputError(
                    f"--systems names a variant {name!r}; take a name of small letters and digits of its own"
                )
        for option, least in (("seeds", 1), ("first_seed", 0), ("prior_steps", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option.replace('_', '-')} is below {least}")
        for name in self.fields:
            first, *rest = name.split(".")
            if name in _DECIDED:
                raise InputError(f"--{name} is decided by the comparison: give {_DECIDED[name]}")
            if first in self.systems and (inner := ".".join(rest)) in _DECIDED:
                raise InputError(f"--{name} is decided by the comparison: give {_DECIDED[inner]}")
            if first in (*SYSTEMS, *self.systems) and (
                first not in self.systems or rest[0] not in ("model", "training")
            ):
                raise InputError(f"--{name} must be a field of the model or training of {', '.join(self.systems)}")
        for system in self.systems:  # checks its package and fields before any training
            system_of(self.config(system, self.first_seed))

    def config(self, system: str, seed: int) -> Config:
        """The preset of a system with the budget and seed of this comparison."""
        budget = {"epochs": 0, "max_steps": self.max_steps, "max_minutes": self.max_minutes, "seed": seed}
        given = {f"training.{name}": str(value) for name, value in budget.items()}
        preset = presets.get(f"{self.variants.get(system, system)}/{self.dataset}").config.with_root(self.root)
        return override(preset, {**self.settings.get(system, {}), **self.given(system), **given})

    def given(self, system: str | None = None) -> dict[str, str]:
        """The fields that are given for all systems, and for one."""
        names = (*SYSTEMS, *self.systems)
        shared = {name: text for name, text in self.fields.items() if name.split(".")[0] not in names}
        own = {name.partition(".")[2]: text for name, text in self.fields.items() if name.startswith(f"{system}.")}
        return shared | own

    def cases(self) -> list[Case]:
        """Every system, seed after seed."""
        found = []
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            for system in self.systems:
                config, labels = self.config(system, seed), {"system": system, "seed": seed}
                prior = self._prior_of(config) if self.prior_steps else {}
                found.append(Case(name=f"{system}-{seed}", labels=labels, config=config, prior=prior))
        return found

    def _prior_of(self, config: Config) -> dict[str, str]:
        """In what each prior differs from its configuration: budget, seed, and what suits few images a step."""
        steps = max(1, self.prior_steps // len(config.prior_levels))
        given = {"epochs": 0, "max_steps": steps, "max_minutes": 0.0, "seed": config.training.seed}
        asked = {name: value for name, value in self.fields.items() if name.startswith("prior.")}
        return {**_SMALL_PRIOR, **asked, **{f"prior.training.{name}": str(value) for name, value in given.items()}}

    def about(self) -> dict[str, Any]:
        """What may not change when more systems, seeds or priors are added; "priors" may be decided later."""
        plain = {name: getattr(self, name) for name in ("dataset", "max_steps", "max_minutes", "root")}
        priors = {"max_steps": self.prior_steps, "max_minutes": 0.0} if self.prior_steps else None
        return {"study": None, **plain, "fields": self.given(), "priors": priors}
