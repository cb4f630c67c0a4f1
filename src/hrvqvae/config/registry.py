"""Registries: systems, networks of priors, data sets and loggers by name, ours and those of other packages.

An entry names its parts as text ("module:attribute"), and a registry its entries, as entry points do: they are imported
when they are asked for, so that a list of names costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hrvqvae.utils.errors import InputError, near_names, one_line
from hrvqvae.utils.progress import told_once

if TYPE_CHECKING:
    from hrvqvae.config.model import ModelConfig
    from hrvqvae.config.schema import PriorNetworkConfig
    from hrvqvae.config.systems import Settings


@dataclass(frozen=True, kw_only=True)
class RegistryEntry:
    """What a registry holds, by its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Dataset(RegistryEntry):
    """A data set: its files, how it is got and read, and what presets take from it.

    Attributes:
        name: also of its folder below the root folder.
        about: one line, for lists.
        settings: the fields of a configuration that this data decides, with their sources.
        column: the column of the systems' settings that its presets take: ffhq, imagenet, cifar10 or mnist. Without one
            it has no presets; `--data.dataset NAME` takes it in others.
        notes: for its presets, contradictions and departures, a line each.
        few_images: a few thousand images or less, from which priors are regularized more.
        how: how a person gets it, where no command does.
        files: path below its folder -> MD5 ("" where none is published); empty for a folder of images.
        ways: (title, "module:function") in the order in which they are tried: the function fills an empty folder
            (a Path) with the files, or raises.
        read: "module:function": (folder, split "train" or "test") -> `data.sets.Arrays`; empty for a folder of images.
        classifier: "module:RECIPE", an `evaluation.classifier.Recipe` of the classifier that measures samples and whose
            features compare images; empty: a small one measures, and none compares.
    """

    about: str
    settings: Settings
    column: str = ""
    notes: tuple[str, ...] = ()
    few_images: bool = False
    how: str = ""
    files: Mapping[str, str] | None = None
    ways: tuple[tuple[str, str], ...] = ()
    read: str = ""
    classifier: str = ""


@dataclass(frozen=True, kw_only=True)
class ExtraPreset:
    """A preset of a system beside those of every data set: every field that is not a default, with its source.

    Attributes:
        dataset: whose preset it begins with, in place of the defaults.
    """

    name: str
    about: str
    settings: Settings
    dataset: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class System(RegistryEntry):
    """A system of an autoencoder, its presets and, where it has one, its objective.

    Attributes:
        name: the first part of its presets' names, and `model.system`.
        config: its configuration with its defaults, a frozen dataclass; its field `system` becomes `name`.
        model: "module:Class", called with (config, channels) -> Autoencoder.
        settings: fields of a configuration with their sources, one value or one a column (`config.systems`).
        few_images: further settings for a data set of few images.
        objective: "module:Class" of a `models.objective.Objective`.
        extras: presets beside those of every data set.
        notes: for a data set's preset, contradictions and departures, a line each.
        needs: (module to import, what pip installs for it), where it needs another package.
    """

    title: str
    config: ModelConfig
    model: str = "hrvqvae.models.single_grid:SingleGridAutoencoder"
    settings: Settings
    few_images: Settings = field(default_factory=dict)
    objective: str = "hrvqvae.models.objective:SumOfLosses"
    extras: tuple[ExtraPreset, ...] = ()
    notes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.replace(system=self.name))

    @property
    def available(self) -> bool:
        """Whether the package that it needs is on this machine."""
        return not self.needs or importlib.util.find_spec(self.needs[0]) is not None


@dataclass(frozen=True, kw_only=True)
class PriorNetwork(RegistryEntry):
    """A network of priors, with its sampler.

    Attributes:
        name: `prior.network.kind`.
        config: its configuration, a frozen dataclass whose `kind` is `name`.
        network: "module:Class" of a `priors.base.Prior`, called with (config, its levels one by one).
        sampler: "module:function" of a cached sampler; without one, the whole network is computed for each position.
    """

    title: str
    config: type[PriorNetworkConfig]
    network: str
    sampler: str = "hrvqvae.priors.sampling:sample_plain"


@dataclass(frozen=True, kw_only=True)
class Logger(RegistryEntry):
    """Another place for the records of a training, beside metrics.jsonl.

    Attributes:
        name: `training.loggers` names it.
        sink: "module:Class" of a `training.loggers.Sink`, called with (folder of the run, first step).
        needs: a module.
    """

    sink: str
    needs: str


def imported(reference: str) -> Any:
    """Return the object that "module:attribute" stands for."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


E = TypeVar("E", bound=RegistryEntry)


class Registry(Generic[E]):
    """Entries by name: the built-in ones, those that were registered, and those that packages announce.

    Args:
        kind: class of an entry.
        what: word for an entry, for messages.
        group: entry points of other packages; an entry point stands for an entry and has its name.
        built_in: "module:attribute" of an entry by its name.
    """

    def __init__(self, kind: type[E], what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind, self.what, self.group = kind, what, group
        self._entries: dict[str, E | str] = dict(built_in)

    @cached_property
    def _announced(self) -> dict[str, EntryPoint]:
        points = {point.name: point for point in entry_points(group=self.group)}
        return {name: points[name] for name in sorted(points) if name not in self._entries}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._entries, *(name for name in self._announced if name not in self._entries)])

    def register(self, entry: E) -> E:
        """Add an entry under its name and return it. Raises InputError if the name is taken."""
        if entry.name in self:
            raise InputError(f"there is a {self.what} {entry.name!r} already: choose another name")
        self._entries[entry.name] = entry
        return entry

    def get(self, name: str) -> E:
        """Return the entry of that name.

        Raises:
            InputError: there is none, or the package that announces it can't be imported or gives something else.
        """
        if name not in self:
            near = near_names(name, self, cutoff=0.4)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self)}"
            raise InputError(f"unknown {self.what} {name!r}: {hint}")
        entry = self._entries.get(name)
        if entry is None:
            entry = self._load(self._announced[name])
        elif isinstance(entry, str):
            entry = imported(entry)
        self._entries[name] = entry
        return entry

    def _load(self, point: EntryPoint) -> E:
        announced = f"the {self.what} {point.name!r} of the package {point.dist.name if point.dist else point.value}"
        try:
            entry = point.load()
        except Exception as error:  # another package's
            raise InputError(f"{announced} can't be imported ({type(error).__name__}: {one_line(error)})") from error
        if not isinstance(entry, self.kind) or entry.name != point.name:
            raise InputError(f"{announced} must be a {self.kind.__name__} of that name")
        return entry

    def entries(self) -> list[E]:
        """Return the entries that can be used, in order; a warning says once why another can't."""
        usable = []
        for name in self:
            try:
                usable.append(self.get(name))
            except InputError as error:
                told_once(str(error))
        return usable


def _in(module: str, *names: str) -> dict[str, str]:
    """ "module:NAME" by name."""
    return {name: f"hrvqvae.{module}:{name.upper().replace('-', '_')}" for name in names}


_SYSTEMS = ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "fsq", "vqpytorch")
_FOLDERS = ("imagenet", "ffhq", "emoji32", "photos")
_ARRAYS = _in("data.sets.mnist", "mnist", "fashion-mnist") | _in("data.sets.cifar10", "cifar10")

SYSTEMS = Registry(System, "system", "hrvqvae.systems", _in("config.systems", *_SYSTEMS))
PRIORS = Registry(PriorNetwork, "network of priors", "hrvqvae.priors", _in("priors.configs", "pixelsnail", "gpt"))
DATASETS = Registry(Dataset, "data set", "hrvqvae.datasets", _ARRAYS | _in("data.sets.folders", *_FOLDERS))
LOGGERS = Registry(Logger, "logger", "hrvqvae.loggers", _in("training.loggers", "tensorboard", "wandb"))
register_system, register_prior = SYSTEMS.register, PRIORS.register
register_dataset, register_logger = DATASETS.register, LOGGERS.register
