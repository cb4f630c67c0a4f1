"""What is registered: a system, a prior's network, a data set, a logger, each one object; and the registries."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hrvqvae.config.data import DataConfig
from hrvqvae.config.model import ModelConfig
from hrvqvae.config.prior import PriorNetworkConfig
from hrvqvae.config.registry import Registry
from hrvqvae.config.tables import OURS, Part, Table


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: what lies where, how it is got and read, and what presets take from it.

    Attributes:
        name: also of its folder below the root folder.
        about: one line, for lists.
        settings: the fields of a configuration that this data decides, with their sources; `data` first of all.
        column: the column of the systems' tables whose model and priors it takes: ffhq, imagenet, cifar10 or mnist.
            Without one there are no presets for it; `--data.dataset NAME` takes it in others.
        notes: for its presets, contradictions and departures, a line each.
        few_images: a few thousand images or less, from which priors are regularized more.
        how: how a person gets it, where no command does.
        files: path below its folder -> MD5 ("" where none is published); empty for a folder of images.
        ways: (title, "module:function") in the order in which they are tried: the function fills an empty folder
            (a Path) with the files, or raises.
        read: "module:function": (folder, split "train" or "test") -> `data.arrays.Arrays`; empty for a folder of
            images, which is read file by file.
        judge: "module:RECIPE", an `evaluation.classifier.Recipe`: how the classifier is trained that judges samples
            and by whose features images are compared; empty where a small one judges and none compares.
    """

    name: str
    about: str
    settings: tuple[Part, ...]
    column: str = ""
    notes: tuple[str, ...] = ()
    few_images: bool = False
    how: str = ""
    files: Mapping[str, str] | None = None
    ways: tuple[tuple[str, str], ...] = ()
    read: str = ""
    judge: str = ""

    @property
    def config(self) -> DataConfig:
        """The part of the settings that describes the data."""
        values = {name: value for part in self.settings for name, value in part.values.items()}
        prefix = "data."
        return DataConfig(**{k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})


@dataclass(frozen=True)
class TableSettings:
    """Settings of a system that stand in tables: of each table the data set's column; the later ones win.

    Attributes:
        tables: each with a column for every name that `Dataset.column` can have.
        few_images: further fields for a data set of few images, ours.
    """

    tables: tuple[Table, ...]
    few_images: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, dataset: Dataset) -> tuple[Part, ...]:
        parts = tuple(table.column(dataset.column, dataset.name) for table in self.tables)
        return (*parts, Part(OURS, self.few_images)) if dataset.few_images else parts


@dataclass(frozen=True, kw_only=True)
class ExtraPreset:
    """A preset beside those of every data set.

    Attributes:
        name: SYSTEM/DATA, or whatever is unique.
        about: one line.
        parts: every field that is not a default, with sources; the later ones win.
        notes: contradictions and departures, a line each.
    """

    name: str
    about: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class System:
    """A system: everything that the rest asks about it. The modules it names are imported when they are needed.

    Attributes:
        name: the first part of its presets' names, and `model.system`.
        title: for people.
        source: publication, for lists and pages.
        config: its configuration with its defaults, a frozen dataclass; its field `system` becomes `name`.
        model: "module:Class", called with (config, channels) -> Autoencoder.
        settings: the fields of a configuration for a data set, with their sources; the later ones win.
        objective: "module:Class" of a `models.objective.Objective`: how it learns.
        extras: presets beside those of every data set.
        notes: for a data set's preset, contradictions and departures, a line each.
        needs: (module to import, what pip installs for it), where it needs another package.
    """

    name: str
    title: str
    source: str
    config: ModelConfig
    model: str
    settings: Callable[[Dataset], Sequence[Part]]
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
class PriorNetwork:
    """A network of priors, with its sampler.

    Attributes:
        name: its folder, and `prior.network.kind`.
        title: for people.
        config: its configuration, a frozen dataclass whose `kind` is `name`.
        network: "module:Class" of a `priors.base.Prior`; that of one level is called with (config, level, its index).
        sampler: "module:function" of a cached sampler; without one, the whole network is computed for each position.
    """

    name: str
    title: str
    config: type[PriorNetworkConfig]
    network: str
    sampler: str = "hrvqvae.priors.plain:sample_plain"


@dataclass(frozen=True, kw_only=True)
class Logger:
    """Another place for the records of a training, beside metrics.jsonl.

    Attributes:
        name: `training.loggers` names it.
        title: for people.
        sink: "module:Class" of a `training.loggers.Sink`, called with (folder of the run, first step).
        needs: the module that it can't do without.
    """

    name: str
    title: str
    sink: str
    needs: str


def _in_package(folder: str, names: Sequence[str], attribute: str) -> dict[str, str]:
    return {name: f"hrvqvae.{folder}.{name.replace('-', '_')}:{attribute}" for name in names}


SYSTEMS: Registry[System] = Registry(
    System, "system", "hrvqvae.systems",
    _in_package("models", ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae"), "SYSTEM")
    | {"fsq": "hrvqvae.models.vqpytorch:FSQ", "vqpytorch": "hrvqvae.models.vqpytorch:VQPYTORCH"},
)  # fmt: skip
PRIORS: Registry[PriorNetwork] = Registry(
    PriorNetwork, "network of priors", "hrvqvae.priors",
    _in_package("priors", ("pixelsnail", "transformer", "depth"), "PRIOR"),
)  # fmt: skip
DATASETS: Registry[Dataset] = Registry(
    Dataset, "data set", "hrvqvae.datasets",
    _in_package("data.sets", ("mnist", "fashion-mnist", "cifar10"), "DATASET")
    | {name: f"hrvqvae.data.sets.folders:{name.upper()}" for name in ("imagenet", "ffhq", "emoji32", "photos")},
)  # fmt: skip
LOGGERS: Registry[Logger] = Registry(
    Logger, "logger", "hrvqvae.loggers",
    {name: f"hrvqvae.training.loggers:{name.upper()}" for name in ("tensorboard", "wandb")},
)  # fmt: skip
