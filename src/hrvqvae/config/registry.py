"""Registries: systems, networks of priors, and data sets by name, ours and those of other packages.

A registry names its entries' modules as text, as entry points do, and imports an entry when it is asked for: so this
folder imports no system, and a list of names costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from hrvqvae.config.checks import near_names
from hrvqvae.utils.errors import InputError


class Entry(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


E = TypeVar("E", bound=Entry)


def imported(reference: str) -> Any:
    """The object that "module:attribute" stands for."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


class Registry(Generic[E]):
    """Entries by name, in order: the built-in ones, then those that other packages announce by entry points.

    A package whose entry can't be used is refused where that entry is asked for, and by nothing else: `entries` leaves
    it out, and `faults` says what is wrong with it.

    Args:
        kind: the class of an entry.
        what: the word for an entry, for messages.
        group: of the entry points; an entry point's name is the entry's name, and it stands for the entry object.
        built_in: name -> "module:attribute" of the entry object.
    """

    def __init__(self, kind: type[E], what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind, self.what, self.group, self.built_in = kind, what, group, built_in
        self._loaded: dict[str, E] = {}

    @cached_property
    def _announced(self) -> dict[str, list[EntryPoint]]:
        """Name -> the entry points of that name: one, unless packages contradict each other."""
        found: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, _package(point))):
            found.setdefault(point.name, []).append(point)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from (name for name in self._announced if name not in self.built_in)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._announced

    def get(self, name: str) -> E:
        """The entry of that name.

        Raises:
            InputError: there is none (near names are listed), the package that adds it can't be imported, or it adds a
                name that is taken.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> E:
        points = self._announced.get(name, [])
        if name in self.built_in:
            if points:
                raise InputError(f"the package {_package(points[0])} adds a {self.what} {name!r}, a name of ours")
            entry: E = imported(self.built_in[name])
            return entry
        if not points:
            near = near_names(name, self, cutoff=0.4)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self)}"
            raise InputError(f"unknown {self.what} {name!r}: {hint}")
        if len(points) > 1:
            packages = " and ".join(_package(point) for point in points)
            raise InputError(f"several packages add a {self.what} {name!r}: {packages}")
        return self._load_point(points[0])

    def _load_point(self, point: EntryPoint) -> E:
        added = f"the {self.what} {point.name!r} of the package {_package(point)}"
        try:
            entry: E = point.load()
        except Exception as error:  # whatever another package runs into
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{added} can't be imported ({text})") from error
        if not isinstance(entry, self.kind):
            raise InputError(f"{added} is a {type(entry).__name__}; it must be a {self.kind.__name__}")
        called = entry.name
        if called != point.name:
            raise InputError(f"{added} calls itself {called!r}; both names must be the same")
        return entry

    def entries(self) -> list[E]:
        """All entries that can be used, in order."""
        return [self.get(name) for name in self if not self._fault(name)]

    def faults(self) -> list[str]:
        """What is wrong with the entries that can't be used, a line each."""
        return [fault for fault in map(self._fault, self) if fault]

    def _fault(self, name: str) -> str:
        try:
            self.get(name)
        except InputError as error:
            return str(error)
        return ""
