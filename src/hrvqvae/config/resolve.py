"""From what a person types to a configuration: a preset or file, fields, and the run that is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hrvqvae.config import presets
from hrvqvae.config.decisions import decide
from hrvqvae.config.parsing import from_dict, from_file, override
from hrvqvae.config.schema import Config, flatten, nested, to_dict
from hrvqvae.utils.errors import InputError

# Where a run computes, and how often it says and saves what: nothing that decides what it finds.
_ASIDE = frozenset(
    {
        "training.device", "training.threads", "training.log_every", "training.evaluate_every",
        "training.checkpoint_every", "training.loggers", "data.root", "data.workers",
    }
)  # fmt: skip
# What a resumed run may change: that, how long and how it is evaluated, never what it computes.
_RESUMABLE = _ASIDE | {"training.epochs", "training.max_steps", "training.max_minutes", "training.evaluation_images"}
_PREFIX_RESUMABLE = _RESUMABLE | {f"progressive.{name}" for name in _RESUMABLE if name.startswith("training.")}
# The best state of a prior is that of the same held-out images, so their number stays.
_PRIOR_RESUMABLE = (_RESUMABLE | {f"prior.{name}" for name in _RESUMABLE if name.startswith("training.")}) - {
    "prior.training.evaluation_images"
}
# The best state of a prior is one of those that are evaluated, so it matters which those are.
_UNTOLD = (_ASIDE | {f"prior.{name}" for name in _ASIDE}) - {"prior.training.evaluate_every"}


@cache
def _defaults(system: str, network: str) -> dict[str, Any]:
    """Dotted name -> value of a configuration of that system and network of priors that says no more."""
    kinds = {"model.system": system, "prior.network.kind": network}
    return dict(flatten(to_dict(from_dict(nested(kinds), "defaults"))))


def digest_of(config: Config, *sections: str) -> str:
    """A name, 16 hexadecimal digits, of what decides what is found by these sections, such as "model".

    Fields that are at their defaults are left out, so that it stays when a later version has more of them.
    """
    kinds = {"model.system": config.model.system, "prior.network.kind": config.prior.network.kind}
    usual = _defaults(*kinds.values())
    told = {
        name: value for name, value in flatten(to_dict(config))
        if name.split(".")[0] in sections and name not in _UNTOLD and (name in kinds or value != usual[name])
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def base_config(name: str) -> Config:
    """The configuration of a preset, or of a YAML or JSON file. Raises InputError where it is neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return from_file(path)
    return presets.get(name).config


def decide_autoencoder(config: Config, made: Mapping[str, str] = MappingProxyType({})) -> tuple[Config, dict[str, str]]:
    """A configuration with what the autoencoder's training leaves to the machine decided, and those decisions.

    Raises:
        InputError: nothing that is needed is on this machine.
    """
    config.model.check_images(config.data.size)
    model, of_model = decide(config.model, made, "model.")
    training, of_training = decide(config.training, made, "training.")
    return dataclasses.replace(config, model=model, training=training), of_model | of_training


def decide_priors(config: Config, made: Mapping[str, str] = MappingProxyType({})) -> tuple[Config, dict[str, str]]:
    """The same for the priors' training."""
    prior, found = decide(config.prior, made, "prior.")
    return dataclasses.replace(config, prior=prior), found


def begin_autoencoder(name: str, given: Mapping[str, str]) -> Config:
    """The configuration of a run that begins from a preset or file. Raises InputError as its parts do."""
    return decide_autoencoder(override(base_config(name), given))[0]


def continue_autoencoder(name: str, given: Mapping[str, str], stored: Config, where: str) -> Config:
    """The configuration of a stored run that goes on.

    Raises:
        InputError: a bad value, another preset, or changes that would make it another run; `where` is named.
    """
    base = base_config(name)
    if stored.name != base.name:
        raise InputError(f"{where} holds a run of {stored.name}, not of {base.name}")
    return decide_autoencoder(_continued(stored, given, _RESUMABLE))[0]


def _continued(stored: Config, given: Mapping[str, str], may_change: frozenset[str]) -> Config:
    """The stored configuration with changes that leave the run the same. Raises InputError at any other."""
    config = override(stored, given)
    before, after = dict(flatten(to_dict(stored))), dict(flatten(to_dict(config)))
    changed = [key for key in after if after[key] != before.get(key) and key not in may_change]
    if changed:
        key = changed[0]
        raise InputError(
            f"--resume continues the same run: --{key} is {before[key]} there, {after[key]} here; "
            "leave it out, or train anew in another folder"
        )
    return config


def prior_config(run: Config, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The configuration of a level's prior that begins, or of the stored one that goes on.

    Args:
        run: of the autoencoder's run.
        given: dotted name -> text.
        stored: of the prior that goes on.

    Raises:
        InputError: a bad value, a field that is not the priors', or a resumed prior that would no longer be the same.
    """
    _require_fields(given, "prior", "priors", "train-prior")
    config = override(run, given) if stored is None else _continued(stored, given, _PRIOR_RESUMABLE)
    config.prior.check_levels(len(run.model.num_symbols))
    return decide_priors(config)[0]


def progressive_config(run: Config, given: Mapping[str, str], stored: Config | None = None) -> Config:
    """The configuration of the decoding of a run's prefixes that begins to train, or of the stored one that goes on.

    Args:
        run: of the autoencoder's run.
        given: dotted name -> text.
        stored: of the training that goes on.

    Raises:
        InputError: as `prior_config`.
    """
    _require_fields(given, "progressive", "progressive decoder", "train-progressive")
    config = override(run, given) if stored is None else _continued(stored, given, _PREFIX_RESUMABLE)
    return dataclasses.replace(config, progressive=decide(config.progressive)[0])


def _require_fields(given: Mapping[str, str], section: str, stage: str, command: str) -> None:
    """Raises InputError where a field is given that the command of a stage does not take."""
    for key in given:
        if not key.startswith(f"{section}.") and key not in ("data.root", "data.workers"):
            raise InputError(f"--{key} is not a field of the {stage}; {command} takes --{section}.* and --data")
