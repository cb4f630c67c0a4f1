"""Registries of systems, networks of priors, data sets and loggers, built in or from other packages.

An entry names its classes and functions as text, "module:attribute", and imports them at first use. So a list of names
needs no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hrvqvae.config.model import ModelConfig
from hrvqvae.utils.errors import InputError, near_names, one_line
from hrvqvae.utils.progress import told_once

if TYPE_CHECKING:
    from hrvqvae.config.schema import PriorNetworkConfig

Settings = Mapping[str, tuple[Any, str]]
"""Values of presets: dotted name of a field -> (value, source). A list has a value per column (`systems.COLUMNS`).

A field that a system lacks is ignored.
"""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: how to get and read its files, and its settings for presets.

    A data set that is a folder of images has no `files`, `ways` and `read`. The functions of `ways` are tried in order;
    each fills an empty folder with the files, or raises.
    """

    name: str  # also the name of its folder below the root folder
    about: str  # one line, for lists
    settings: Settings  # fields that the data decides
    column: str = ""  # column of `settings` for its presets: ffhq, imagenet, cifar10 or mnist; "": no presets
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each
    how: str = ""  # how a person gets the data, if no command does
    files: Mapping[str, str] | None = None  # path below its folder -> published MD5 ("": none)
    ways: tuple[tuple[str, str], ...] = ()  # downloads: (title, "module:function")
    read: str = ""  # "module:function" that returns `data.sets.Arrays` of (folder, "train" or "test")
    classifier: str = ""  # of samples: "module:RECIPE", an `evaluation.classifier.Recipe` (default: a small classifier)


@dataclass(frozen=True, kw_only=True)
class ExtraPreset:
    """A preset of a system beside SYSTEM/DATASET."""

    name: str
    about: str
    settings: Settings
    dataset: str = ""  # start from the preset SYSTEM/dataset (default: from the system's defaults)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class System:
    """An autoencoder with its training, and its presets."""

    name: str  # `model.system`, and the first part of the presets' names
    title: str
    config: ModelConfig  # with default values; its `system` is set to `name`
    model: str = "hrvqvae.models.single_grid:SingleGridAutoencoder"  # called with (config, channels)
    objective: str = "hrvqvae.models.objective:SumOfLosses"  # a `models.objective.Objective`
    settings: Settings
    extras: tuple[ExtraPreset, ...] = ()
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each
    needs: tuple[str, ...] = ()  # (module, requirement for pip) of an optional package; (): none

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.replace(system=self.name))

    @property
    def available(self) -> bool:
        """Whether the package that the system needs is installed."""
        return not self.needs or importlib.util.find_spec(self.needs[0]) is not None


@dataclass(frozen=True, kw_only=True)
class PriorNetwork:
    """A network of priors, with its sampler."""

    name: str  # `prior.network.kind`
    title: str
    config: type[PriorNetworkConfig]  # its default `kind` is `name`
    network: str  # a `priors.base.Prior`, called with (config, *levels)
    sampler: str = "hrvqvae.priors.sampling:sample_plain"  # the default computes the whole network per position


@dataclass(frozen=True, kw_only=True)
class Logger:
    """A service that receives the records of a training, which are also in metrics.jsonl."""

    name: str  # in `training.loggers`
    sink: str  # a `training.loggers.Sink`, called with (run folder, first step)
    needs: str  # module of the package that it needs


E = TypeVar("E", bound=Dataset | System | PriorNetwork | Logger)


class Registry(Generic[E]):
    """Entries by name. Built-in entries come first; the entry points of other packages can't replace them."""

    def __init__(self, kind: type[E], noun: str, group: str, built_in: Iterable[EntryPoint]) -> None:
        self.kind, self.noun, self.group, self.built_in = kind, noun, group, built_in

    @cached_property
    def _entries(self) -> dict[str, E | EntryPoint]:
        entries: dict[str, E | EntryPoint] = {point.name: point for point in self.built_in}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            entries.setdefault(point.name, point)
        return entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def register(self, entry: E) -> E:
        """Add an entry and return it. Raises InputError if its name is taken."""
        if entry.name in self._entries:
            raise InputError(f"there is a {self.noun} {entry.name!r} already: choose another name")
        self._entries[entry.name] = entry
        return entry

    def get(self, name: str) -> E:
        """Return the entry `name`. Raises InputError if there is no such entry, or its package is broken."""
        if name not in self._entries:
            near = near_names(name, self, cutoff=0.4)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self)}"
            raise InputError(f"unknown {self.noun} {name!r}: {hint}")
        entry = self._entries[name]
        if isinstance(entry, EntryPoint):
            package = entry.dist.name if entry.dist else entry.module
            label = f"the {self.noun} {name!r} of the package {package}"
            try:
                loaded = entry.load()
            except Exception as error:  # any error that the other package raises
                raise InputError(f"{label} can't be imported ({type(error).__name__}: {one_line(error)})") from error
            if not isinstance(loaded, self.kind) or loaded.name != name:
                raise InputError(f"{label} must be a {self.kind.__name__} of that name")
            entry = self._entries[name] = loaded
        return entry

    def entries(self) -> list[E]:
        """Return the entries that can be loaded; warn once about each entry that can't."""
        loaded = []
        for name in self:
            try:
                loaded.append(self.get(name))
            except InputError as error:
                told_once(str(error))
        return loaded


def _built_in(module: str, *names: str) -> list[EntryPoint]:
    return [EntryPoint(name, f"hrvqvae.{module}:{name.upper().replace('-', '_')}", "") for name in names]


_SYSTEMS = _built_in("config.systems", "hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "fsq", "vqpytorch")
_ARRAYS = _built_in("data.sets.mnist", "mnist", "fashion-mnist") + _built_in("data.sets.cifar10", "cifar10")
_FOLDERS = _built_in("data.sets.folders", "imagenet", "ffhq", "emoji32", "photos")

SYSTEMS = Registry(System, "system", "hrvqvae.systems", _SYSTEMS)
PRIORS = Registry(PriorNetwork, "network of priors", "hrvqvae.priors", _built_in("priors.configs", "pixelsnail", "gpt"))
DATASETS = Registry(Dataset, "data set", "hrvqvae.datasets", _ARRAYS + _FOLDERS)
LOGGERS = Registry(Logger, "logger", "hrvqvae.loggers", _built_in("training.loggers", "tensorboard", "wandb"))
register_system, register_prior = SYSTEMS.register, PRIORS.register
register_dataset, register_logger = DATASETS.register, LOGGERS.register
