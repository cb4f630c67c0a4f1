"""What is compared: autoencoders by presets, with one budget and several seeds."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from hrvqvae.config import Config, ModelConfig, presets
from hrvqvae.config.model import CodebookConfig
from hrvqvae.config.parsing import RESULT_FREE, override
from hrvqvae.config.schema import TRAINING_SECTIONS, default_config
from hrvqvae.config.section import flatten
from hrvqvae.utils.errors import InputError

_SECTIONS = ("data", "model", "training", "prior")

# field -> option that sets it
_OPTIONS = {
    "training.seed": "--seeds",
    "training.max_steps": "--max-steps",
    "training.max_minutes": "--max-steps",
    "training.epochs": "--max-steps",
}


def digest_of(config: Config, *sections: str) -> str:
    """Return a hash, 16 hexadecimal digits, of the fields of `sections` that decide the result of a
    training.

    Fields at their defaults are left out, so that the digest stays the same when a later version
    adds fields.
    """
    kinds = {"model.system": config.model.system, "prior.network.kind": config.prior.network.kind}
    default = flatten(default_config(*kinds.values()))
    left_out = {
        "data.root",
        "data.workers",
        *(f"{stage}.{name}" for stage in TRAINING_SECTIONS for name in RESULT_FREE),
    }
    # the best state of a prior is chosen among the evaluated states
    left_out.remove("prior.training.evaluate_every")
    values = {
        name: value
        for name, value in flatten(config).items()
        if name.split(".")[0] in sections
        and name not in left_out
        and (name in kinds or value != default[name])
    }
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training to measure."""

    name: str  # of its run folder and its row
    labels: Mapping[str, Any]  # first columns of its row, "system" and "seed" among them
    config: Config

    @property
    def digest(self) -> str:
        """Digest of the configuration without the seed."""
        config = override(self.config, {"training.seed": "0"})
        return digest_of(config, "data", "model", "training")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Systems to compare. Raises InputError if an option is invalid."""

    dataset: str  # second part of the presets' names
    systems: Mapping[str, str]  # name in the tables -> first part of its preset's name
    max_steps: int  # of each training
    seeds: int = 1  # each trains every system
    fields: Mapping[str, str] = field(default_factory=dict)  # of all, or of one: "NAME.model.beta"
    #: fields that a search chose, by system
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.systems or ("",):
            if not re.fullmatch("[a-z0-9_-]+", name) or name in _SECTIONS:
                raise InputError(
                    f"--systems has the name {name!r}; take small letters, digits, - and _"
                )
        for name in self.fields:
            first, _, inner = name.partition(".")
            of_one = first in self.systems
            option = _OPTIONS.get(inner if of_one else name)
            if option:
                raise InputError(f"--{name} is decided by {option}")
            section = inner.partition(".")[0] if of_one else first
            if section not in (_SECTIONS[1:3] if of_one else _SECTIONS[:3]):
                raise InputError(
                    f"--{name} must be a field of the data, the model or the training, or"
                    f" --NAME.model... or --NAME.training... with NAME of {', '.join(self.systems)}"
                )
        if set(self.systems.values()) & {"fsq", "vqpytorch"}:
            import_module("benchmarks.rivals")
        for name in self.systems:  # a mistake is reported before any training
            self.config(name, 0)

    def config(self, name: str, seed: int) -> Config:
        """Return the configuration of a system with a seed."""
        preset = presets.get(f"{self.systems[name]}/{self.dataset}")
        budget = {"epochs": 0, "max_minutes": 0.0, "max_steps": self.max_steps, "seed": seed}
        fields = {**self.settings.get(name, {}), **self.fields_of(name)}
        fields |= {f"training.{key}": str(value) for key, value in budget.items()}
        return override(preset.config, fields)

    def fields_of(self, name: str = "") -> dict[str, str]:
        """Return the fields of all systems, then those of one system, without its name."""
        shared = {key: text for key, text in self.fields.items() if key.split(".")[0] in _SECTIONS}
        start = f"{name}."
        return shared | {
            key.removeprefix(start): text
            for key, text in self.fields.items()
            if name and key.startswith(start)
        }

    def cases(self) -> list[Case]:
        """Return the cases: every system with every seed."""
        return [
            Case(
                name=f"{name}-{seed}",
                labels={"system": name, "seed": seed},
                config=self.config(name, seed),
            )
            for seed in range(self.seeds)
            for name in self.systems
        ]

    def about(self) -> dict[str, Any]:
        """Return what must stay the same when systems or seeds are added to a folder."""
        return {"dataset": self.dataset, "max_steps": self.max_steps, "fields": self.fields_of()}


def codewords_searched(model: ModelConfig) -> int | None:
    """Return the distances that a search computes per position of the finest grid; None if unknown.

    A system from outside may say so itself, by an attribute of its configuration of this name.
    """
    if not isinstance(model, CodebookConfig):
        return getattr(model, "codewords_searched", None)
    quantizer = model.quantizer
    times = model.geometry.times
    searched = 0
    kept = 1
    for symbols, linked, factor in zip(model.num_symbols, model.linked, times, strict=True):
        candidates = symbols * (kept if linked or quantizer.joint_beam else 1)
        searched += candidates * factor**2
        kept = min(quantizer.beam, candidates)
    return searched // times[-1] ** 2
