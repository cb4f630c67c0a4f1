"""Build the configuration of a run.

A new run: the preset or the file, then the options. A resumed run: its stored configuration, then
the options that do not change its result; a file must agree with it. Fields that a file leaves out
have the defaults of its `model.system` and `prior.network.kind`. An error names the field, its
value and valid values.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS, PRIORS
from hrvqvae.config.schema import (
    BUDGET,
    DEFAULT_PRIOR,
    DEFAULT_SYSTEM,
    TRAINING_SECTIONS,
    Config,
    decide_auto,
    default_config,
)
from hrvqvae.config.section import flatten
from hrvqvae.utils.errors import InputError, expand_home, require

OWN_IMAGES = "mine"  # `data.dataset` of images that are not the published set of the preset
# Fields of a training that do not change its result: where it computes, and how often it logs,
# evaluates and saves.
RESULT_FREE = ("device", "threads", "log_every", "evaluate_every", "checkpoint_every", "loggers")
# Fields that a resumed run may change too: where the images are, and how they are read.
_READING = {f"data.{name}" for name in ("root", "workers", "on_error", "max_pixels", "memory_mb")}
_NAMED = ("python:", "hub:")  # a `data.root` that begins so is no path (`data.datasets`)
# Fields in the files of shipped models, which have no meaning any more.
_EARLIER = {
    "model.train_prefixes",
    "model.quantizer.encoding_beam",
    "model.quantizer.level_betas",
    "model.quantizer.shrinkage",
    "model.quantizer.update",
    "prior.class_weight",
}


def from_dict(tree: Any, where: str) -> Config:
    """Return a configuration from nested plain values; missing fields take their defaults.

    Raises InputError, which begins with `where`, if a field is unknown or a value has the wrong
    type or range.
    """
    try:
        if not isinstance(tree, Mapping):
            raise InputError("a configuration is a mapping with data, model and training")
        leaves = flatten(tree)
        values = {name: value for name, value in leaves.items() if name not in _EARLIER}
        system = str(values.get("model.system", DEFAULT_SYSTEM))
        kind = str(values.get("prior.network.kind", DEFAULT_PRIOR))
        return override(default_config(system, kind), values)
    except (InputError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from error


def from_file(path: Path) -> Config:
    """Read a configuration from a YAML or JSON file. Raises InputError as `from_dict`, or if it
    can't be read.
    """
    try:
        tree = yaml.safe_load(path.read_text())  # YAML includes JSON
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} can't be read as YAML or JSON: {error}") from error
    return from_dict(tree, str(path))


def override(base: Config, values: Mapping[str, Any]) -> Config:
    """Return `base` with new values, plain or as text, by dotted name. Raises InputError as
    `Section.replace`.

    A new `prior.network.kind` replaces the whole section by the defaults of that network. A
    training stops at the first of several limits (BUDGET). If `values` set one of them, it alone
    counts: those not in `values` become 0, which is no limit.
    """
    system = base.model.system
    if values.get("model.system", system) != system:
        raise InputError(f"--model.system can't change from {system}: give a preset of that system")
    kind = values.get("prior.network.kind", base.prior.network.kind)
    if kind != base.prior.network.kind:
        base = base.replace(**{"prior.network": PRIORS.get(str(kind)).config()})
    config = base.replace(**values)
    leaves = flatten(config)
    no_limits = dict[str, int]()
    for section in TRAINING_SECTIONS:
        names = {f"{section}.{name}" for name in BUDGET}
        if any(leaves[name] for name in names & values.keys()):
            no_limits |= dict.fromkeys(names - values.keys(), 0)
    return config.replace(**no_limits)


def base_config(name: str) -> Config:
    """Return the configuration of a run folder, a YAML or JSON file, or a preset. Raises InputError
    for any other.
    """
    path = expand_home(name)
    if (path / "config.yaml").is_file():
        return from_file(path / "config.yaml")
    if path.is_dir() and name not in presets.names():
        raise InputError(
            f"{name} is a folder, not a preset; give a preset, and a folder of images as --data"
            f" {shlex.quote(name)}"
        )
    if path.suffix in (".yaml", ".yml", ".json"):
        return from_file(path)
    return presets.get(name).config


def autoencoder_config(
    name: str, options: Mapping[str, str], stored: Config | None = None
) -> Config:
    """Return the configuration of a new run from a preset or file with options, or of the `stored`
    run that resumes.

    Raises InputError if a value is invalid, or preset or options contradict `stored`.
    """
    base = base_config(name)
    if stored is None:
        config = override(base.replace(**absolute_paths(flatten(base))), options)
        config = config if "data.dataset" in options else mark_own_images(config)
    elif stored.name != base.name:
        raise InputError(f"the folder holds a run of {stored.name}, not of {base.name}")
    else:
        config = _resumed(stored, options, "training")
    return decide_auto(config, "model", "training")


def absolute_paths(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a configuration, by dotted name, with absolute paths, since a later call may
    start in another folder.
    """
    paths = dict[str, str]()
    for name in ("data.root", "prior.codes"):
        path = str(fields.get(name) or "null")
        if path != "null" and not path.startswith(_NAMED):
            paths[name] = str(expand_home(path).absolute())
    return {**fields, **paths}


def stage_config(
    section: str, run: Config, options: Mapping[str, str], stored: Config | None = None
) -> Config:
    """Return the configuration of a later stage of a run, "prior", "progressive" or "generation":
    new, or `stored` if it resumes.

    Raises InputError if a value is invalid, a field belongs to another stage, or options contradict
    `stored`.
    """
    for name in options:
        if not name.startswith(f"{section}.") and name not in _READING:
            raise InputError(
                f"--{name} is no field of this training: give --{section}.* and --data"
            )
    if stored is None:
        config = override(run, options)
    else:
        config = _resumed(stored, options, f"{section}.training")
    num_levels = len(run.model.num_symbols)
    for name, values in flatten(getattr(config, section)).items():
        if isinstance(values, tuple) and len(values) not in (1, num_levels):
            wanted = f"one value, or one for each of the {num_levels} levels"
            require(False, f"{section}.{name}", values, wanted)
    return decide_auto(config, section)


def mark_own_images(config: Config) -> Config:
    """Return a configuration whose `data.dataset` is OWN_IMAGES in place of a published set, if the
    images come from Python or the hub, or lie in a folder that holds no folder of the set's name.
    """
    name = config.data.dataset
    root = config.data.root
    if not root or name not in DATASETS or DATASETS.get(name).takes_any_folder:
        return config

    # A data set with a function `read` may lie in any folder: the function refuses other files.
    has_reader = DATASETS.get(name).read and not root.startswith(_NAMED)
    if has_reader or (expand_home(root) / name).is_dir():
        return config
    return config.replace(**{"data.dataset": OWN_IMAGES})


def _resumed(stored: Config, options: Mapping[str, str], section: str) -> Config:
    """Return the stored configuration of a run whose training `section` resumes, with options.

    Raises InputError if options change the run's result.
    """
    may_change = _READING | {f"{section}.{name}" for name in (*RESULT_FREE, *BUDGET)}
    # the evaluations decide a prior's best state
    may_change.discard("prior.training.evaluate_every")
    config = override(stored, options)
    before = flatten(stored)
    for name, value in flatten(config).items():
        if value != before.get(name) and name not in may_change:
            raise InputError(
                f"--resume continues the same run: --{name} is {before.get(name)} there, {value}"
                " here; give the same, or train anew in another folder"
            )
    return config
