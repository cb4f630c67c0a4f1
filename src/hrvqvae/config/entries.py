"""Entries of the registries. They name classes and functions as text, "module:attribute", and so
need no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrvqvae.config.model import ModelConfig, PriorNetworkConfig

Settings = Mapping[str, tuple[Any, str]]
"""Values of presets: dotted name of a field -> (value, source). A list has a value per column
(`systems.COLUMNS`).

A field that a system lacks is ignored.
"""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: how to get and read its files, and its settings for presets.

    A data set that is a folder of images has no `files`, `ways` and `read`. The functions of `ways`
    are tried in order; each fills an empty folder with the files, or raises.
    """

    name: str  # also the name of its folder below the root folder
    about: str  # one line, for lists
    settings: Settings  # fields that the data decides
    # column of `settings` for its presets: ffhq, imagenet, cifar10 or mnist; "": no presets
    column: str = ""
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each
    # where the data comes from: with `ways`, from which; else what a person must provide
    how: str = ""
    takes_any_folder: bool = False  # is a kind of images, not a published set
    files: tuple[str, ...] = ()  # names of the files in its folder
    checksum: str = ""  # SHA-256 of all files in order, unpacked if they are .gz
    ways: tuple[tuple[str, str], ...] = ()  # downloads: (title, "module:function")
    # "module:function" that returns `data.fetch.Arrays` of (folder, "train" or "test")
    read: str = ""


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
    # called with (config, channels)
    model: str = "hrvqvae.models.single_grid:SingleGridAutoencoder"
    objective: str = "hrvqvae.models.objective:Objective"  # a `models.objective.Objective`
    settings: Settings
    extras: tuple[ExtraPreset, ...] = ()
    notes: tuple[str, ...] = ()  # contradictions in the paper and departures from it, one line each

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.replace(system=self.name))


@dataclass(frozen=True, kw_only=True)
class PriorNetwork:
    """A network of priors."""

    name: str  # `prior.network.kind`
    config: type[PriorNetworkConfig]  # its default `kind` is `name`
    network: str  # a `priors.base.Prior`, called with (config, *levels)
