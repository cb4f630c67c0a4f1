"""From what a person types to a configuration: a preset or file, overrides, and the run that is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from hrvqvae import presets
from hrvqvae.checkpoint import RunFolder, prior_run
from hrvqvae.config import Config, PixelSNAILConfig, PriorConfig, flatten, to_dict
from hrvqvae.configfile import from_file, override
from hrvqvae.errors import InputError

# What a resumed run may change: how long, where and how often, never what it computes.
RESUMABLE = frozenset(
    {
        "training.epochs", "training.max_steps", "training.max_minutes", "training.device", "training.threads",
        "training.log_every", "training.evaluate_every", "training.checkpoint_every", "training.evaluation_images",
        "data.root", "data.workers",
    }
)  # fmt: skip


def base_config(name: str) -> Config:
    """The configuration of a preset, or of a YAML or JSON file. Raises InputError where it is neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return from_file(path)
    return presets.get(name).config


def _choose_perceptual(name: str) -> str:
    from hrvqvae.losses import choose_perceptual

    return choose_perceptual(name)


# Fields that may leave to the machine what a run computes: dotted name -> what decides.
_LEFT_OPEN: Mapping[str, Callable[[str], str]] = {"model.perceptual": _choose_perceptual}


def choices(config: Config, made: Mapping[str, str]) -> dict[str, str]:
    """Dotted name -> text, of each field that is left open ("auto"): as `made` says, else the best on this machine.

    Raises:
        InputError: nothing that is needed is on this machine.
    """
    fields = dict(flatten(to_dict(config)))
    open_names = [name for name in _LEFT_OPEN if fields.get(name) == "auto"]
    return {name: made.get(name) or _LEFT_OPEN[name]("auto") for name in open_names}


def settled(config: Config, made: Mapping[str, str] = MappingProxyType({})) -> Config:
    """The same with what is left open decided, so that a run's folder says what it was. Raises as `choices`."""
    return override(config, choices(config, made))


def resolve(name: str, given: Mapping[str, str], run: RunFolder, *, resume: bool) -> Config:
    """The configuration of a run that starts, or of the one in the run folder that goes on.

    Raises:
        InputError: unknown preset, bad value, or a resumed run that would no longer be the same run.
    """
    base = base_config(name)
    if not (resume and run.begun()):
        return settled(override(base, given))
    stored = run.read_config()
    if stored.name != base.name:
        raise InputError(f"{run.path} holds a run of {stored.name}, not of {base.name}")
    return _continued(stored, given, RESUMABLE)


def _continued(stored: Config, given: Mapping[str, str], may_change: frozenset[str]) -> Config:
    """The stored configuration with changes that leave the run the same. Raises InputError at any other."""
    config = override(stored, given)
    before, after = dict(flatten(to_dict(stored))), dict(flatten(to_dict(config)))
    changed = [key for key in after if after[key] != before[key] and key not in may_change]
    if changed:
        key = changed[0]
        raise InputError(
            f"--resume continues the same run: --{key} is {before[key]} there, {after[key]} here; "
            "leave it out, or train anew in another folder"
        )
    return config


# The best state is that of the same held-out images, so their number stays.
_PRIOR_RESUMABLE = (RESUMABLE | {f"prior.{name}" for name in RESUMABLE if name.startswith("training.")}) - {
    "prior.training.evaluation_images"
}


def resolve_priors(path: str, level: int | None, given: Mapping[str, str], *, resume: bool) -> dict[int, Config]:
    """Level (0 is the coarsest) -> configuration of its prior, for all levels of a run or the one of that number.

    Args:
        path: a run folder.
        level: counted from 1; None takes all.

    Raises:
        InputError: no such run or level, a bad value, a field that is not the priors', or a resumed prior that would
            no longer be the same.
    """
    for key in given:
        if not key.startswith("prior.") and key not in ("data.root", "data.workers"):
            raise InputError(f"--{key} is not a field of the priors; train-prior takes --prior.* and --data")
    if "prior.training.batch_size" in given:  # asked for all levels alike
        given = {"prior.batch_size": "[]", **given}
    stored = RunFolder(Path(path)).read_config()
    count = len(stored.model.num_symbols)
    if level is not None and not 1 <= level <= count:
        raise InputError(f"--level is {level}; this model has levels 1 to {count}")
    configs = {}
    for index in range(count) if level is None else [level - 1]:
        folder = prior_run(path, index)
        if resume and folder.config.is_file():
            configs[index] = _continued(folder.read_config(), given, _PRIOR_RESUMABLE)
        else:
            configs[index] = override(stored, given)
        _check_levels(configs[index].prior, count)
    return configs


def _check_levels(prior: PriorConfig, count: int) -> None:
    """Raises InputError where a field with a value a level has neither one value nor one for each."""
    fields: dict[str, tuple[object, ...]] = {"prior.batch_size": prior.batch_size}
    if isinstance(prior.network, PixelSNAILConfig):
        fields["prior.network.attention_layers"] = prior.network.attention_layers
        fields["prior.network.dropout"] = prior.network.dropout
    for name, values in fields.items():
        if len(values) not in (1, count) and not (name == "prior.batch_size" and not values):
            raise InputError(f"{name} has {len(values)} values; give one, or one for each of the {count} levels")
