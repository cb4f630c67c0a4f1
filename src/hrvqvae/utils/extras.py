"""Extras: groups of packages that parts of this one need, as pip has kept them of pyproject.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata

_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[.*?\])?[^;]*(?:;.*\bextra == ["']([\w.-]+)["'])?""")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def packages() -> Mapping[str, tuple[str, ...]]:
    """Extra, or "" for what is always needed -> the packages that it names itself, such as "train" -> ("rich", ...).

    Empty where this package is not installed but only found on the path.
    """
    found: dict[str, tuple[str, ...]] = {}
    try:
        requirements = metadata.requires("hrvqvae") or []
    except metadata.PackageNotFoundError:
        return found
    for requirement in requirements:
        matched = _REQUIREMENT.match(requirement)
        if matched and _normal(matched[1]) != "hrvqvae":
            extra = matched[2] or ""
            found[extra] = (*found.get(extra, ()), _normal(matched[1]))
    return found


def extra_of(module: str) -> str:
    """The extra that has a module, such as "matplotlib.figure" -> "figures"; "" where none does."""
    package = _normal(module.partition(".")[0])
    return next((extra for extra, names in packages().items() if package in names), "")
