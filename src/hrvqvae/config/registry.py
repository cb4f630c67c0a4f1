"""Registries: systems, networks of priors, data sets and loggers by name, ours and those of other packages.

An entry names its parts as text ("module:attribute"), and a registry its entries, as entry points do: they are imported
when they are asked for, so that a list of names costs nothing and needs no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hrvqvae.utils.errors import InputError, near_names
from hrvqvae.utils.progress import told_once

if TYPE_CHECKING:
    from hrvqvae.config.model import ModelConfig
    from hrvqvae.config.schema import PriorNetworkConfig
    from hrvqvae.config.tables import Settings


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a registry holds, by its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Dataset(Entry):
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
class System(Entry):
    """A system of an autoencoder, its presets and, where it has one, its objective.

    Attributes:
        name: the first part of its presets' names, and `model.system`.
        config: its configuration with its defaults, a frozen dataclass; its field `system` becomes `name`.
        model: "module:Class", called with (config, channels) -> Autoencoder.
        settings: fields of a configuration with their sources, one value or one a column (`config.tables`).
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
        object.__setattr__(self, "config", dataclasses.replace(self.config, system=self.name))

    @property
    def available(self) -> bool:
        """Whether the package that it needs is on this machine."""
        return not self.needs or importlib.util.find_spec(self.needs[0]) is not None


@dataclass(frozen=True, kw_only=True)
class PriorNetwork(Entry):
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
class Logger(Entry):
    """Another place for the records of a training, beside metrics.jsonl.

    Attributes:
        name: `training.loggers` names it.
        sink: "module:Class" of a `training.loggers.Sink`, called with (folder of the run, first step).
        needs: a module.
    """

    sink: str
    needs: str


E = TypeVar("E", bound=Entry)
_NONE: Mapping[str, str] = MappingProxyType({})


def imported(reference: str) -> Any:
    """The object that "module:attribute" stands for."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


class Registry(Generic[E]):
    """Entries by name, in order: the built-in ones, then those that other packages announce by entry points.

    An entry that can't be used is an error where it is asked for; `entries` leaves it out, with a line.

    Args:
        kind: the class of an entry.
        what: the word for an entry, for messages.
        group: of the entry points; an entry point's name is the entry's name, and it stands for the entry object.
        built_in: name -> "module:attribute" of the entry object.
        removed: name -> a line for those who ask for an entry of an earlier version.
    """

    def __init__(
        self, kind: type[E], what: str, group: str, built_in: Mapping[str, str], removed: Mapping[str, str] = _NONE
    ) -> None:
        self.kind, self.what, self.group, self.built_in, self.removed = kind, what, group, built_in, removed
        self._loaded: dict[str, E] = {}

    @cached_property
    def _announced(self) -> list[EntryPoint]:
        return sorted(entry_points(group=self.group), key=lambda point: (point.name, _package(point)))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.built_in, *(point.name for point in self._announced)]))

    def get(self, name: str) -> E:
        """The entry of that name.

        Raises:
            InputError: there is none (near names are listed), several packages add it, or the package that adds it
                can't be imported or gives something else.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def removal(self, name: str) -> str:
        """The line about an entry that was removed, whose name is taken; "" for any other."""
        return self.removed.get(name, "")

    def _load(self, name: str) -> E:
        points = [point for point in self._announced if point.name == name]
        if name in self.built_in and not points:
            entry: E = imported(self.built_in[name])
            return entry
        if name in self.removed:
            raise InputError(self.removed[name])
        if not points:
            near = near_names(name, self, cutoff=0.4)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self)}"
            raise InputError(f"unknown {self.what} {name!r}: {hint}")
        adding = [_package(point) for point in points] + ["hrvqvae"] * (name in self.built_in)
        if len(adding) > 1:
            raise InputError(f"several packages add a {self.what} {name!r}: {' and '.join(adding)}")
        added = f"the {self.what} {name!r} of the package {adding[0]}"
        try:
            entry = points[0].load()
        except Exception as error:  # another package's
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{added} can't be imported ({text})") from error
        if not isinstance(entry, self.kind) or entry.name != name:
            raise InputError(f"{added} must be a {self.kind.__name__} of that name")
        return entry

    def entries(self) -> list[E]:
        """The entries that can be used, in order. Why another can't be used is told once."""
        found = []
        for name in self:
            try:
                found.append(self.get(name))
            except InputError as error:
                told_once(str(error))
        return found


def _in(module: str, *names: str) -> dict[str, str]:
    """Name -> where our entry of that name stands."""
    return {name: f"hrvqvae.{module}:{name.upper().replace('-', '_')}" for name in names}


_SYSTEMS = ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "fsq", "vqpytorch")
_FOLDERS = ("imagenet", "ffhq", "emoji32", "photos")
_ARRAYS = _in("data.sets.mnist", "mnist", "fashion-mnist") | _in("data.sets.cifar10", "cifar10")

SYSTEMS = Registry(System, "system", "hrvqvae.systems", _in("models.systems", *_SYSTEMS))
_REMOVED = {
    kind: f"prior.network.kind '{kind}' was removed: hrvqvae at commit b3f58bc reads it; "
    "--prior.network.kind gpt trains a new one"
    for kind in ("depth", "transformer")
}
_NETWORKS = _in("priors.configs", "pixelsnail", "gpt")
PRIORS = Registry(PriorNetwork, "network of priors", "hrvqvae.priors", _NETWORKS, _REMOVED)
DATASETS = Registry(Dataset, "data set", "hrvqvae.datasets", _ARRAYS | _in("data.sets.folders", *_FOLDERS))
LOGGERS = Registry(Logger, "logger", "hrvqvae.loggers", _in("training.loggers", "tensorboard", "wandb"))
