"""Registries: systems, networks of priors, and data sets by name, ours and those of other packages.

A registry names its entries' modules as text, as entry points do, and imports an entry when it is asked for: so this
folder imports no system, and a list of names costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from hrvqvae.errors import InputError


class Entry(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


E = TypeVar("E", bound=Entry)


def imported(reference: str) -> Any:
    """The object that "module:attribute" stands for."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(Generic[E]):
    """Entries by name, in order: the built-in ones, then those that other packages announce by entry points.

    Args:
        what: the word for an entry, for messages.
        group: of the entry points; an entry point's name is the entry's name, and it stands for the entry object.
        built_in: name -> "module:attribute" of the entry object.
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.what, self.group, self.built_in = what, group, built_in
        self._loaded: dict[str, E] = {}

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        found = {point.name: point for point in entry_points(group=self.group)}
        taken = sorted(found.keys() & self.built_in.keys())
        if taken:
            package = found[taken[0]].dist
            raise InputError(f"the package {package and package.name} adds a {self.what} {taken[0]!r}, which is ours")
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from sorted(self._others)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._others

    def get(self, name: str) -> E:
        """The entry of that name.

        Raises:
            InputError: there is none (near names are listed), or the package that adds it can't be imported.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> E:
        if name in self.built_in:
            entry: E = imported(self.built_in[name])
        elif name in self._others:
            point = self._others[name]
            try:
                entry = point.load()
            except Exception as error:  # whatever another package runs into
                package = point.dist.name if point.dist else point.value
                raise InputError(
                    f"the {self.what} {name!r} of the package {package} can't be imported "
                    f"({type(error).__name__}: {error})"
                ) from error
        else:
            near = difflib.get_close_matches(name, list(self), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self)}"
            raise InputError(f"unknown {self.what} {name!r}: {hint}")
        if entry.name != name:
            raise InputError(f"the {self.what} {name!r} calls itself {entry.name!r}; both names must be the same")
        return entry

    def entries(self) -> list[E]:
        """All entries, in order. Raises InputError where a package can't be imported."""
        return [self.get(name) for name in self]
