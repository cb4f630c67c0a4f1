"""Registries of systems, networks of priors, data sets and loggers, built in or from other
packages.

An entry is imported at its first use.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from hrvqvae.config.entries import Dataset, Logger, PriorNetwork, System
from hrvqvae.utils.errors import InputError, near_names, one_line
from hrvqvae.utils.progress import note_once

RIVALS = ("fsq", "vqpytorch")
"""Systems that stood in the package before 1.0; `benchmarks/rivals.py` has them now."""

E = TypeVar("E", bound=Dataset | System | PriorNetwork | Logger)


@dataclass(eq=False)
class Registry(Generic[E]):
    """Entries by name. Built-in entries come first; the entry points of other packages can't
    replace them.
    """

    kind: type[E]
    noun: str  # in messages
    group: str  # of entry points
    built_in: Mapping[str, str]  # module -> names of its entries, separated by spaces

    @cached_property
    def _entries(self) -> dict[str, E | EntryPoint]:
        entries: dict[str, E | EntryPoint] = {}
        for module, names in self.built_in.items():
            for name in names.split():  # the entry "x-y" is the variable X_Y of the module
                variable = name.upper().replace("-", "_")
                entries[name] = EntryPoint(name, f"hrvqvae.{module}:{variable}", self.group)
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
        """Return the entry `name`. Raises InputError if there is no such entry, or its package is
        broken.
        """
        if name not in self._entries:
            near = near_names(name, self, cutoff=0.4)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self)}"
            if name in RIVALS and self.kind is System:
                hint = "import benchmarks.rivals, in a clone of the repository, registers it"
            raise InputError(f"unknown {self.noun} {name!r}: {hint}")
        entry = self._entries[name]
        if isinstance(entry, EntryPoint):
            label = (
                f"the {self.noun} {name!r} of the package"
                f" {entry.dist.name if entry.dist else entry.module}"
            )
            try:
                loaded = entry.load()
            except Exception as error:  # any error that the other package raises
                raise InputError(
                    f"{label} can't be imported ({type(error).__name__}: {one_line(error)})"
                ) from error
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
                note_once(str(error))
        return loaded


_SYSTEMS = {"config.systems": "hrvqvae treevq vqvae vqvae2 vqgan rqvae"}
_DATASETS = {
    "data.sets.mnist": "mnist fashion-mnist",
    "data.sets.cifar10": "cifar10",
    "data.sets.folders": "imagenet ffhq emoji32 photos",
}
SYSTEMS = Registry(System, "system", "hrvqvae.systems", _SYSTEMS)
PRIORS = Registry(
    PriorNetwork, "network of priors", "hrvqvae.priors", {"priors.configs": "pixelsnail gpt"}
)
DATASETS = Registry(Dataset, "data set", "hrvqvae.datasets", _DATASETS)
LOGGERS = Registry(Logger, "logger", "hrvqvae.loggers", {"training.loggers": "tensorboard wandb"})
register_system = SYSTEMS.register
register_prior = PRIORS.register
register_dataset = DATASETS.register
register_logger = LOGGERS.register
