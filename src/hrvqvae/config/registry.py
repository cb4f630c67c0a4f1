"""Tables of systems, networks of priors and data sets. An entry is imported at its first use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Generic, TypeVar

from hrvqvae.config.entries import Dataset, PriorNetwork, System
from hrvqvae.utils.errors import InputError

E = TypeVar("E", bound=Dataset | System | PriorNetwork)


@dataclass
class Registry(Generic[E]):
    """Entries by name."""

    noun: str  # in messages
    built_in: Mapping[str, str]  # name -> "module:VARIABLE"
    added: dict[str, E] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.added

    def register(self, entry: E) -> E:
        """Add an entry to the running process and return it. Raises InputError if its name is
        taken.
        """
        if entry.name in [*self]:
            raise InputError(f"there is a {self.noun} {entry.name!r} already: choose another name")
        self.added[entry.name] = entry
        return entry

    def get(self, name: str) -> E:
        """Return the entry `name`. Raises InputError if there is no such entry."""
        if name in self.added:
            return self.added[name]
        if name in self.built_in:
            entry: E = resolve_name(f"hrvqvae.{self.built_in[name]}")
            return entry
        raise InputError(f"unknown {self.noun} {name!r}: there are {', '.join(self)}")

    def entries(self) -> list[E]:
        """Return all entries."""
        return [self.get(name) for name in self]


SYSTEMS = Registry[System](
    "system",
    {
        "hrvqvae": "config.systems:HRVQVAE",
        "treevq": "config.systems:TREEVQ",
        "vqvae": "config.systems:VQVAE",
        "vqvae2": "config.systems:VQVAE2",
        "vqgan": "config.systems:VQGAN",
        "rqvae": "config.systems:RQVAE",
    },
)
PRIORS = Registry[PriorNetwork](
    "network of priors",
    {"pixelsnail": "priors.configs:PIXELSNAIL", "gpt": "priors.configs:GPT"},
)
DATASETS = Registry[Dataset](
    "data set",
    {
        "mnist": "data.sets:MNIST",
        "fashion-mnist": "data.sets:FASHION_MNIST",
        "cifar10": "data.sets:CIFAR10",
        "imagenet": "data.sets:IMAGENET",
        "ffhq": "data.sets:FFHQ",
        "emoji32": "data.sets:EMOJI32",
        "photos": "data.sets:PHOTOS",
    },
)
register_system = SYSTEMS.register
