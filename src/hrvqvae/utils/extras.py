"""Extras: groups of packages that parts of this package need, read from its installed metadata."""

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
    """Return the packages of each extra, and of "" for what is always needed; nothing if this one is not installed."""
    extras: dict[str, tuple[str, ...]] = {}
    try:
        requirements = metadata.requires("hrvqvae") or []
    except metadata.PackageNotFoundError:
        return extras
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        if _normal(match[1]) != "hrvqvae":
            extras[match[2] or ""] = (*extras.get(match[2] or "", ()), _normal(match[1]))
    return extras


def extra_of(module: str) -> str:
    """Return the extra that has a module ("figures" for "matplotlib.figure"); "" if none has it."""
    package = _normal(module.partition(".")[0])
    return next((extra for extra, names in packages().items() if package in names), "")
