"""Extras: groups of packages that parts of this one need, and that pip installs when it is asked to.

They are written in pyproject.toml alone, and are read from what pip has kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata

_NAME = __name__.partition(".")[0]
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[.*?\])?[^;]*(?:;.*\bextra == ["']([\w.-]+)["'])?""")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _needed() -> Mapping[str | None, tuple[str, ...]]:
    """Extra, or None for what is always needed -> the packages that it names itself, normalized."""
    found: dict[str | None, tuple[str, ...]] = {}
    try:
        requirements = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return found
    for requirement in requirements:
        matched = _REQUIREMENT.match(requirement)
        if matched and _normal(matched[1]) != _NAME:
            found[matched[2]] = (*found.get(matched[2], ()), _normal(matched[1]))
    return found


def required() -> tuple[str, ...]:
    """The packages that are needed whatever the extras, normalized; empty as `extras` is."""
    return _needed().get(None, ())


def extras() -> Mapping[str, tuple[str, ...]]:
    """Extra -> the packages that it names itself, normalized, such as "train" -> ("torchmetrics", ...).

    Empty where this package is not installed but only found on the path.
    """
    return {extra: packages for extra, packages in _needed().items() if extra is not None}


def extra_of(module: str) -> str | None:
    """The extra that brings a module, such as "matplotlib.figure" -> "figures"; None where none does."""
    package = _normal(module.partition(".")[0])
    return next((extra for extra, packages in extras().items() if package in packages), None)
